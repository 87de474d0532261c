"""What is sampled depends on what was seen and the seed, on nothing about how it came."""

import math

import pytest
import torch
from torch import Tensor

from basis_probe.statistics.sampling import Reservoir, content_positions, hash_examples, priorities


def _tokens(rows: int = 40, length: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Token ids with padding on the right, and the mask of those that count."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 1000, (rows, length), generator=generator)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    mask = torch.arange(length)[None] < lengths[:, None]
    return ids.masked_fill(~mask, 0), mask


def _padded(ids: Tensor, mask: Tensor, left: int, right: int) -> tuple[Tensor, Tensor]:
    """The same content in a longer batch, padded with another number on both sides."""
    wider = torch.nn.functional.pad(ids, (left, right), value=7)
    return wider, torch.nn.functional.pad(mask, (left, right), value=False)


def _sample(ids: Tensor, mask: Tensor, *, sizes: list[int], order: Tensor, seed: int) -> Tensor:
    """The tokens that a reservoir keeps of the examples, taken in that order and those batches."""
    kept = Reservoir.empty(50)
    for rows in order.split(sizes):
        some, counted = ids[rows], mask[rows]
        chance = priorities(hash_examples(some, counted), content_positions(counted), seed=seed)[
            counted
        ]
        examples = rows[:, None].expand_as(counted)[counted]
        kept = kept.offer(chance, {"token": some[counted], "example": examples})
    return torch.stack([kept.rows["example"], kept.rows["token"]])


@pytest.mark.parametrize("size", [1, 7, 40])
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("padding", [(0, 0), (3, 0), (0, 5), (2, 2)])
def test_batches_order_and_padding_do_not_change_the_sample(
    size: int, shuffled: bool, padding: tuple[int, int]
) -> None:
    ids, mask = _tokens()
    whole = _sample(ids, mask, sizes=[40], order=torch.arange(40), seed=0)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    order = order if shuffled else torch.arange(40)
    sizes = [size] * (40 // size) + ([40 % size] if 40 % size else [])
    wider, counted = _padded(ids, mask, *padding)
    assert torch.equal(whole, _sample(wider, counted, sizes=sizes, order=order, seed=0))


def test_the_seed_and_the_content_change_the_sample() -> None:
    ids, mask = _tokens()
    arguments = {"sizes": [40], "order": torch.arange(40)}
    one = _sample(ids, mask, **arguments, seed=0)
    assert not torch.equal(one, _sample(ids, mask, **arguments, seed=1))
    assert torch.equal(one, _sample(ids, mask, **arguments, seed=0))
    assert not torch.equal(one, _sample(ids + mask, mask, **arguments, seed=0))


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64 + 5])
def test_any_whole_number_is_a_seed(seed: int) -> None:
    ids, mask = _tokens()
    chance = priorities(hash_examples(ids, mask), content_positions(mask), seed=seed)
    assert ((chance >= 0) & (chance < 1)).all()


def test_content_positions_count_tokens_and_not_places() -> None:
    mask = torch.tensor([[False, True, True, False, True]])
    assert content_positions(mask)[mask].tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_floating_type_does_not_change_the_hash(dtype: torch.dtype) -> None:
    # Numbers that all of these types hold.
    images = torch.randint(-8, 8, (5, 3, 4, 4), generator=torch.Generator().manual_seed(0)) / 4
    expected = hash_examples(images.to(torch.float32), None)
    assert torch.equal(hash_examples(images.to(dtype), None), expected)


def test_the_integer_type_and_memory_layout_do_not_change_the_hash() -> None:
    ids, mask = _tokens()
    expected = hash_examples(ids, mask)
    assert torch.equal(hash_examples(ids.to(torch.int32), mask), expected)
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(hash_examples(last, None), hash_examples(images, None))


def test_one_zero_and_one_nan() -> None:
    x = torch.tensor([[0.0, math.nan], [-0.0, -math.nan]])
    first, second = hash_examples(x, None).tolist()
    assert first == second


def test_an_example_hashes_alike_in_any_company(monkeypatch: pytest.MonkeyPatch) -> None:
    from basis_probe.statistics import sampling

    ids, mask = _tokens()
    whole = hash_examples(ids, mask)
    monkeypatch.setattr(sampling, "_ELEMENTS_AT_ONCE", 24)
    assert torch.equal(hash_examples(ids, mask), whole)
    alone = torch.cat([hash_examples(ids[i : i + 1], mask[i : i + 1]) for i in range(40)])
    assert torch.equal(alone, whole)


def test_different_examples_do_not_collide() -> None:
    # All pairs of small ids in both orders, and one bit flipped anywhere: what weak hashes confuse.
    pairs = torch.cartesian_prod(torch.arange(300), torch.arange(300))
    assert len(hash_examples(pairs, None).unique()) == len(pairs)
    flipped = torch.zeros(1024, 1024) + torch.eye(1024)
    assert len(hash_examples(flipped, None).unique()) == 1024
    # Zeros at the end are content, unless they are masked.
    short, long = torch.tensor([[5]]), torch.tensor([[5, 0]])
    assert hash_examples(short, None) != hash_examples(long, None)
    assert hash_examples(short, None) == hash_examples(long, long > 0)
    # An empty example is none with a token in it.
    assert hash_examples(long, long < 0) != hash_examples(long, None)


def _chi_squared(counts: Tensor) -> float:
    expected = counts.double().mean()
    return ((counts - expected) ** 2 / expected).sum().item()


