"""Models whose weights are integers that are made real numbers as they run."""

from __future__ import annotations

import copy
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import families
import pytest
import torch
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.algebra.groups import Blocks, Unknown
from basis_probe.model.quantised import holders

pytestmark = pytest.mark.filterwarnings("ignore::basis_probe.MisleadingNull")


class _Int8(nn.Module):
    """Whole numbers with one scale for every output."""

    qweight: Any
    scales: Any
    bias: Any

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.register_buffer("scales", scales := weight.abs().amax(1, keepdim=True) / 127)
        self.register_buffer("qweight", (weight / scales).round().to(torch.int8))
        bias: Any = linear.bias
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def real(self) -> Tensor:
        return self.qweight.to(self.scales.dtype) * self.scales

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.real(), self.bias)


class _Product(_Int8):
    """As a product, with integers that are a parameter which is not trained."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        integers = self.qweight
        del self.qweight
        self.qweight = nn.Parameter(integers, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.matmul(x, self.real().t())
        return out if self.bias is None else out + self.bias


class _After(_Int8):
    """Scaled behind the product."""

    def forward(self, x: Tensor) -> Tensor:
        out = nn.functional.linear(x, self.qweight.to(x.dtype)) * self.scales.flatten()
        return out if self.bias is None else out + self.bias


class _Held(_Int8):
    """Made real once, and held."""

    cached: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "cached"):
            self.cached = self.real()
        return nn.functional.linear(x, self.cached, self.bias)


class _Packed(nn.Module):
    """Four bits for a number, eight in a word, with scales and zeros for groups of inputs."""

    qweight: Any
    qzeros: Any
    shifts: Any
    scales: Any
    bias: Any

    def __init__(self, linear: nn.Linear, group: int = 2) -> None:
        super().__init__()
        weight = linear.weight.detach().T
        (inputs, outputs), self.group = weight.shape, group
        parts = weight.reshape(inputs // group, group, outputs)
        low, high = parts.amin(1), parts.amax(1)
        scales = (high - low).clamp_min(1e-6) / 15
        zeros = (-low / scales).round().clamp(0, 15)
        codes = (parts / scales[:, None] + zeros[:, None]).round().clamp(0, 15).to(torch.int32)
        self.register_buffer("shifts", torch.arange(0, 32, 4, dtype=torch.int32))
        flat = codes.reshape(inputs, outputs)
        self.rest = -inputs % 8
        flat = torch.cat([flat, flat.new_zeros(self.rest, outputs)])
        words = torch.zeros(len(flat) // 8, outputs, dtype=torch.int32)
        for place in range(8):
            words |= flat[place::8] << (4 * place)
        self.register_buffer("qweight", words)
        self.register_buffer("qzeros", zeros.to(torch.int32))
        self.register_buffer("scales", scales)
        bias: Any = linear.bias
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def real(self) -> Tensor:
        codes = (self.qweight[:, None, :] >> self.shifts[None, :, None]) & 15
        codes = codes.reshape(-1, codes.shape[-1])
        codes = codes[: len(codes) - self.rest]
        zeros = self.qzeros.repeat_interleave(self.group, 0)
        scales = self.scales.repeat_interleave(self.group, 0)
        return ((codes - zeros).to(scales.dtype) * scales).t()

    def forward(self, x: Tensor) -> Tensor:
        out = torch.matmul(x, self.real().t())
        return out if self.bias is None else out + self.bias


class _Flat(_Int8):
    """All numbers in one row."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.form, self.qweight = self.qweight.shape, self.qweight.flatten()

    def real(self) -> Tensor:
        return self.qweight.view(self.form).to(self.scales.dtype) * self.scales


class _Codes(_Int8):
    """Numbers of a small table, picked by bytes."""

    table: Any

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.register_buffer(
            "table", torch.linspace(-1, 1, 256).sign() * torch.linspace(-1, 1, 256) ** 2
        )
        scaled = linear.weight.detach() / (127 * self.scales)
        codes = (scaled[..., None] - self.table).abs().argmin(-1)
        del self.qweight
        self.register_buffer("qweight", codes.to(torch.uint8))

    def real(self) -> Tensor:
        return self.table[self.qweight.to(torch.int32)] * self.scales * 127


KINDS = [_Int8, _Product, _After, _Held, _Packed, _Flat, _Codes]


def _replaced(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    model = copy.deepcopy(model)
    for module in [*model.modules()]:
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, make(child))
    return model.eval()


