"""The rows that are kept are a uniform sample, whatever the data, and however they are cut."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import basis_probe as bp
from tests.draws import seeded

DIM = 6


class Reader(nn.Module):
    """A table that is read token by token, beside a second input for every example."""

    def __init__(self, words: int, *, folded: bool, seed: int) -> None:
        super().__init__()
        self.folded = folded
        self.table = nn.Embedding(words, DIM)
        self.beside = nn.Linear(2, DIM)
        self.act, self.out = nn.Identity(), nn.Linear(DIM, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=seeded(seed)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, more: Tensor) -> Tensor:
        x = self.table(input_ids) + self.beside(more)[:, None]
        x = self.act(x.flatten(0, 1)).view(x.shape) if self.folded else self.act(x)
        return self.out(x)


def _data(seed: int, *, left: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Examples of unequal lengths, of which many come several times."""
    draw = seeded(seed)
    different, length = 12, 5
    ids = torch.randint(1, 9, (different, length), generator=draw)
    lengths = torch.randint(2, length + 1, (different, 1), generator=draw)
    # Some differ in their second input alone.
    ids, lengths = ids[torch.arange(different) % 4], lengths[torch.arange(different) % 4]
    mask = (torch.arange(length) < lengths).long()
    if left:
        mask = mask.flip(1)
    more = torch.randint(0, 2, (different, 2), generator=draw).float()
    chosen = torch.randint(0, different, (40,), generator=draw)
    chosen = torch.cat([chosen, torch.zeros(20, dtype=torch.long)])
    return (ids * mask)[chosen], mask[chosen], more[chosen]


def _kept(model: nn.Module, data: tuple[Tensor, Tensor, Tensor], sizes: int, seed: int) -> Tensor:
    """The rows that are kept, sorted."""
    batches = [
        dict(zip(("input_ids", "attention_mask", "more"), parts, strict=True))
        for parts in zip(*(values.split(sizes) for values in data), strict=True)
    ]
    seen = bp.observe(
        model, batches, sites="act", null=bp.nulls.Rotation(samples=20), seed=seed, progress=False
    ).seen["act"]
    rows = seen.kept.rows["x"]
    # Equal examples are kept or left out each by itself.
    assert len(seen.kept.priorities.unique()) == len(rows)
    return rows[torch.from_numpy(np.lexsort(rows.numpy().T))]


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("case", range(4))
def test_order_and_batches_change_no_kept_row(case: int) -> None:
    model = Reader(9, folded=case % 2 == 1, seed=case).eval()
    data = _data(case, left=case > 1)
    order = torch.randperm(60, generator=seeded(case))
    shuffled = data[0][order], data[1][order], data[2][order]
    whole = _kept(model, data, 60, seed=case)
    for given, size in ((data, 7), (shuffled, 16), (shuffled, 1)):
        assert torch.equal(_kept(model, given, size, seed=case), whole)


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_keep_the_rows_that_one_run_keeps(shards: int) -> None:
    model = Reader(9, folded=False, seed=shards).eval()
    ids, mask, more = (values[:40] for values in _data(shards, left=False))
    # Equal examples in two shards are not told apart, so these differ.
    more = more + torch.arange(40.0)[:, None]
    data = ids, mask, more
    batches = [
        dict(zip(("input_ids", "attention_mask", "more"), parts, strict=True))
        for parts in zip(*(values.split(6) for values in data), strict=True)
    ]
    settings = {"sites": "act", "null": bp.nulls.Rotation(samples=20), "progress": False}
    parts = [bp.observe(model, batches, shard=(i, shards), **settings) for i in range(shards)]
    kept = sum(parts[1:], parts[0]).seen["act"].kept
    whole = bp.observe(model, batches, **settings).seen["act"].kept
    assert torch.equal(kept.priorities, whole.priorities)
    assert torch.equal(kept.rows["x"], whole.rows["x"])


@pytest.mark.slow
@pytest.mark.parametrize("case", range(2))
def test_every_row_is_kept_as_often_as_any_other(case: int) -> None:
    model, data = Reader(9, folded=case == 1, seed=case).eval(), _data(case, left=case == 1)
    ids, mask, more = data
    with torch.no_grad():
        rows = (model.table(ids) + model.beside(more)[:, None])[mask.bool()]
    values, counts = np.unique(rows.numpy().round(4), axis=0, return_counts=True)
    often = np.zeros(len(values))
    seeds = 200
    for seed in range(seeds):
        kept = _kept(model, data, 13, seed=seed).numpy().round(4)
        distances = np.abs(kept[:, None] - values[None]).max(2)
        assert distances.min(1).max() < 1e-3
        np.add.at(often, distances.argmin(1), 1)
    taken, total = 20, len(rows)
    expected = seeds * taken * counts / total
    # Rows are drawn without being put back, so that counts vary less than those of dice.
    statistic = ((often - expected) ** 2 / expected).sum() * (total - 1) / (total - taken)
    assert stats.chi2.sf(statistic, len(values) - 1) > 1e-3
