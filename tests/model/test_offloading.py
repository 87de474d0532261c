"""Models whose weights lie elsewhere and are fetched as they run."""

from __future__ import annotations

import copy
import gc
import pathlib
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import families
import pytest
import torch
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.model.network import fingerprint, prepared
from basis_probe.model.offloaded import Home, Stored, at_hand, fetched, hooks
from basis_probe.model.state import kept

pytestmark = pytest.mark.filterwarnings("ignore::basis_probe.MisleadingNull")
CPU: Any = "cpu"
FAMILY = next(family for family in families.HUGGING_FACE if family.name == "Llama")


def _to_cpu(model: nn.Module, folder: pathlib.Path) -> None:
    from accelerate import cpu_offload

    cpu_offload(model, execution_device=CPU)


def _to_disk(model: nn.Module, folder: pathlib.Path) -> None:
    from accelerate import disk_offload

    disk_offload(model, str(folder), execution_device=CPU)


def _in_part(model: nn.Module, folder: pathlib.Path) -> None:
    from accelerate import dispatch_model

    places: dict[str, Any] = {"model.layers.0": "disk"}
    for name, _ in model.named_parameters():
        if not name.startswith("model.layers.0."):
            places[name.rpartition(".")[0]] = "cpu"
    dispatch_model(model, places, main_device=CPU, offload_dir=str(folder), force_hooks=True)


def _data() -> list[Any]:
    return [FAMILY.example(seed) for seed in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("offload", [_to_cpu, _to_disk, _in_part])
def test_fetched_weights_give_the_same_report(offload: Any, tmp_path: pathlib.Path) -> None:
    null = bp.nulls.Rotation(frames=19)
    here, there = FAMILY.make(0), FAMILY.make(0)
    offload(there, tmp_path)
    away = [name for name, parameter in there.named_parameters() if parameter.is_meta]
    assert away
    expected = bp.probe(here, _data(), null=null, progress=False)
    found = bp.probe(there, _data(), null=null, progress=False)
    assert [site.site for site in found] == [site.site for site in expected]
    for site, other in zip(found, expected, strict=True):
        assert site.symmetry.group == other.symmetry.group
        assert site.symmetry.certificate is not None
        for name, score in site.scores.items():
            assert score.effect == pytest.approx(other.scores[name].effect, rel=1e-9, nan_ok=True)
    assert away == [name for name, parameter in there.named_parameters() if parameter.is_meta]


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("offload", [_to_disk, _in_part])
def test_passes_of_the_users_prove_claims_about_fetched_weights(
    offload: Any, tmp_path: pathlib.Path
) -> None:
    """The model is watched in the user's first pass, and the claims are proved in the report."""
    reports: list[bp.Report] = []
    for model in (FAMILY.make(0), there := FAMILY.make(0)):
        if model is there:
            offload(there, tmp_path)
        settings: Any = {"scores": ("kurtosis",), "null": bp.nulls.Rotation(frames=19)}
        with bp.attach(model, sites="*.down_proj*", **settings) as attached:
            for batch in _data():
                model(**batch)
        reports.append(attached.report())
    assert len(reports[0]) == len(reports[1]) == 4
    for site in reports[0]:
        assert site.symmetry.certificate is not None
        assert site.symmetry == reports[1][site.site].symmetry


class _Counts(nn.Module):
    """How often it ran, and how often with rows, beside its weights."""

    runs: Tensor
    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.tensor(0))
        self.register_buffer("rows", torch.zeros(2, dtype=torch.int32))
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        self.rows[0] += len(x)
        return self.last(torch.relu(self.first(x)))


def test_what_a_model_counts_can_be_off_loaded_too() -> None:
    from accelerate import cpu_offload

    torch.manual_seed(0)
    here, x = _Counts().eval(), torch.randn(4, 6)
    there = copy.deepcopy(here)
    cpu_offload(there, execution_device=CPU, offload_buffers=True)
    assert there.runs.is_meta
    _same(bp.symmetries(there, x), bp.symmetries(here, x))
    assert there.runs.is_meta
    assert int(here.runs) == 0


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("offload", [_to_cpu, _to_disk])
def test_weights_say_the_same_wherever_they_lie(offload: Any, tmp_path: pathlib.Path) -> None:
    here, there = FAMILY.make(0), FAMILY.make(0)
    offload(there, tmp_path)
    assert bp.weights_privilege(there) == bp.weights_privilege(here)


