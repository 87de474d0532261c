"""Claims are proved on the model itself, false ones are refuted, twins compute the same."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import assets
import families
import pytest
import small_models as small
import torch
from families.building import SMALL, Row, from_row
from small_models import D, H
from torch import Tensor, nn

import basis_probe as bp
from basis_probe import groups as G
from basis_probe.algebra.groups import Unknown
from basis_probe.architecture.derive import Derivation
from basis_probe.architecture.prove import Unproved, largest_change
from basis_probe.architecture.prove_local import LocalProver
from basis_probe.architecture.symmetries import refuted

ROWS, IMAGES, IDS = small.rows(10, D), small.rows(3, 3, 8, 8), small.ids()


def generic(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 and evaluation mode; no gain is one, no bias zero, no statistic both."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn / math.sqrt(max(1, parameter[0].numel())))
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                drawn = torch.randn(buffer.shape, generator=generator)
                buffer.copy_(0.5 + drawn.abs() if name.endswith("var") else drawn)
    return model.double().eval()


def conv(rank: int, norm: type[nn.Module], pool: nn.Module) -> Callable[[], nn.Module]:
    """Convolutions around batch norm, ReLU and a pooling, in one, two or three dimensions."""
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    wide = 2**rank * 4
    return lambda: nn.Sequential(
        kind(3, 6, 3), norm(6), nn.ReLU(), pool, kind(6, 4, 2), nn.Flatten(), nn.Linear(wide, 2)
    )


def between(norm: Callable[[], nn.Module], after: nn.Module | None = None) -> nn.Module:
    layers = nn.Conv2d(3, 6, 3), norm(), after or nn.ReLU(), nn.Conv2d(6, 4, 3)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 2))


PAIRS = G.DirectSum((G.Permutation(3), G.Permutation(3)))
SCALED_PAIRS = G.DirectSum((G.PositiveMonomial(3), G.PositiveMonomial(3)))
# name -> the model, what it is given, {site: its group}
CLAIMS: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, G.Group]]] = {
    "group norm": (
        lambda: between(lambda: nn.GroupNorm(2, 6)), IMAGES,
        {"0": PAIRS, "1": SCALED_PAIRS, "2": SCALED_PAIRS},
    ),
    "group norm of one group": (
        lambda: between(lambda: nn.GroupNorm(1, 6), nn.GELU()), IMAGES,
        {"0": G.Permutation(6), "1": G.Permutation(6), "2": G.Permutation(6)},
    ),
    "group norm without a gain": (
        lambda: between(lambda: nn.GroupNorm(2, 6, affine=False)), IMAGES,
        {"0": PAIRS, "1": PAIRS, "2": PAIRS},
    ),
    "instance norm": (
        lambda: between(lambda: nn.InstanceNorm2d(6, affine=True)), IMAGES,
        {"0": G.SignedPermutation(6), "1": G.PositiveMonomial(6)},
    ),
    "instance norm without a gain": (
        lambda: between(lambda: nn.InstanceNorm2d(6), nn.Tanh()), IMAGES,
        {"0": G.SignedPermutation(6), "1": G.SignedPermutation(6)},
    ),
    "batch norm by the batch": (
        lambda: between(lambda: nn.BatchNorm2d(6, track_running_stats=False)), IMAGES,
        {"0": G.SignedPermutation(6), "1": G.PositiveMonomial(6)},
    ),
    "batch norm without a gain": (
        lambda: between(lambda: nn.BatchNorm2d(6, affine=False)), IMAGES,
        {"0": G.PositiveMonomial(6), "1": G.PositiveMonomial(6)},
    ),
    "one dimension": (
        conv(1, nn.BatchNorm1d, nn.MaxPool1d(2)), small.rows(3, 3, 8),
        {"0:in": G.Trivial(3), "0": G.Monomial(6), "3": G.PositiveMonomial(6)},
    ),
    "three dimensions": (
        conv(3, nn.BatchNorm3d, nn.AvgPool3d(2)), small.rows(2, 3, 8, 8, 8),
        {"0:in": G.Trivial(3), "0": G.Monomial(6), "3": G.PositiveMonomial(6)},
    ),
    "transposed convolution": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 2, 3)), IMAGES,
        {"0": G.PositiveMonomial(6), "1": G.PositiveMonomial(6), "2": G.Trivial(2)},
    ),
    "GLU module": (
        lambda: nn.Sequential(nn.Linear(D, 2 * H), nn.GLU(), nn.Linear(H, 3)), ROWS,
        {"1": G.Monomial(H)},
    ),
    "dropout, out of training": (
        lambda: nn.Sequential(nn.Linear(D, H), nn.Dropout(0.5), nn.Linear(H, 3)), ROWS,
        {"0": G.GeneralLinear(H), "1": G.GeneralLinear(H)},
    ),
    "embedding and logits": (
        lambda: nn.Sequential(nn.Embedding(20, D), nn.Linear(D, H), nn.GELU(), nn.Linear(H, 9)),
        IDS,
        {"0": G.GeneralLinear(D), "1": G.Permutation(H), "3": G.Trivial(9)},
    ),
}  # fmt: skip


def require_proof(symmetry: bp.Symmetry) -> None:
    """A certificate that holds, with strangers that are noticed where there are any."""
    made = symmetry.certificate
    assert made is not None and made.holds, symmetry
    assert max(made.max_error, made.action_error) <= 1e-9
    if isinstance(symmetry.group, G.GeneralLinear):
        assert math.isnan(made.violation)
    else:
        assert made.violation > 1000 * max(made.max_error, 1e-9)


@pytest.mark.sample(default=6)
@pytest.mark.parametrize("name", CLAIMS)
def test_claims_are_proved_on_generic_weights(name: str) -> None:
    make, x, expected = CLAIMS[name]
    model = generic(make())
    found = bp.symmetries(model, x)
    for site, group in expected.items():
        assert found[site].group == group, found[site]
        require_proof(found[site])
    # What is claimed elsewhere is proved too.
    for symmetry in found.values():
        if symmetry.privileged is not bp.Privileged.UNKNOWN:
            require_proof(symmetry)


def test_a_shift_that_the_next_bias_absorbs_is_said() -> None:
    model = generic(nn.Sequential(nn.Linear(D, H), nn.Sigmoid(), nn.Linear(H, 3)))
    found = bp.symmetries(model, ROWS, certificates=False)["0"]
    assert found.group == G.Permutation(H)
    assert "so signs are free too if the next bias absorbs the constant" in found.because


# --- what is refuted, and what cannot be tried ----------------------------------------------------


def test_a_claim_that_is_too_large_becomes_unknown_with_both_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = generic(nn.Sequential(nn.Linear(D, H), nn.GELU(), nn.Linear(H, 3)))
    honest = Derivation.symmetry

    def boastful(self: Derivation, site: object) -> bp.Symmetry:
        made = honest(self, site)  # pyright: ignore
        if made.group != G.Permutation(H):
            return made
        group = G.PositiveMonomial(H)
        return bp.Symmetry(group, group.privileged, "It is read by relu.", "hearsay")

    monkeypatch.setattr(Derivation, "symmetry", boastful)
    found = bp.symmetries(model, ROWS)
    for site in ("0", "1"):
        said = found[site]
        assert said.group == G.Unknown(H) and said.privileged is bp.Privileged.UNKNOWN
        assert said.certificate is not None and not said.certificate.holds
        assert max(said.certificate.max_error, said.certificate.action_error) > 1e-3
        assert "positive-monomial was derived and is not true of this model" in said.because
        assert f"{said.certificate.max_error:.1e}" in said.because
        assert f"{said.certificate.violation:.1e}" in said.because
    require_proof(found["2"])


def test_a_claim_that_is_too_small_does_not_hold_either(monkeypatch: pytest.MonkeyPatch) -> None:
    model = generic(nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, 3)))
    group = G.Permutation(H)
    claim = bp.Symmetry(group, group.privileged, "Bends.", "hearsay")
    monkeypatch.setattr(Derivation, "symmetry", lambda *_: claim)
    made = bp.certify(model, "1", ROWS)
    # A rescaling is a stranger to permutations, and ReLU does not mind it.
    assert not made.holds and made.max_error <= 1e-9 and made.stranger == "rescaling"
    assert refuted(claim, made).group == G.Unknown(H)


class Bound(nn.Module):
    """Its second layer runs as a function of its own, which no copy of the model takes along."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(D, H), nn.Linear(H, H), nn.Linear(H, 3)
        theirs = self.b
        self.run = lambda x: theirs(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.run(self.a(x).relu()).tanh())


