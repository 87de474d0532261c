"""What the record of a model proves is what a copy of the model proves."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import families
import numpy as np
import pytest
import small_models as small
import torch
from families import Family
from small_models import D, H
from torch import Tensor, nn

import basis_probe as bp
from basis_probe import groups as G
from basis_probe.algebra.groups import Group, Unknown
from basis_probe.architecture import prove_local
from basis_probe.architecture import symmetries as door
from basis_probe.architecture.derive import Derivation
from basis_probe.architecture.prove import Unproved
from basis_probe.architecture.prove_copied import CopyProver
from basis_probe.architecture.prove_local import LocalProver
from basis_probe.model import deferred, shorter, sweep
from basis_probe.model.batches import Batch
from basis_probe.model.facts import Facts, facts_of
from basis_probe.model.network import prepared, recognise

Found = dict[str, bp.Certificate | Unproved]
ROWS = small.rows(10, D)


def proofs(model: nn.Module, x: Any, claims: dict[str, Group] | None = None) -> tuple[Found, Found]:
    """Of every claim, or of the claims that are given, what a copy proves and what the record."""
    subject = recognise(model)
    with prepared(model, None):
        batch: Batch = door._batch(subject, x)
        facts: Facts = facts_of(subject, batch)
        derivation = Derivation(facts)
        places = {
            name: (site, (claims or {}).get(name, derivation.symmetry(site).group))
            for name, site in facts.sites.items()
            if facts.vertex(site) is not None and (claims is None or name in claims)
        }
        places = {n: place for n, place in places.items() if not isinstance(place[1], Unknown)}
        few = door._same(batch, facts)
        both = (kind(model, few, facts, derivation) for kind in (CopyProver, LocalProver))
        copied, local = (
            dict(zip(places, prover.survey([*places.values()]), strict=True)) for prover in both
        )
    return copied, local


def require_same(copied: Found, local: Found) -> None:
    assert copied
    for name, ours in copied.items():
        theirs = local[name]
        assert type(ours) is type(theirs), (name, ours, theirs)
        if isinstance(ours, Unproved) or isinstance(theirs, Unproved):
            continue
        assert ours.holds == theirs.holds, (name, ours, theirs)
        assert math.isnan(ours.violation) == math.isnan(theirs.violation)
        if ours.holds:
            assert max(theirs.max_error, theirs.action_error) <= 1e-9
            assert not theirs.violation <= 1e-6
        else:
            assert theirs.max_error == pytest.approx(ours.max_error, rel=1e-6, abs=1e-9)


USUAL = ("GPT-2", "Qwen3-MoE", "DeepSeek-V3", "ViT")


def _parameters() -> list[Any]:
    return [
        pytest.param(family, id=family.name, marks=[] if family.name in USUAL else pytest.mark.slow)
        for family in families.FAMILIES
    ]


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("family", _parameters())
def test_record_and_copy_agree(family: Family) -> None:
    require_same(*proofs(family.make(0), family.example(1)))


@pytest.mark.parametrize("name", ["Llama", pytest.param("BERT", marks=pytest.mark.slow)])
def test_strangers_move_as_much(name: str) -> None:
    family = next(family for family in families.FAMILIES if family.name == name)
    model = family.make(0)
    if name == "BERT":
        # Where nothing is tied, a copy feels strangers at the same maps.
        model.cls.predictions.decoder.weight = nn.Parameter(
            model.cls.predictions.decoder.weight.detach().clone(), requires_grad=False
        )
    copied, local = proofs(model, family.example(1))
    for site, ours in copied.items():
        theirs = local[site]
        assert isinstance(ours, bp.Certificate) and isinstance(theirs, bp.Certificate)
        assert theirs.stranger == ours.stranger
        assert theirs.violation == pytest.approx(ours.violation, rel=1e-6, nan_ok=True)


@pytest.mark.slow
def test_claims_about_a_tensor_and_its_parts_are_proved_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone: list[object] = []
    honest = LocalProver._alone

    def watched(self: LocalProver, site: Any, group: Group) -> Any:
        alone.append(site)
        return honest(self, site, group)

    monkeypatch.setattr(LocalProver, "_alone", watched)
    family = next(family for family in families.FAMILIES if family.name == "DeepSeek-V3")
    found = bp.symmetries(family.make(0), family.example(1))
    parted = [one for one in found.values() if "parts are read one by one" in one.because]
    assert parted and all(one.certificate is not None for one in parted)
    assert not alone


@pytest.mark.parametrize("outputs", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("piece", [1, 30, 31, 2**24])
def test_a_product_is_the_same_whatever_part_of_the_matrix_is_cast_at_once(
    piece: int, dtype: torch.dtype, outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(11, 15).to(dtype)
    rows = torch.randn(4, weight.shape[1 - outputs], dtype=torch.float64)
    for height in (1, 2, 256):
        monkeypatch.setattr(sweep, "_PIECE", 2**24 if height < 256 else piece)
        monkeypatch.setattr(sweep, "_CACHED", piece)
        monkeypatch.setattr(sweep, "_HEIGHT", height)
        made = sweep._times(rows, weight.T if outputs == 0 else weight)
        whole = rows @ (weight.double().T if outputs == 0 else weight.double())
        torch.testing.assert_close(made, whole, rtol=1e-12, atol=1e-12)


AS_THEY_ARE = ("GPT-2", "Falcon", "Mixtral", "Qwen3-MoE", "Cohere")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in AS_THEY_ARE[:2] else pytest.mark.slow) for n in AS_THEY_ARE],
)
def test_large_matrices_are_used_as_they_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = next(family for family in families.FAMILIES if family.name == name)
    model, x = family.make(0), family.example(1)
    _, whole = proofs(model, x)
    monkeypatch.setattr(sweep, "LARGE", 0)
    monkeypatch.setattr(sweep, "_PIECE", 100)
    made: list[int] = []
    honest = deferred.after

    def after(value: Tensor, changes: Any) -> Tensor:
        # Where experts change places, as nothing but the proof about a router has it, the stack is.
        places = value.ndim == 3 and any(change.axis % 3 == 0 for change in changes)
        if value.ndim > 1 and changes and not places:
            made.append(value.numel())
        return honest(value, changes)

    monkeypatch.setattr(sweep, "after", after)
    _, pieces = proofs(model, x)
    # Of a matrix that is moved in part (a stack of queries, keys and values) the whole is made.
    assert not made
    for site, ours in whole.items():
        theirs = pieces[site]
        assert isinstance(ours, bp.Certificate) and isinstance(theirs, bp.Certificate)
        assert (theirs.holds, theirs.stranger) == (True, ours.stranger)
        assert theirs.violation == pytest.approx(ours.violation, rel=1e-9, nan_ok=True)


def generic(model: nn.Module, seed: int = 0) -> nn.Module:
    return families.generic(model, seed).double()


FALSE: dict[str, tuple[Callable[[], nn.Module], dict[str, Group]]] = {
    "rescaling through GELU": (
        lambda: nn.Sequential(nn.Linear(D, H), nn.GELU(), nn.Linear(H, 3)),
        {"0": G.PositiveMonomial(H)},
    ),
    "signs through ReLU": (
        lambda: nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, 3)),
        {"0": G.SignedPermutation(H), "1": G.PositiveMonomial(H)},
    ),
    "too small": (
        lambda: nn.Sequential(nn.Linear(D, H), nn.Linear(H, H), nn.ReLU(), nn.Linear(H, 3)),
        {"0": G.Permutation(H), "2": G.PositiveMonomial(H)},
    ),
    "turns of the outputs": (
        lambda: nn.Sequential(nn.Linear(D, H), nn.Tanh(), nn.Linear(H, 3)),
        {"2": G.Orthogonal(3), "1": G.SignedPermutation(H)},
    ),
}


@pytest.mark.parametrize("name", FALSE)
def test_false_claims_are_refuted_and_the_others_proved(name: str) -> None:
    make, claims = FALSE[name]
    copied, local = proofs(generic(make()), ROWS.double(), claims)
    require_same(copied, local)
    held = {
        site: isinstance(proof, bp.Certificate) and proof.holds for site, proof in local.items()
    }
    assert not all(held.values())


def test_no_model_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.FAMILIES[0].make(0)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was copied")

    monkeypatch.setattr(copy, "deepcopy", refuse)
    found = bp.symmetries(model, {"input_ids": torch.arange(5, 19).reshape(2, 7)})
    assert all(
        symmetry.certificate is not None and symmetry.certificate.holds
        for symmetry in found.values()
        if symmetry.privileged is not bp.Privileged.UNKNOWN
    )


def test_what_code_chooses_by_is_not_taken_for_granted() -> None:
    model = generic(small.MLP(nn.ReLU()))
    subject = recognise(model)
    with prepared(model, None):
        batch = door._batch(subject, ROWS.double())
        facts = facts_of(subject, batch)
        site = facts.sites["up"]
        prover = LocalProver(model, door._same(batch, facts), facts, Derivation(facts))
        # As if the code had read numbers there, and gone another way for others.
        prover.asked = frozenset({site.node})
        (found,) = prover.survey([(site, G.PositiveMonomial(H))])
    assert isinstance(found, Unproved)
    assert "chooses by changes with the weights" in str(found)


class Unseen(nn.Module):
    """A part of it runs where no call is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(D, H), nn.Linear(H, 3)

    def forward(self, x: Tensor) -> Tensor:
        outside = torch.from_numpy(np.tanh(self.up(x).detach().numpy()))
        return self.down(outside).relu()