def _real(model: nn.Module) -> nn.Module:
    """The same model in floating point."""
    model = copy.deepcopy(model)
    for module in [*model.modules()]:
        for name, child in module.named_children():
            if isinstance(child, (_Int8, _Packed)):
                weight = child.real().detach()
                linear = nn.Linear(weight.shape[1], weight.shape[0], bias=child.bias is not None)
                linear.weight = nn.Parameter(weight.contiguous())
                if child.bias is not None:
                    linear.bias = nn.Parameter(child.bias.clone())
                setattr(module, name, linear)
    return model.eval()


def _small() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 10), nn.GELU(), nn.Linear(10, 3)]
    return nn.Sequential(*layers).eval(), torch.randn(5, 6)


def _llama() -> tuple[nn.Module, Any]:
    family = next(family for family in families.HUGGING_FACE if family.name == "Llama")
    return family.make(0), family.example(0)


def _same_claims(
    found: Mapping[str, bp.Symmetry], expected: Mapping[str, bp.Symmetry], *, exactly: bool = True
) -> int:
    proofs = 0
    for name in found.keys() & expected.keys():
        claim, wanted = found[name], expected[name]
        if claim.group != wanted.group:
            # Of routers something is claimed only where a copy of the model proves it.
            assert isinstance(claim.group, Unknown) and "experts" in claim.because, name
            continue
        assert (claim.certificate is None) == (wanted.certificate is None), claim.unproved
        if claim.certificate is not None and wanted.certificate is not None:
            proofs += claim.certificate.holds
            assert claim.certificate.holds == wanted.certificate.holds
            if exactly:
                assert claim.certificate.violation == pytest.approx(
                    wanted.certificate.violation, rel=1e-3, nan_ok=True
                )
    return proofs


@pytest.mark.sample(default=3)
@pytest.mark.parametrize("make", [_small, _llama])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not _After])
def test_integers_have_the_groups_and_proofs_of_the_real_numbers_they_stand_for(
    kind: Any, make: Any
) -> None:
    model, example = make()
    quantised = _replaced(model, kind)
    before = {name: value.clone() for name, value in quantised.state_dict().items()}
    found = bp.symmetries(quantised, example)
    # A product and a sum feel a stranger one after the other, a linear map at once.
    exactly = kind not in (_Product, _Packed)
    expected = bp.symmetries(_real(quantised), example)
    assert _same_claims(found, expected, exactly=exactly) > 5
    noted = [claim for claim in found.values() if "could not hold the change" in claim.because]
    assert noted and all("are quantised" in claim.because for claim in noted)
    assert {*before} == {*quantised.state_dict()}
    assert all(torch.equal(before[name], now) for name, now in quantised.state_dict().items())


LOOK_AT_WEIGHTS = {"T5 encoder", "T5 encoder, gated", "T5 encoder, no head", "Mamba"}
"""Families that read `weight` of their linear maps, which integers do not have."""


@pytest.mark.slow
@pytest.mark.parametrize("family", families.HUGGING_FACE, ids=lambda family: family.name)
def test_families_have_the_groups_and_proofs_of_what_their_integers_stand_for(family: Any) -> None:
    quantised = _replaced(family.make(0), _Int8)
    if not holders(quantised):
        assert not any(type(module) is nn.Linear for module in quantised.modules())
        return
    if family.name in LOOK_AT_WEIGHTS:
        with pytest.raises(bp.DataError, match="no attribute 'weight'"):
            bp.symmetries(quantised, family.example(0))
        return
    found = bp.symmetries(quantised, family.example(0))
    _same_claims(found, bp.symmetries(_real(quantised), family.example(0)))


def test_scales_behind_a_product_are_weights_too() -> None:
    model, example = _small()
    found = bp.symmetries(_replaced(model, _After), example)
    expected = bp.symmetries(model, example)
    for name in ("0", "1", "2", "3"):
        assert found[name].group == expected[name].group
        proof = found[name].certificate
        assert proof is not None and proof.holds


@pytest.mark.slow
def test_what_integers_refute_is_not_claimed() -> None:
    """Heads that a norm of each tells apart keep their places, though no copy can say so."""
    family = next(f for f in families.HUGGING_FACE if f.name == "Cohere, normed queries")
    found = bp.symmetries(_replaced(family.make(0), _Int8), family.example(0))
    claim = found["model.layers.0.self_attn.v_proj"]
    assert isinstance(claim.group, Blocks) and claim.group.order == "kept"
    assert claim.certificate is not None and claim.certificate.holds


def test_a_model_in_floating_point_is_not_noted() -> None:
    model, example = _small()
    assert not holders(model)
    assert not any("quantised" in claim.because for claim in bp.symmetries(model, example).values())