def test_a_forward_that_is_bound_to_the_model_is_proved_without_a_copy() -> None:
    found = bp.symmetries(generic(Bound()), ROWS)
    for site in ("a", "b", "c"):
        require_proof(found[site])


def test_a_copy_that_uses_the_weights_of_the_original_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise Unproved("not this time")

    monkeypatch.setattr(LocalProver, "__init__", refuse)
    found = bp.symmetries(generic(Bound()), ROWS)
    assert "its forward is bound to the original" in found["a"].unproved
    assert found["a"].certificate is None
    require_proof(found["c"])


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(D, H), nn.Linear(H, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x).relu()
        return self.down(hidden) + torch.rand(len(x), 3, dtype=x.dtype)


def test_a_model_that_is_not_deterministic_is_noticed() -> None:
    found = bp.symmetries(generic(Noisy()), ROWS)
    assert "not deterministic: the same input gave outputs that differ by" in found["up"].unproved
    with pytest.raises(ValueError, match="up cannot be certified: the model is not deterministic"):
        bp.certify(generic(Noisy()), "up", ROWS)


def test_nothing_is_certified_where_nothing_is_claimed() -> None:
    model = generic(small.Through(lambda x: x.cumsum(-1)))
    with pytest.raises(ValueError, match=r"nothing is claimed of up: .*no rule covers"):
        bp.certify(model, "up", small.rows(H, D))
    with pytest.raises(ValueError, match=r"nothing is claimed of up"):
        bp.reparametrize(model, "up", torch.eye(H), example_input=small.rows(H, D))


