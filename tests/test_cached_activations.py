"""Activations that are there already: of sequences, of several sites, of a cache."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from torch import Tensor

import basis_probe as bp

NULL = bp.nulls.Rotation(frames=49)

pytestmark = pytest.mark.filterwarnings("ignore::basis_probe.MisleadingNull")


def _sequences(seed: int = 0, dim: int = 6) -> Tensor:
    """[batch, position, dim], heavy-tailed, with something in common within every sequence."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(40, 10, dim, generator=generator, dtype=torch.float64)
    drift = torch.randn(40, 1, dim, generator=generator, dtype=torch.float64)
    return noise**3 + drift


def _numbers(site: bp.SiteReport) -> list[str]:
    """Exactly, NaN equal to itself."""
    return [
        repr((score.observed, score.effect, score.p_tail, *score.effect_interval))
        for score in site.scores.values()
    ]


@pytest.mark.slow
def test_sequences_are_rows_whose_examples_are_known() -> None:
    x = _sequences()
    options: dict[str, Any] = {"group": "orthogonal", "null": NULL}
    found = bp.probe_activations(x, **options)
    batch = torch.arange(40).repeat_interleave(10)
    flat = bp.probe_activations(x.flatten(0, 1), examples=batch, **options)
    assert _numbers(found) == _numbers(flat) and found.n_samples == 400
    assert found.null is not None and found.null.examples == 40
    assert _numbers(bp.probe_activations(x.numpy(), **options)) == _numbers(flat)


def test_a_table_is_taken_by_its_columns() -> None:
    x = _sequences().flatten(0, 1).numpy()
    options: dict[str, Any] = {"group": "orthogonal", "null": NULL}
    found = bp.probe_activations(pandas.DataFrame(x), **options)
    assert _numbers(found) == _numbers(bp.probe_activations(x, **options))


@pytest.mark.slow
def test_padding_is_left_out_whatever_it_holds() -> None:
    x, mask = _sequences(), torch.ones(40, 10)
    mask[::2, 7:] = 0
    x[::2, 7:] = torch.nan
    options: dict[str, Any] = {"group": "orthogonal", "null": NULL}
    found = bp.probe_activations(x, mask=mask, **options)
    kept = mask.flatten() != 0
    batch = torch.arange(40).repeat_interleave(10)[kept]
    flat = bp.probe_activations(x.flatten(0, 1)[kept], examples=batch, **options)
    assert _numbers(found) == _numbers(flat) and found.n_samples == int(mask.sum())
    assert _numbers(bp.probe_activations(x, mask=mask.numpy() > 0, **options)) == _numbers(flat)
    with pytest.raises(ValueError, match="NaN or infinite"):
        bp.probe_activations(x, **options)