def test_integers_that_are_off_loaded_are_proved(tmp_path: pathlib.Path) -> None:
    from accelerate import disk_offload

    model, example = _small()
    quantised = _replaced(model, _Int8)
    expected = bp.symmetries(quantised, example)
    cpu: Any = "cpu"
    disk_offload(quantised, str(tmp_path), execution_device=cpu, offload_buffers=True)
    assert any(buffer.is_meta for buffer in quantised.buffers())
    assert _same_claims(bp.symmetries(quantised, example), expected) > 5


def test_a_probe_says_the_same_of_integers_and_of_what_they_stand_for() -> None:
    model, _ = _small()
    quantised = _replaced(model, _Int8)
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(200, 6, generator=generator) for _ in range(3)]
    reports = [bp.probe(one, data, progress=False) for one in (quantised, _real(quantised))]
    assert [site.site for site in reports[0]] == [site.site for site in reports[1]]
    for site, other in zip(*reports, strict=True):
        assert site.symmetry.group == other.symmetry.group
        assert site.verdict.outcome is other.verdict.outcome
        assert site.null == other.null
        for name, score in site.scores.items():
            assert score.effect == pytest.approx(other.scores[name].effect, rel=1e-4, nan_ok=True)


# --- tables -------------------------------------------------------------------------------------


class _Rows(nn.Module):
    """A table of whole numbers, made real in one of several ways."""

    q: Tensor
    scales: Tensor
    codes: Tensor

    def __init__(self, embedding: nn.Embedding, way: str) -> None:
        super().__init__()
        weight, self.way = embedding.weight.detach(), way
        self.register_buffer("scales", weight.abs().amax(1, keepdim=True) / 127)
        whole = (weight / self.scales).round().to(torch.int8)
        if way == "two in a byte":
            whole = (whole.div(16, rounding_mode="floor") + 8).to(torch.uint8)
            whole = whole[:, ::2] | whole[:, 1::2] << 4
        if way == "codes":
            whole = (whole.to(torch.int16) + 128).to(torch.uint8)
        self.register_buffer("codes", torch.linspace(-1, 1, 256) ** 3)
        self.register_buffer("q", whole)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.way == "the whole table":
            return nn.functional.embedding(tokens, self.q * self.scales)
        if self.way == "rows by a function":
            rows = nn.functional.embedding(tokens, self.q)
            return rows.to(self.scales.dtype) * nn.functional.embedding(tokens, self.scales)
        if self.way == "codes":
            return self.codes[self.q[tokens].long()] * self.scales[tokens]
        rows = self.q[tokens]
        if self.way == "two in a byte":
            rows = torch.stack([rows & 15, rows >> 4], -1).flatten(-2).to(torch.int8) - 8
        return rows.to(self.scales.dtype) * self.scales[tokens.long()]