def test_bad_requests_are_refused() -> None:
    model = generic(small.MLP(nn.ReLU()))
    with pytest.raises(ValueError, match="elements=0: give a whole number from 1 to 1000"):
        bp.certify(model, "up", ROWS, elements=0)
    with pytest.raises(bp.SiteError, match="up"):
        bp.certify(model, "upp", ROWS)
    with pytest.raises(ValueError, match="stands for 2 sites: give the name of one"):
        bp.reparametrize(model, "down*", torch.eye(H), example_input=ROWS)


@pytest.mark.parametrize(
    ("element", "message"),
    [
        (torch.diag(torch.tensor([-1.0] + [1.0] * (H - 1))), r"row 0 is reversed.*2 off where"),
        (torch.eye(H) + 0.25 * torch.eye(H).roll(1, 0), "second entry of 0.25.*0.25 off where"),
        (torch.ones(H, H), "the matrix is singular"),
        (torch.eye(H - 1), rf"shape \({H - 1}, {H - 1}\).*\[{H}, {H}\]"),
        (torch.zeros(H, H), "row 0 is zero"),
        (torch.full((H, H), math.nan), r"entry \[0, 0\] is nan"),
    ],
    ids=["reversed", "mixing", "singular", "size", "zero", "nan"],
)
def test_what_is_no_element_is_refused_and_by_how_much(element: Tensor, message: str) -> None:
    model = generic(small.MLP(nn.ReLU()))
    with pytest.raises(ValueError, match=f"the element cannot act at up.*{message}"):
        bp.reparametrize(model, "up", element, example_input=ROWS)


def test_a_neighbour_that_cannot_change_is_named() -> None:
    model = generic(between(lambda: nn.BatchNorm2d(6, affine=False)))
    # Its variance would have to be negative to make up for the epsilon.
    model[1].eps = 1.0
    with pytest.raises(ValueError, match="0 cannot be changed: 1 has no gain that could change"):
        bp.reparametrize(model, "0", 0.01 * torch.eye(6), example_input=IMAGES)


def test_weights_that_hold_no_numbers_are_refused() -> None:
    class Packed(nn.Parameter):
        """Numbers of a kind that is not known."""

    quantised = nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, 3)).eval()
    quantised[2].register_parameter("packed", Packed(torch.zeros(3), requires_grad=False))
    said = bp.symmetries(quantised, ROWS.float())["0"].unproved
    assert "2.packed is quantised or packed (Packed, torch.float32)" in said
    with pytest.raises(ValueError, match="quantised or packed"):
        bp.reparametrize(quantised, "0", torch.eye(H), example_input=ROWS.float())
    with pytest.raises(ValueError, match="meta device"), torch.device("meta"):
        empty = nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, 3)).eval()
        bp.reparametrize(empty, "0", torch.eye(H), example_input=torch.empty(2, D))