def test_priorities_are_uniform() -> None:
    ids = torch.arange(4000)[:, None]
    positions = torch.arange(25)[None].expand(4000, 25)
    chance = priorities(hash_examples(ids, None), positions, seed=0)
    # 100 cells: mean 99, standard deviation 14; 160 has a chance of 1e-4.
    assert _chi_squared((chance * 100).long().flatten().bincount(minlength=100)) < 160
    # Neighbours are unrelated: successive positions, successive examples, successive seeds.
    other = priorities(hash_examples(ids, None), positions, seed=1)
    for a, b in ((chance[:, 1:], chance[:, :-1]), (chance[1:], chance[:-1]), (chance, other)):
        cells = (a * 10).long() * 10 + (b * 10).long()
        assert _chi_squared(cells.flatten().bincount(minlength=100)) < 160


@pytest.mark.slow
def test_every_row_is_kept_equally_often() -> None:
    ids = torch.arange(20)[:, None]
    hashes, positions = hash_examples(ids, None), torch.zeros(20, 1, dtype=torch.int64)
    counts = torch.zeros(20)
    for seed in range(2000):
        chance = priorities(hashes, positions, seed=seed).flatten()
        counts[Reservoir.of(chance, {"row": ids[:, 0]}, capacity=5).rows["row"]] += 1
    # 19 degrees of freedom, times 15/19 for drawing without replacement: 50 has a chance of 1e-5.
    assert counts.sum() == 10_000
    assert _chi_squared(counts) < 50


# --- reservoirs -----------------------------------------------------------------------------------


def _stream(rows: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    chance = torch.rand(rows, dtype=torch.float64, generator=generator)
    return chance, torch.randn(rows, 3, generator=generator)


def _same(a: Reservoir, b: Reservoir) -> bool:
    return (
        a.seen == b.seen
        and torch.equal(a.priorities, b.priorities)
        and a.rows.keys() == b.rows.keys()
        and all(torch.equal(a.rows[name], b.rows[name]) for name in a.rows)
    )


@pytest.mark.parametrize("capacity", [1, 17, 200, 500])
@pytest.mark.parametrize("seed", range(4))
def test_any_split_in_any_order_keeps_the_same_rows(capacity: int, seed: int) -> None:
    chance, x = _stream()
    whole = Reservoir.of(chance, {"x": x}, capacity=capacity)
    kept = chance.sort().indices[:capacity]
    assert torch.equal(whole.rows["x"], x[kept])
    assert whole.seen == 200

    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(200, generator=generator)
    cuts = torch.randint(0, 201, (9,), generator=generator).sort().values.tolist()
    parts = [
        Reservoir.of(chance[rows], {"x": x[rows]}, capacity=capacity)
        for rows in order.tensor_split(cuts)
    ]
    left = Reservoir.empty(capacity)
    for part in parts:
        left = left + part
    right = Reservoir.empty(capacity)
    for part in reversed(parts):
        right = part + right
    middle = sum(parts[5:], sum(parts[:5], Reservoir.empty(capacity)))
    for total in (left, right, middle):
        assert _same(total, whole)
    offered = Reservoir.empty(capacity)
    for rows in order.tensor_split(cuts):
        offered = offered.offer(chance[rows], {"x": x[rows]})
    assert _same(offered, whole)


def test_the_threshold_is_what_a_row_must_beat() -> None:
    chance, x = _stream()
    kept = Reservoir.of(chance[:5], {"x": x[:5]}, capacity=10)
    assert kept.threshold == math.inf
    kept = kept.offer(chance[5:], {"x": x[5:]})
    assert kept.threshold == chance.sort().values[9].item()
    unchanged = kept.offer(torch.tensor([0.999]).double(), {"x": torch.ones(1, 3)})
    assert unchanged.seen == 201
    assert torch.equal(unchanged.rows["x"], kept.rows["x"])


def test_rows_are_copied() -> None:
    chance, x = _stream(4)
    kept = Reservoir.of(chance, {"x": x}, capacity=10)
    before = kept.rows["x"].clone()
    x.fill_(0.0)
    chance.fill_(0.0)
    assert torch.equal(kept.rows["x"], before)
    assert kept.priorities.min() > 0
    assert kept.rows["x"].untyped_storage().nbytes() == 4 * 3 * 4


def test_gradients_are_not_kept() -> None:
    chance, x = _stream(4)
    assert not Reservoir.of(chance, {"x": x.requires_grad_()}, capacity=2).rows["x"].requires_grad


@pytest.mark.usefixtures("as_shipped")
def test_errors_say_what_was_given_and_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"single number"):
        hash_examples(torch.tensor(1.0), None)
    with pytest.raises(TypeError, match=r"torch\.view_as_real"):
        hash_examples(torch.ones(2, 3, dtype=torch.complex64), None)
    with pytest.raises(ValueError, match=r"mask has shape \[2, 4\] and the examples \[2, 3\]"):
        hash_examples(torch.ones(2, 3), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="capacity 0"):
        Reservoir.empty(0)
    one = torch.tensor([0.5]).double()
    with pytest.raises(ValueError, match=r"'x' has shape \[2\] for 1 priorities"):
        Reservoir.of(one, {"x": torch.ones(2)}, capacity=1)
    with pytest.raises(ValueError, match="NaN"):
        Reservoir.of(one * math.nan, {"x": torch.ones(1)}, capacity=1)
    x, y = (Reservoir.of(one, {name: torch.ones(1)}, capacity=1) for name in ("x", "y"))
    with pytest.raises(ValueError, match=r"\['x'\] and of \['y'\]"):
        _ = x + y
    with pytest.raises(ValueError, match="capacity 1 and 2"):
        _ = x + Reservoir.empty(2)