class _Reader(nn.Module):
    """Tokens, a norm, and a map."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.norm, self.last = nn.RMSNorm(6), nn.Linear(6, 5)
        self.table: Any = table

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(self.norm(self.table(tokens)))


WAYS = ["the whole table", "rows", "rows by a function", "two in a byte", "codes"]


@pytest.mark.parametrize("way", WAYS)
def test_rows_that_are_picked_before_they_are_made_real_are_a_table_of_weights(way: str) -> None:
    torch.manual_seed(0)
    model, tokens = _Reader(nn.Embedding(23, 6)).eval(), torch.randint(23, (4, 3))
    quantised = copy.deepcopy(model)
    quantised.table = _Rows(model.table, way)
    real = copy.deepcopy(model)
    with torch.no_grad():
        real.table.weight.copy_(quantised.table(torch.arange(23)))
    found, expected = bp.symmetries(quantised, tokens), bp.symmetries(real, tokens)
    assert found["table"].group == bp.groups.Orthogonal(6)
    assert "could not hold the change" in found["table"].because
    assert _same_claims(found, expected) == len(expected)


class _WithPositions(_Rows):
    """What stands for positions is added in the same module."""

    def __init__(self, embedding: nn.Embedding, way: str) -> None:
        super().__init__(embedding, way)
        self.positions = nn.Embedding(8, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[-1])
        return super().forward(tokens) + self.positions(places)


@pytest.mark.parametrize("way", WAYS)
def test_tables_of_positions_stay_beside_tables_of_integers(way: str) -> None:
    torch.manual_seed(0)
    model, tokens = _Reader(nn.Embedding(23, 6)).eval(), torch.randint(23, (4, 3))
    model.table = _WithPositions(model.table, way)
    claim = bp.symmetries(model, tokens)["table"]
    assert claim.group == bp.groups.Orthogonal(6)
    assert claim.certificate is not None and claim.certificate.holds


class _Picked(nn.Module):
    """Rows of real numbers, of which whole numbers say which count."""

    keeps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(23, 6))
        self.register_buffer("keeps", (torch.arange(138).view(23, 6) % 3 > 0).to(torch.int8))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.weight[tokens] * self.keeps[tokens]


class _Onehot(nn.Module):
    """Rows of zeros and ones."""

    ones: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ones", torch.eye(23, dtype=torch.int8)[:, :6])

    def forward(self, tokens: Tensor) -> Tensor:
        return self.ones[tokens].float()


@pytest.mark.parametrize("make", [_Picked, _Onehot])
def test_rows_that_say_what_counts_are_no_table_of_weights(make: Any) -> None:
    torch.manual_seed(0)
    found = bp.symmetries(_Reader(make()).eval(), torch.randint(23, (4, 3)))
    assert not any("could not hold the change" in claim.because for claim in found.values())
    assert found["table"].group != bp.groups.Orthogonal(6)


# --- what is not followed -------------------------------------------------------------------------


class _Rounding(_Int8):
    """What it reads is rounded, too."""

    def forward(self, x: Tensor) -> Tensor:
        size = x.abs().amax(-1, keepdim=True) / 127
        product = (x / size).round().to(torch.int32) @ self.qweight.t().to(torch.int32)
        out = product.to(x.dtype) * size * self.scales.flatten()
        return out if self.bias is None else out + self.bias


def _dynamic(model: nn.Module) -> nn.Module:
    import torch.ao.quantization as quantization

    made: Any = quantization
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return made.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["rounds what it reads", "torch.ao.quantization"])
def test_what_is_rounded_on_the_way_is_unknown_and_the_layer_is_named(how: str) -> None:
    model, example = _small()
    quantised = _dynamic(model) if how.startswith("torch") else _replaced(model, _Rounding)
    found = bp.symmetries(quantised, example)
    for name, layers in {"1": "02", "3": "24"}.items():
        claim = found[name]
        assert isinstance(claim.group, Unknown)
        assert any(f"are quantised: {layer} (" in claim.because for layer in layers)
    report = bp.probe(quantised, [example.repeat(40, 1)], sites=["1", "3"], progress=False)
    assert any("are quantised" in site.symmetry.because for site in report)


class _Masked(nn.Module):
    """A weight of which whole numbers say what counts."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 6))
        self.register_buffer("mask", (torch.arange(48).reshape(8, 6) % 3 > 0).to(torch.int8))
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(nn.functional.linear(x, self.weight * self.mask)))


class _Sums(nn.Module):
    """A matrix of zeros and ones that says what is added to what."""

    adds: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("adds", (torch.arange(48).reshape(8, 6) % 3 > 0).to(torch.uint8))
        self.first, self.last = nn.Linear(6, 6), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.linear(self.first(x), self.adds.to(x.dtype)))


class _Positions(nn.Module):
    """A table of which rows are picked by whole numbers that the model holds."""

    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 6))
        self.register_buffer("places", torch.arange(8, dtype=torch.int32))
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(nn.functional.linear(x, self.table[self.places])))


@pytest.mark.parametrize("make", [_Masked, _Sums, _Positions])
def test_integers_that_say_which_numbers_count_are_no_weights(make: Any) -> None:
    torch.manual_seed(0)
    found = bp.symmetries(make().eval(), torch.randn(4, 6))
    assert not any("could not hold the change" in claim.because for claim in found.values())
    if make is _Masked:
        # A neuron takes another's place only where it reads the same inputs.
        assert not any(
            claim.group.name == "positive monomial" and claim.certificate is not None
            for claim in found.values()
        )


def test_integers_are_not_changed_into_others() -> None:
    model, example = _small()
    quantised = _replaced(model, _Int8)
    with pytest.raises(ValueError, match="qweight holds integers, which could not hold the change"):
        bp.reparametrize(quantised, "1", torch.eye(8), example_input=example)


class _Nearest(nn.Module):
    """Integers that follow from the input pick numbers of a table, one for each of them."""

    levels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("levels", torch.linspace(-1, 1, 16) ** 3)
        self.scale = nn.Parameter(torch.rand(4, 3, 6))
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        codes = (self.first(x) * 4 + 8).clamp(0, 15).long()
        return self.last(self.levels[codes] * self.scale[: len(x)])


def test_numbers_that_the_input_picks_from_a_row_are_not_understood_and_do_no_harm() -> None:
    torch.manual_seed(0)
    found = bp.symmetries(_Nearest().eval(), torch.randn(4, 3, 6))
    assert isinstance(found["last:in"].group, Unknown)