# --- twins ----------------------------------------------------------------------------------------


def at(model: nn.Module, site: str, x: Tensor) -> Tensor:
    """What a module returns, by a hook of our own."""
    found: list[Tensor] = []
    with (
        torch.no_grad(),
        model.get_submodule(site).register_forward_hook(
            lambda _, __, out: found.append(out.detach().clone())
        ),
    ):
        model(x)
    return found[0]


TWINS: dict[str, tuple[Callable[[], nn.Module], Tensor, str, int]] = {
    "MLP": (lambda: small.MLP(nn.ReLU()), ROWS, "up", -1),
    "gate": (lambda: small.Gated(nn.SiLU()), ROWS, "up", -1),
    "one dimension": (*CLAIMS["one dimension"][:2], "0", 1),
    "batch norm": (small.Stage, IMAGES, "norm0", 1),
    "three dimensions": (*CLAIMS["three dimensions"][:2], "2", 1),
    "depthwise": (small.Depthwise, IMAGES, "wide", 1),
    "group norm": (*CLAIMS["group norm"][:2], "1", 1),
    "RMSNorm": (lambda: small.Transformer(nn.RMSNorm), IDS, "blocks.1", -1),
    "RMSNorm, tied": (lambda: small.Transformer(nn.RMSNorm, tied=True), IDS, "blocks.1", -1),
    "LayerNorm": (lambda: small.Transformer(nn.LayerNorm), IDS, "blocks.0", -1),
    "post-norm": (lambda: small.Transformer(nn.LayerNorm, "post"), IDS, "blocks.0", -1),
    "values": (lambda: small.Transformer(nn.RMSNorm), IDS, "blocks.0.attn.v", -1),
    "queries": (lambda: small.Transformer(nn.RMSNorm), IDS, "blocks.0.attn.q", -1),
}


@pytest.mark.sample(default=3)
@pytest.mark.parametrize("name", TWINS)
def test_a_twin_computes_the_same_with_other_activations(name: str) -> None:
    make, x, site, axis = TWINS[name]
    model = generic(make())
    before = copy.deepcopy(model.state_dict())
    group = bp.symmetries(model, x, certificates=False)[site].group
    element = group.sample(torch.Generator().manual_seed(1))
    twin = bp.reparametrize(model, site, element, example_input=x)
    with torch.no_grad():
        ours, theirs = model(x), twin(x)
    assert type(twin) is type(model)
    assert float((ours - theirs).abs().max()) <= 1e-9 * float(ours.abs().max())
    old, new = at(model, site, x), at(twin, site, x)
    wanted = (old.movedim(axis, -1) @ element.T).movedim(-1, axis)
    torch.testing.assert_close(new, wanted, rtol=1e-9, atol=1e-9)
    assert float((new - old).abs().max()) > 1e-3
    after = model.state_dict()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


@pytest.mark.sample(default=1)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["GPT-2", "Llama", "BERT"])
@pytest.mark.parametrize("bridged", [False, True])
def test_twins_of_transformers(name: str, bridged: bool) -> None:
    family = next(family for family in families.HUGGING_FACE if family.name == name)
    model = families.bridged(family, 0) if bridged else family.make(0)
    batch = families.bridged_example(family, 0) if bridged else family.example(0)
    found = bp.symmetries(model, batch, certificates=False)
    streams = ["blocks.1.hook_resid_pre"] if bridged else [
        site for site in found if found[site].group.dim == families.D
        and site in ("transformer.h.0", "model.layers.0", "bert.encoder.layer.0")
    ]  # fmt: skip
    (site,) = streams
    element = found[site].group.sample(torch.Generator().manual_seed(2))
    twin = bp.reparametrize(model, site, element, example_input=batch)
    with torch.no_grad():
        ours, theirs = (
            out if isinstance(out, Tensor) else out.logits
            for out in (model(**batch), twin(**batch))
        )
    assert float((ours - theirs).abs().max()) <= 1e-4 * float(ours.abs().max())


# --- real models ----------------------------------------------------------------------------------