def test_what_cannot_be_run_again_is_tried_on_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    model = generic(Unseen())
    small_one = bp.symmetries(model, ROWS.double())
    monkeypatch.setattr(door, "SMALL", 0)
    large_one = bp.symmetries(model, ROWS.double())
    proved = [name for name, symmetry in small_one.items() if symmetry.certificate is not None]
    assert proved
    for name in proved:
        assert large_one[name].certificate is None
        assert "what the model did cannot be done again" in large_one[name].unproved


def test_a_record_that_returns_something_else_proves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = generic(small.MLP(nn.ReLU()))
    honest = sweep.Sweep.own

    def other(self: sweep.Sweep, inputs: Any) -> list[Tensor]:
        return [1.001 * tensor for tensor in honest(self, inputs)]

    monkeypatch.setattr(sweep.Sweep, "own", other)
    monkeypatch.setattr(door, "SMALL", 0)
    said = bp.symmetries(model, ROWS.double())["up"].unproved
    assert "does not return what the model returns: they differ by 1.0e-03" in said


class Overwriting(nn.Module):
    """Fills memory part by part, through views, and then overwrites all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(D, H), nn.Linear(2 * H, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = x.new_empty(len(x), 2, H)
        both[:, 0].copy_(self.up(x).relu())
        both[:, 1] = self.up(x).relu() ** 3
        shown = both[:, 1]
        both.mul_(2.0)
        return self.down(both.flatten(1)) + shown.sum(-1, keepdim=True)


def test_overwritten_memory_is_run_again() -> None:
    model = generic(Overwriting())
    subject = recognise(model)
    with prepared(model, None):
        batch = door._batch(subject, ROWS.double())
        facts = facts_of(subject, batch)
        made = sweep.Sweep(facts.graph.trace, door.Slots(model, facts.graph.trace))
        (found,) = made.own([batch.inputs[:2]])
    torch.testing.assert_close(found, model(ROWS.double()[:2]), rtol=0, atol=0)


# --- fewer positions ------------------------------------------------------------------------------


def long(side: str | None) -> dict[str, Tensor]:
    """Texts of 40 tokens, the second one padded on one side."""
    ids = torch.randint(5, 50, (2, 30), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if side == "left":
        mask[1, :25] = 0
    elif side == "right":
        mask[1, 6:] = 0
    return {"input_ids": ids} if side is None else {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("GPT-2", None),
        ("Llama", "left"),
        pytest.param("Llama", "right", marks=pytest.mark.slow),
        pytest.param("GPT-2", "left", marks=pytest.mark.slow),
    ],
)
def test_few_positions_prove_what_all_prove(
    name: str, side: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = next(family for family in families.FAMILIES if family.name == name).make(0)
    lengths: list[int] = []
    honest = sweep.Sweep.own

    def own(self: sweep.Sweep, inputs: Any) -> list[Tensor]:
        lengths.append(inputs[0].shape[1])
        return honest(self, inputs)

    monkeypatch.setattr(sweep.Sweep, "own", own)
    copied, local = proofs(model, long(side))
    require_same(copied, local)
    # Those of all texts together are so many.
    assert lengths == [shorter.POSITIONS // 2]


def test_experts_are_given_as_many_positions_of_every_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = next(family for family in families.FAMILIES if family.name == "Mixtral").make(0)
    lengths: list[int] = []
    honest = shorter.shorter

    def cut(*given: Any) -> Any:
        few, trace = honest(*given)
        lengths.append(few.inputs.shape[1])
        return few, trace

    monkeypatch.setattr(prove_local, "shorter", cut)
    bp.symmetries(model, long(None))
    assert lengths == [shorter.POSITIONS]


class Pooled(nn.Module):
    """A stream that is returned behind a norm, and of which a head reads the first position."""

    def __init__(self, *, pool: bool) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(5, H), nn.LayerNorm(H)
        self.inner, self.up, self.down = nn.LayerNorm(H), nn.Linear(H, 9), nn.Linear(9, H)
        self.head = nn.Linear(H, H) if pool else None

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        x = self.norm(x + self.down(torch.relu(self.up(self.inner(x)))))
        return x if self.head is None else (x, torch.tanh(self.head(x[:, 0])))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("pool", [False, True])
def test_what_norms_with_equal_gains_take_is_felt_in_what_is_returned(
    pool: bool, trained: bool
) -> None:
    """Another order of the axes changes nothing beside it but by rounding."""
    torch.manual_seed(0)
    model = Pooled(pool=pool).eval()
    if trained:
        generic(model)
    x = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0)).to(model.embed.weight)
    found = bp.symmetries(model, x)["embed"]
    assert found.group == G.Trivial(H), found
    assert found.certificate is not None and found.certificate.holds
    assert found.certificate.violation > 1e-4


class Images(nn.Module):
    """Convolutions, a norm and a residual; the head reads means, or maps of one size."""

    def __init__(self, *, one_size: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, H, 3, stride=4, padding=1)
        self.norm = nn.BatchNorm2d(H)
        self.inner, self.outer = nn.Conv2d(H, 7, 3, padding=1), nn.Conv2d(7, H, 1)
        self.pool = nn.AvgPool2d(8) if one_size else nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(H * 36 if one_size else H, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = x + self.outer(torch.relu(self.inner(x)))
        return self.head(self.pool(x).flatten(1))


@pytest.mark.parametrize("one_size", [False, True])
def test_a_part_of_images_proves_what_whole_images_prove(
    one_size: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = generic(Images(one_size=one_size)).eval()
    images = torch.randn(2, 3, 200, 200, generator=torch.Generator().manual_seed(0)).double()
    sizes: list[tuple[int, ...]] = []
    honest = sweep.Sweep.own

    def own(self: sweep.Sweep, inputs: Any) -> list[Tensor]:
        sizes.append(tuple(inputs[0].shape))
        return honest(self, inputs)

    monkeypatch.setattr(sweep.Sweep, "own", own)
    found = bp.symmetries(model, images)
    # Where images stay whole, one of them is enough.
    assert set(sizes) == {(1, 3, 200, 200) if one_size else (2, 3, shorter.PIXELS, shorter.PIXELS)}
    monkeypatch.setattr(shorter, "PIXELS", 1000)
    wanted = bp.symmetries(model, images)
    assert found.keys() == wanted.keys()
    for name, symmetry in wanted.items():
        assert found[name].group == symmetry.group
        proof, other = found[name].certificate, symmetry.certificate
        assert (proof is None) == (other is None)
        assert proof is None or other is None or proof.holds == other.holds
    assert sum(symmetry.certificate is not None for symmetry in wanted.values()) > 3


def test_texts_stay_whole_where_the_model_takes_no_shorter_ones() -> None:
    class OneLength(nn.Module):
        """Has a vector for each of 30 positions, so that it knows one length only."""

        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(50, H), nn.Linear(H, 3)
            self.places = nn.Parameter(torch.zeros(30, H))

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.head((self.table(input_ids) + self.places).relu())

    model = generic(OneLength())
    found = bp.symmetries(model, {"input_ids": long(None)["input_ids"]})
    assert found["table"].certificate is not None and found["table"].certificate.holds


class Plain(nn.Module):
    """A norm without a gain behind a function of single features."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.site, self.down = nn.Linear(D, H), nn.Identity(), nn.Linear(H, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.site(nn.functional.rms_norm(torch.tanh(self.up(x)), (H,))))


@pytest.mark.parametrize("group", [G.Monomial(H), G.PositiveMonomial(H)], ids=str)
def test_what_acts_is_what_the_claim_says(group: Group) -> None:
    """Scales that are lost on the way to a norm are missed, whatever the outputs do."""
    torch.manual_seed(0)
    copied, local = proofs(Plain().double(), ROWS.double(), {"site": group})
    for found in (copied["site"], local["site"]):
        assert isinstance(found, Unproved) or not found.holds