def test_weights_have_one_fingerprint_wherever_they_lie(tmp_path: pathlib.Path) -> None:
    model = FAMILY.make(0)
    before = fingerprint(model)
    _to_disk(model, tmp_path)
    assert fingerprint(model) == before != fingerprint(FAMILY.make(1))


def test_weights_that_are_nowhere_are_refused() -> None:
    with pytest.raises(ValueError, match="meta device, which holds no numbers"):
        bp.probe(FAMILY.make(0).to("meta"), _data(), progress=False)


# --- groups and certificates ----------------------------------------------------------------------


class _Twice(nn.Module):
    """One matrix in two maps, the second of which reads what the first writes; or two matrices."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        self.first, self.second, self.last = (nn.Linear(n, m) for n, m in ((8, 8), (8, 8), (8, 3)))
        if shared:
            self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


class _Images(nn.Module):
    """Convolutions between batch normalisations, and a map of what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.second, self.last = nn.Conv2d(6, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(torch.relu(self.bn(self.first(x)))).mean((2, 3)))


def _made(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    if name in ("one matrix", "two matrices"):
        return _Twice(shared=name == "one matrix").eval(), torch.randn(4, 8)
    if name == "convolutions":
        return _Images().eval(), torch.randn(2, 3, 8, 8)
    family = next(family for family in families.HUGGING_FACE if family.name == name)
    return family.make(0), family.example(0)


def _logits(model: nn.Module, example: Any) -> Tensor:
    return (model(**example) if isinstance(example, dict) else model(example)).logits


def _dispatched(model: nn.Module, folder: pathlib.Path) -> None:
    from accelerate import dispatch_model

    leaves = [name for name, module in model.named_modules() if not [*module.children()]]
    places: dict[str, Any] = {name: ["cpu", "disk"][i % 2] for i, name in enumerate(leaves)}
    dispatch_model(model, places, main_device=CPU, offload_dir=str(folder), force_hooks=True)


def _loaded(model: nn.Module, folder: pathlib.Path) -> None:
    from accelerate import load_checkpoint_and_dispatch
    from safetensors.torch import save_model

    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    leaves = [name for name, module in model.named_modules() if not [*module.children()]]
    places: dict[str, Any] = {name: ["cpu", "disk"][i % 2] for i, name in enumerate(leaves)}
    load_checkpoint_and_dispatch(
        model,
        str(folder / "model.safetensors"),
        places,
        offload_folder=str(folder / "off"),
        force_hooks=True,
    )


def _same(found: Mapping[str, bp.Symmetry], expected: Mapping[str, bp.Symmetry]) -> None:
    assert {*found} == {*expected}
    for name, claim in expected.items():
        assert found[name].group == claim.group, name
        assert found[name].because == claim.because
        wanted, proof = claim.certificate, found[name].certificate
        assert (wanted is None) == (proof is None), (name, found[name].unproved)
        if wanted is not None and proof is not None:
            assert (proof.holds, proof.stranger) == (wanted.holds, wanted.stranger)
            assert proof.violation == pytest.approx(wanted.violation, rel=1e-6, nan_ok=True)


MODELS = ["one matrix", "two matrices", "convolutions", "Llama", "GPT-2"]
WAYS = [_to_cpu, _to_disk, _dispatched, _loaded]
# accelerate writes to disk twice what two modules share, and nothing says that it was one matrix.
SAID = [(name, way) for name in MODELS for way in WAYS if (name, way) != ("one matrix", _to_disk)]


@pytest.mark.sample(default=3)
@pytest.mark.parametrize(("name", "offload"), SAID)
def test_groups_and_proofs_do_not_depend_on_where_weights_lie(
    name: str, offload: Any, tmp_path: pathlib.Path
) -> None:
    here, example = _made(name)
    there = _made(name)[0]
    offload(there, tmp_path)
    assert any(parameter.is_meta for parameter in there.parameters())
    _same(bp.symmetries(there, example), found := bp.symmetries(here, example))
    assert any(claim.certificate is not None for claim in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("family", families.HUGGING_FACE, ids=lambda family: family.name)
def test_groups_and_proofs_of_a_family_do_not_depend_on_where_weights_lie(
    family: Any, tmp_path: pathlib.Path
) -> None:
    here, there = family.make(0), family.make(0)
    _to_disk(there, tmp_path)
    _same(bp.symmetries(there, family.example(0)), bp.symmetries(here, family.example(0)))


def test_groups_and_proofs_are_of_the_numbers_that_lie_elsewhere(tmp_path: pathlib.Path) -> None:
    family = next(family for family in families.HUGGING_FACE if family.name == "OLMo 2")
    example = family.example(0)
    there = family.make(0)
    _to_disk(there, tmp_path)
    before = bp.symmetries(there, example)
    plain = family.make(0)
    for name, parameter in plain.named_parameters():
        if name.endswith("norm.weight") and parameter.ndim == 1:
            nn.init.ones_(parameter)
            ones = torch.ones_like(parameter).detach().numpy()
            (tmp_path / f"{name}.dat").write_bytes(ones.tobytes())
    after = bp.symmetries(there, example)
    _same(after, bp.symmetries(plain, example))
    site = "model.layers.0"
    assert before[site].group != after[site].group


@pytest.mark.parametrize("offload", [_to_cpu, _dispatched])
def test_a_matrix_that_modules_share_stays_one(offload: Any, tmp_path: pathlib.Path) -> None:
    groups: list[Any] = []
    for name in ("one matrix", "two matrices"):
        model, example = _made(name)
        offload(model, tmp_path / name)
        groups.append(bp.symmetries(model, example)["first"].group)
        for _ in range(2):
            # Running the model takes empty parameters apart that were one.
            with at_hand(model):
                same = model.get_parameter("first.weight") is model.get_parameter("second.weight")
                assert same is (name == "one matrix")
            model(example)
    assert groups[0] != groups[1]


class _Counting(Mapping[str, Tensor]):
    """Weights of which every look makes a copy, and that knows how many bytes of them are alive."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = {name: weight.detach().clone() for name, weight in weights.items()}
        self.alive = self.most = self.looks = 0

    def __getitem__(self, name: str) -> Tensor:
        found = self.weights[name].clone()
        self.looks += 1
        self.alive += found.nbytes
        self.most = max(self.most, self.alive)
        weakref.finalize(found.untyped_storage(), self._end, found.nbytes)
        return found

    def _end(self, size: int) -> None:
        self.alive -= size

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def _counted(name: str) -> tuple[nn.Module, Any, _Counting, int]:
    from accelerate.hooks import attach_align_device_hook

    model, example = _made(name)
    largest = max(parameter.nbytes for parameter in model.parameters())
    weights = _Counting(model.state_dict())
    attach_align_device_hook(model, execution_device=CPU, offload=True, weights_map=weights)
    return model, example, weights, largest


@pytest.mark.parametrize("name", ["Llama", "GPT-2"])
def test_never_more_than_one_weight_is_held(name: str) -> None:
    model, example, weights, largest = _counted(name)
    found = bp.symmetries(model, example)
    assert any(claim.certificate is not None for claim in found.values())
    assert weights.looks > len(weights)
    # A matrix, and the vector that the same call adds.
    assert weights.most <= 1.1 * largest
    assert weights.alive == 0
    # Of weights that somebody holds it would be told.
    held = [weights[name] for name in weights]
    assert weights.most > largest * 2
    assert held


@pytest.mark.slow
def test_a_whole_probe_holds_the_two_matrices_of_one_layer_at_most() -> None:
    model, example, weights, largest = _counted("Llama")
    null = bp.nulls.Rotation(frames=19)
    bp.probe(model, [example] * 2, null=null, progress=False)
    gc.collect()
    assert weights.most <= 2.1 * largest
    assert weights.alive == 0


def test_what_fetches_is_left_as_it_was(tmp_path: pathlib.Path) -> None:
    model, example = _made("Llama")
    _in_part(model, tmp_path)
    parameters = [(name, id(value)) for name, value in model.named_parameters()]
    before = [(path, hook, hook.offload, hook.weights_map) for path, hook in hooks(model)]
    forwards = [vars(module).get("forward") for module in model.modules()]
    out = _logits(model, example)
    parameters = [(name, id(value)) for name, value in model.named_parameters()]
    bp.symmetries(model, example)
    with pytest.raises(RuntimeError, match="in the middle"), prepared(model, None):
        raise RuntimeError("in the middle")
    assert parameters == [(name, id(value)) for name, value in model.named_parameters()]
    assert before == [(path, hook, hook.offload, hook.weights_map) for path, hook in hooks(model)]
    assert forwards == [vars(module).get("forward") for module in model.modules()]
    assert torch.equal(out, _logits(model, example))


@pytest.mark.slow
def test_weights_that_lie_in_memory_are_not_kept_aside() -> None:
    model, _ = _made("Llama")
    _to_cpu(model, pathlib.Path())
    (_, hook), *_ = hooks(model)
    size = sum(value.nbytes for value in hook.weights_map.dataset.values())

    def held() -> int:
        gc.collect()
        return sum(one.nbytes for one in gc.get_objects() if type(one) is Tensor)

    before = held()
    with kept(model):
        assert held() - before < 0.1 * size
        # What is kept aside is seen.
        more = torch.randn(size // 4)
        assert held() - before >= more.nbytes


def test_a_model_that_is_off_loaded_is_changed_into_one_in_memory(tmp_path: pathlib.Path) -> None:
    model, example = _made("Llama")
    here = _made("Llama")[0]
    _to_disk(model, tmp_path)
    found = bp.symmetries(model, example)
    name = next(name for name in found if name.endswith("act_fn"))
    element = found[name].group.sample(torch.Generator().manual_seed(0))
    twin = bp.reparametrize(model, name, element, example_input=example)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(parameter.is_meta for parameter in twin.parameters())
    outputs = (_logits(one, example) for one in (twin, here))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    weights = [
        dict(one.named_parameters())["model.layers.0.mlp.up_proj.weight"] for one in (twin, here)
    ]
    assert not torch.equal(*weights)


def test_no_untrained_twin_is_made_of_weights_that_are_not_in_memory() -> None:
    model, _ = _made("Llama")
    _to_cpu(model, pathlib.Path())
    with at_hand(model), pytest.raises(ValueError, match="that is off-loaded: an untrained twin"):
        bp.reinitialised(model)


# --- one weight -----------------------------------------------------------------------------------


def _stored(weight: Tensor) -> tuple[Stored, list[int]]:
    looks: list[int] = []

    def fetch() -> Tensor:
        looks.append(1)
        return weight.clone()

    return Stored.of(Home("w", fetch, weight, "cpu"), weight.detach().to("meta")), looks


def test_views_of_a_weight_fetch_nothing_and_show_what_views_of_it_show() -> None:
    weight = torch.arange(60.0).reshape(6, 10)
    stored, looks = _stored(weight)
    for see in (
        lambda w: w.T,
        lambda w: w[2:5],
        lambda w: w[:, 3],
        lambda w: w.view(2, 3, 10).transpose(0, 2),
        lambda w: w.detach().split(4)[1],
        lambda w: w.chunk(2, 1)[1],
        lambda w: w.unsqueeze(0).expand(3, 6, 10),
    ):
        view = see(stored)
        assert isinstance(view, Stored) and not looks
        assert view.untyped_storage().data_ptr() == stored.untyped_storage().data_ptr()
        assert (view.shape, view.stride(), view.storage_offset()) == (
            see(weight).shape, see(weight).stride(), see(weight).storage_offset(),
        )  # fmt: skip
        assert torch.equal(view + 0, see(weight)) and torch.equal(fetched(view), see(weight))
        looks.clear()
    other, _ = _stored(weight)
    assert other.untyped_storage().data_ptr() != stored.untyped_storage().data_ptr()


def test_numbers_come_as_the_model_has_them() -> None:
    weight = torch.randn(4, 6).T
    exact = weight.double().contiguous()
    stored = Stored.of(Home("w", lambda: exact, weight, "cpu"), weight.to("meta"))
    assert fetched(stored).dtype is torch.float32
    assert fetched(stored).stride() == weight.stride()
    x = torch.randn(3, 4, requires_grad=True)
    out = nn.functional.linear(x, stored)
    assert torch.equal(out, nn.functional.linear(x, weight))
    (slope,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(slope, weight.sum(0).expand(3, 4))
    short = Stored.of(Home("w", lambda: exact[:2], weight, "cpu"), weight.to("meta"))
    with pytest.raises(ValueError, match=r"w is of shape \[6, 4\], and .* of shape \[2, 4\]"):
        short.sum()


def test_what_is_fetched_is_not_written_to() -> None:
    stored, _ = _stored(torch.ones(3))
    for write in (lambda: stored.add_(1), lambda: torch.add(torch.ones(3), 1, out=stored)):
        with pytest.raises(RuntimeError, match="off-loaded cannot be written to"):
            write()
    assert torch.equal(fetched(stored), torch.ones(3))
    copied = copy.deepcopy(stored)
    assert type(copied) is Tensor and torch.equal(copied, torch.ones(3))


def test_gathering_is_refused(tmp_path: pathlib.Path) -> None:
    model = FAMILY.make(0)
    _to_disk(model, tmp_path)
    with pytest.raises(ValueError, match="leave device=None"):
        bp.probe(model, _data(), device=torch.device("cpu"), progress=False)


def _mapped_file(tensor: torch.Tensor) -> str:
    """The file that the memory of a tensor is mapped from; empty if there is none."""
    place = tensor.data_ptr()
    for line in pathlib.Path("/proc/self/maps").read_text().splitlines():
        span, *_, path = line.split(maxsplit=5) if line.count(" ") >= 5 else (line, "")
        start, _, end = span.split()[0].partition("-")
        if int(start, 16) <= place < int(end, 16):
            return path.strip()
    return ""


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/maps").exists(), reason="maps are Linux's")
def test_weights_that_are_mapped_from_shards_are_proved_where_they_lie(
    tmp_path: pathlib.Path,
) -> None:
    from accelerate import init_empty_weights
    from safetensors.torch import load_file, save_file

    here = FAMILY.make(0)
    numbers = {name: value.contiguous() for name, value in here.state_dict().items()}
    names = [*numbers]
    for number in range(3):
        save_file(
            {name: numbers[name] for name in names[number::3]}, tmp_path / f"{number}.safetensors"
        )
    files = sorted(tmp_path.glob("*.safetensors"))
    before = [file.read_bytes() for file in files]
    with init_empty_weights(include_buffers=False):
        there = FAMILY.make(0)
    for file in files:
        there.load_state_dict(load_file(file), strict=False, assign=True)
    parameters = dict(there.eval().named_parameters())
    assert not [name for name, parameter in parameters.items() if parameter.is_meta]
    assert all(
        _mapped_file(parameter).startswith(str(tmp_path)) for parameter in parameters.values()
    )
    found, expected = (bp.symmetries(model, FAMILY.example(0)) for model in (there, here))
    assert [*found] == [*expected]
    for name, claim in expected.items():
        wanted, proof = claim.certificate, found[name].certificate
        assert wanted is not None and proof is not None and proof.holds
        assert (found[name].group, proof.stranger) == (claim.group, wanted.stranger)
        assert proof.violation == pytest.approx(wanted.violation, rel=1e-6, nan_ok=True)
    # Nothing was written to them, and nothing took their place.
    assert all(
        _mapped_file(parameter).startswith(str(tmp_path)) for parameter in parameters.values()
    )
    assert [file.read_bytes() for file in files] == before