@pytest.mark.slow
def test_the_layer_in_front_is_flattened_and_masked_alike() -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(40, 10, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    mask = torch.ones(40, 10)
    mask[:, 8:] = 0
    x = (inputs @ weight.T).relu()
    options: dict[str, Any] = {"weight": weight, "nonlinearity": "relu", "group": "permutation"}
    found = bp.probe_activations(x, inputs=inputs, mask=mask, **options)
    kept = mask.flatten() != 0
    flat = bp.probe_activations(
        x.flatten(0, 1)[kept],
        inputs=inputs.flatten(0, 1)[kept],
        examples=torch.arange(40).repeat_interleave(10)[kept],
        **options,
    )
    assert _numbers(found) == _numbers(flat)
    assert found.null is not None and found.null.name == "counterfactual"
    pre = bp.probe_activations(
        x, pre=inputs @ weight.T, nonlinearity="relu", group="permutation", mask=mask
    )
    assert pre.null is not None and pre.null.name == "turned pre-activation"


@pytest.mark.slow
def test_several_sites_make_a_report_that_saves(tmp_path: pathlib.Path) -> None:
    sites = {
        "blocks.0.x": _sequences(1),
        "blocks.1.x": _sequences(2).numpy(),
        "head": _sequences(3),
    }
    report = bp.probe_activations(
        sites, group={"blocks.*": "orthogonal", "head": "permutation"}, null=NULL, seed=5
    )
    assert report.sites == tuple(sites)
    assert [site.layer for site in report] == [0, 1, None]
    assert report["head"].symmetry.group == bp.groups.Permutation(6)
    # What is adjusted is adjusted over all of them.
    alone = bp.probe_activations(sites["blocks.0.x"], group="orthogonal", null=NULL, seed=5)
    lead = [score for score in report["blocks.0.x"].scores.values() if score.decides]
    for score in lead:
        assert score.observed == alone.scores[score.name].observed
        assert score.p_tail == alone.scores[score.name].p_tail
        assert score.p_adjusted >= alone.scores[score.name].p_adjusted
    assert bp.Report.load(report.save(tmp_path / "r.json")) == report
    assert report.provenance.seed == 5 and report.provenance.settings["null"].startswith("Rotation")


@pytest.mark.slow
def test_a_cache_of_a_bridge_leaves_out_what_has_no_features() -> None:
    from basis_probe import demo

    bridge = demo.load()
    batch = bridge.tokenizer(demo.texts(24), return_tensors="pt", padding=True)
    names = "hook_resid_pre attn.hook_z attn.hook_pattern ln1.hook_scale mlp.hook_post".split()
    some: dict[str, Any] = {"names_filter": [f"blocks.0.{name}" for name in names]}
    with torch.no_grad():
        _, cache = bridge.run_with_cache(
            batch["input_ids"], attention_mask=batch["attention_mask"], **some
        )
    mask = batch["attention_mask"]
    report = bp.probe_activations(cache, null=bp.nulls.Rotation(frames=19), mask=mask)
    assert {"blocks.0.hook_resid_pre", "blocks.0.mlp.hook_post"} <= set(report.sites)
    assert report["blocks.0.attn.hook_z"].shape == (4, 24)
    assert all(site.n_samples == int(mask.sum()) for site in report)
    assert not [name for name in report.sites if "pattern" in name or "scale" in name]
    # One sequence without its batch is the same sequence.
    one = int(mask[0].sum())
    with torch.no_grad():
        _, single = bridge.run_with_cache(
            batch["input_ids"][:1, :one], remove_batch_dim=True, **some
        )
        _, whole = bridge.run_with_cache(batch["input_ids"][:1, :one], **some)
    alone, among = (
        bp.probe_activations(cache, null=bp.nulls.Rotation(frames=19)) for cache in (single, whole)
    )
    assert alone.sites == among.sites
    for site, other in zip(alone, among, strict=True):
        assert (site.shape, site.n_samples) == (other.shape, other.n_samples)
        for score, twin in zip(site.scores.values(), other.scores.values(), strict=True):
            assert score.observed == pytest.approx(twin.observed, rel=1e-6, nan_ok=True)
    [note] = report.notes
    assert note.startswith("Left out, as their features are not known: ")


@pytest.mark.parametrize(
    ("x", "options", "words"),
    [
        ({}, {}, "x holds no activations"),
        ({"a": _sequences()}, {"pre": _sequences()}, "pre belong to one site"),
        ({"a": _sequences()}, {"group": {"b*": "orthogonal"}}, "matches none of the probed"),
        ({"a": torch.zeros(3, 4, 5, 6)}, {}, "a has shape"),
        ({"a": torch.zeros(5, 4, dtype=torch.int64)}, {}, "a holds int64"),
        ({"a": None}, {}, "a is a NoneType: give a numpy array or a torch tensor"),
        (_sequences(), {"group": {"x": "orthogonal"}}, "group is a mapping, and x one array"),
        (_sequences(), {"mask": torch.ones(40, 9)}, "give one entry for every position"),
        (_sequences().flatten(0, 1), {"mask": torch.ones(400)}, "no array of sequences"),
        (_sequences(), {"examples": np.arange(40)}, "examples has shape"),
    ],
)
def test_what_does_not_fit_is_refused(x: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        bp.probe_activations(x, **options)


class _Recorded:
    """An array that only says its shape and is sliced, as a set of h5py; it notes what is read."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.largest = values, values.shape, 0

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.largest = max(self.largest, self.values[rows].size)
        return self.values[rows]


def _alike(one: bp.SiteReport, other: bp.SiteReport) -> bool:
    """The same numbers, but for the order in which sums are taken."""
    return all(
        np.allclose(
            [a.observed, a.effect, a.all_samples, *a.effect_interval],
            [b.observed, b.effect, b.all_samples, *b.effect_interval],
            rtol=1e-9,
            equal_nan=True,
        )
        for a, b in zip(one.scores.values(), other.scores.values(), strict=True)
    )


@pytest.mark.slow
def test_not_more_than_a_block_is_read_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x = _sequences().flatten(0, 1).numpy()
    options: dict[str, Any] = {"group": "orthogonal", "null": NULL}
    whole = bp.probe_activations(x, **options)
    monkeypatch.setattr("basis_probe.arrays.BLOCK", 90)
    recorded = _Recorded(x)
    assert _alike(bp.probe_activations(recorded, **options), whole)
    assert 0 < recorded.largest <= 90
    # Sequences are read whole, and what does not count is left out of every block.
    mask = torch.ones(40, 10)
    mask[::2, 7:] = 0
    mask[3:9] = 0
    x3 = _sequences()
    some = x3.flatten(0, 1)[mask.flatten() != 0]
    batch = torch.arange(40).repeat_interleave(10)[mask.flatten() != 0]
    flat = bp.probe_activations(some, examples=batch, **options)
    recorded = _Recorded(x3.numpy())
    assert _alike(bp.probe_activations(recorded, mask=mask, **options), flat)
    assert 0 < recorded.largest <= 90


@pytest.mark.slow
def test_parts_and_files_are_the_array_that_they_make(tmp_path: pathlib.Path) -> None:
    x = _sequences().flatten(0, 1)
    options: dict[str, Any] = {"group": "orthogonal", "null": NULL}
    whole = _numbers(bp.probe_activations(x, **options))
    np.save(tmp_path / "all.npy", x.numpy())
    np.save(tmp_path / "rest.npy", x[130:].numpy())
    assert _numbers(bp.probe_activations(str(tmp_path / "all.npy"), **options)) == whole
    mapped = np.load(tmp_path / "all.npy", mmap_mode="r")
    assert _numbers(bp.probe_activations(mapped, **options)) == whole
    parts = [x[:100], x[100:130].numpy(), tmp_path / "rest.npy"]
    assert _alike(bp.probe_activations(parts, **options), bp.probe_activations(x, **options))


@pytest.mark.slow
def test_files_of_safetensors_are_shards_of_several_sites(tmp_path: pathlib.Path) -> None:
    from safetensors.torch import save_file

    x, z = _sequences().float(), _sequences(4, dim=8).view(40, 10, 2, 4).to(torch.bfloat16)
    files = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for file, rows in zip(files, (slice(0, 15), slice(15, 40)), strict=True):
        save_file({"resid": x[rows].contiguous(), "0.hook_z": z[rows].contiguous()}, file)
    options: dict[str, Any] = {"group": {"resid": "orthogonal"}, "null": NULL}
    report = bp.probe_activations(files, **options)
    at_once = bp.probe_activations({"resid": x, "0.hook_z": z}, **options)
    assert set(report.sites) == {"resid", "0.hook_z"}
    assert report["0.hook_z"].shape == (2, 4) and report["resid"].n_samples == 400
    assert all(_alike(report[site], at_once[site]) for site in report.sites)


def test_files_that_cannot_be_read_are_named(tmp_path: pathlib.Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "a.npy").write_bytes(b"none")
    (tmp_path / "a.safetensors").write_bytes(b"none")
    save_file({"one": torch.zeros(4, 3)}, tmp_path / "b.safetensors")
    save_file({"two": torch.zeros(4, 3)}, tmp_path / "c.safetensors")
    for x, words in (
        (tmp_path / "a.npy", "a.npy cannot be read .*write the file anew, with np.save"),
        (tmp_path / "a.safetensors", "a.safetensors cannot be read .*anew, with safetensors"),
        (tmp_path / "x.npz", "x.npz': give one that ends in .npy"),
        ([tmp_path / "b.safetensors", tmp_path / "c.safetensors"], "'one' .*of the same arrays"),
        ([torch.zeros(3, 4), torch.zeros(3, 5)], r"parts of shapes \(3, 4\) and \(3, 5\)"),
    ):
        with pytest.raises(ValueError, match=words):
            bp.probe_activations(x)
    for name in ("none.npy", "none.safetensors"):
        with pytest.raises(FileNotFoundError, match=f"there is no file .*{name}"):
            bp.probe_activations(tmp_path / name)
    with pytest.raises(ValueError, match="mask leaves no row of x: it is zero at every position"):
        bp.probe_activations(_sequences(), mask=torch.zeros(40, 10))