def require_all(found: dict[str, bp.Symmetry]) -> None:
    """Every claim is proved, and many are made."""
    claims = [s for s in found.values() if s.privileged is not bp.Privileged.UNKNOWN]
    assert len(claims) > 8
    for symmetry in claims:
        require_proof(symmetry)


@pytest.mark.slow
def test_every_claim_about_small_trained_networks_is_proved() -> None:
    images, _ = assets.cifar(2, colours=assets.RESNET_COLOURS)
    require_all(bp.symmetries(assets.small_cnn("relu"), images))
    require_all(bp.symmetries(assets.small_cnn("sigmoid"), images))
    require_all(bp.symmetries(assets.llama(), {"input_ids": assets.story_tokens(2, length=12)}))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_claim_about_larger_trained_networks_is_proved() -> None:
    images, _ = assets.cifar(2, colours=assets.RESNET_COLOURS)
    require_all(bp.symmetries(assets.resnet(20), images))
    require_all(bp.symmetries(assets.resnet(32), images))
    require_all(bp.symmetries(assets.llama_bridge(), assets.story_tokens(2, length=12)))
    pixels = 50 * torch.randn(2, 3, 227, 227, generator=torch.Generator().manual_seed(0))
    require_all(bp.symmetries(assets.squeezenet(), pixels))
    words = assets.minilm_tokenizer()(["A man is eating food."], return_tensors="pt")
    require_all(bp.symmetries(assets.minilm(), dict(words)))


@pytest.mark.slow
def test_a_language_model_whose_residual_stream_is_turned_computes_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    def normed(self: LlamaRMSNorm, x: Tensor) -> Tensor:
        """As the original, but in the precision that it is given."""
        size = x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon
        return self.weight * x * torch.rsqrt(size)

    model, ids = assets.llama(), assets.story_tokens(2, length=48)
    turn = G.Orthogonal(64).sample(torch.Generator().manual_seed(0))
    twin = bp.reparametrize(model, "model.layers.2", turn, example_input={"input_ids": ids})
    with torch.no_grad():
        ours, theirs = model(ids).logits, twin(ids).logits
    assert float((ours - theirs).abs().max()) <= 1e-4 * float(ours.abs().max())
    monkeypatch.setattr(LlamaRMSNorm, "forward", normed)
    exact = assets.llama().double()
    twin = bp.reparametrize(exact, "model.layers.2", turn, example_input={"input_ids": ids})
    with torch.no_grad():
        ours, theirs = (m(ids, output_hidden_states=True) for m in (exact, twin))
    assert float((ours.logits - theirs.logits).abs().max()) <= 1e-9 * float(ours.logits.abs().max())
    for before, after in zip(ours.hidden_states[:-1], theirs.hidden_states[:-1], strict=True):
        torch.testing.assert_close(after, before @ turn.T, rtol=1e-9, atol=1e-9)


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("built", ["DiffLlamaForCausalLM", "MiniMaxForCausalLM"])
def test_what_cannot_act_on_a_model_is_not_claimed_of_it(built: str) -> None:
    """What two heads write is normed together, or bent before it is parted: no rule knows that."""
    family = from_row(built, Row(built, {}), SMALL)
    found = bp.symmetries(family.make(0), family.example(0))
    claims = {name: claim for name, claim in found.items() if not isinstance(claim.group, Unknown)}
    assert len(claims) > 40
    for name, claim in claims.items():
        assert claim.certificate is not None and claim.certificate.holds, (name, claim.unproved)
    assert any("was derived and is not true" in claim.because for claim in found.values())


@pytest.mark.parametrize("lost", [None, math.nan, math.inf, -math.inf])
def test_a_change_is_that_of_the_finite_numbers(lost: float | None) -> None:
    before = torch.tensor([2.0, -4.0, 1.0, 3.0], dtype=torch.float64)
    after = before + torch.tensor([0.0, 0.5, -1.0, 0.25], dtype=torch.float64)
    if lost is not None:
        before[3], after[3] = lost, lost
    assert largest_change([before], [after]) == 0.25
    assert largest_change([before], [after + 1.0]) == 0.375
    after[3 if lost is None else 0] = math.nan
    assert largest_change([before], [after]) == math.inf
    assert largest_change([torch.zeros(2)], [torch.zeros(2)]) == 0.0
    assert largest_change([torch.zeros(2)], [torch.ones(2)]) == math.inf
