"""Dictionaries beside the axes: how files are read, what is found, what is left out and said."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from draws import seeded
from safetensors.torch import save_file
from torch import Tensor

import basis_probe as bp
from basis_probe.algebra.haar import haar
from basis_probe.statistics.dictionaries import read_dictionary

DIM, FEATURES = 8, 20


def planted(rows: int = 1600) -> tuple[Tensor, Tensor]:
    """Rows in which as many sparse features as axes lie in a random basis, and that basis."""
    generator = seeded(77)
    turn = haar(DIM, generator)
    sparse = torch.randn(rows, DIM, generator=generator, dtype=torch.float64)
    sparse = sparse * torch.randn(rows, DIM, generator=generator, dtype=torch.float64)
    return sparse @ turn, turn


def folder(path: pathlib.Path, config: dict[str, Any], **tensors: Tensor) -> pathlib.Path:
    path.mkdir(exist_ok=True)
    save_file(
        {n: t.float().contiguous() for n, t in tensors.items()},
        path / "sae_weights.safetensors",
    )
    (path / "cfg.json").write_text(json.dumps(config))
    return path


def probed(bases: Any, **options: Any) -> bp.SiteReport:
    x, _ = planted()
    return bp.probe_activations(x, group="orthogonal", bases=bases, **options)


def test_a_folder_is_read_as_it_was_written(tmp_path: pathlib.Path) -> None:
    _, turn = planted()
    made = bp.export_basis(turn.T, tmp_path / "sae", hook_name="here", model_name="m")
    found = read_dictionary(made)
    assert np.allclose(found.directions, torch.cat([turn, -turn]), atol=1e-6)
    assert (found.label, found.made_for, found.note) == ("sae", "here", "")
    x = planted()[0]
    assert found.encode is not None
    both = torch.cat([x @ turn.T, -x @ turn.T], 1).relu()
    assert torch.allclose(found.encode(x), both, atol=1e-4)


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk"])
def test_codes_are_those_of_the_formula(kind: str, tmp_path: pathlib.Path) -> None:
    generator = seeded(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = {
        "W_enc": draw(DIM, FEATURES), "b_enc": draw(FEATURES), "W_dec": draw(FEATURES, DIM),
        "b_dec": draw(DIM), "threshold": draw(FEATURES).abs(),
    }  # fmt: skip
    config = {"architecture": kind, "k": 3, "apply_b_dec_to_input": kind != "topk"}
    found = read_dictionary(folder(tmp_path / kind, config, **tensors))
    x = draw(30, DIM)
    centred = x - tensors["b_dec"] if kind != "topk" else x
    pre = centred @ tensors["W_enc"] + tensors["b_enc"]
    want = pre.relu()
    if kind == "jumprelu":
        want = want * (pre > tensors["threshold"])
    if kind == "topk":
        want = want * (pre >= pre.topk(3, dim=1).values[:, -1:])
    assert found.encode is not None
    assert torch.allclose(found.encode(x).float(), want, atol=1e-5)


@pytest.mark.slow
def test_the_true_directions_stand_out_and_random_ones_do_not(tmp_path: pathlib.Path) -> None:
    x, turn = planted()
    true = bp.export_basis(turn.T, tmp_path / "true", hook_name="here", model_name="m")
    noise = haar(DIM, seeded(9))
    site = bp.probe_activations(
        x, group="orthogonal", bases=[str(true), noise, noise.numpy()], examples=None
    )
    assert site.bases is not None and site.bases.best == "true"
    frame = site.bases.to_dataframe().set_index(["basis", "kind", "score"])
    assert set(frame.index.get_level_values(0)) == {"axes", "rotations", "true", "given", "given 2"}
    for score in ("non_gaussianity", "negentropy", "kurtosis"):
        row = frame.loc["true", "directions", score]
        assert row.low <= row.value <= row.high
        # Nothing else comes near the lower end of what is planted.
        for other in ("axes", "rotations", "given"):
            assert frame.loc[other, "directions", score].high < row.low
        assert frame.loc["given", "directions", score].value == pytest.approx(
            frame.loc["given 2", "directions", score].value
        )
    active = frame.loc["true", "codes", "active"]
    for row in site.bases.table:
        # Rare events make the scores of codes, and no interval is stated for them.
        assert np.isnan(row.low) == (row.kind == "codes" and row.score != "active"), row
    assert active.value == pytest.approx(DIM) and active.directions == 2 * DIM
    assert any("made for here" in note for note in site.notes)


def test_a_dictionary_that_is_turned_along_has_the_same_scores() -> None:
    x, directions = planted()
    turn = haar(DIM, seeded(3))
    tables: list[dict[tuple[str, str], bp.results.BasisRow]] = []
    for rows, basis in ((x, directions), (x @ turn.T, directions @ turn.T)):
        site = bp.probe_activations(rows, group="orthogonal", bases=basis)
        assert site.bases is not None
        tables.append({(row.basis, row.score): row for row in site.bases.table})
    one, other = tables
    for score in ("non_gaussianity", "negentropy", "kurtosis"):
        for part in ("value", "low", "high"):
            expected = pytest.approx(getattr(one["given", score], part), rel=1e-9)
            assert getattr(other["given", score], part) == expected
        assert other["axes", score].value != pytest.approx(one["axes", score].value, rel=1e-3)


@pytest.mark.slow
def test_intervals_hold_the_truth() -> None:
    # A direction's kurtosis over many more rows, against the interval from a few.
    inside = 0
    for seed in range(40):
        generator = seeded(seed)
        x = torch.rand(600, 4, generator=generator, dtype=torch.float64)
        given = torch.eye(4, dtype=torch.float64)
        site = bp.probe_activations(
            x, group="orthogonal", bases=given, scores=["kurtosis"], seed=seed
        )
        assert site.bases is not None
        row = next(r for r in site.bases.table if r.basis == "given")
        # Uniform on an interval: 9/5.
        inside += row.low <= 1.8 <= row.high
    assert inside >= 34


@pytest.mark.slow
def test_a_dictionary_of_another_width_is_left_out_where_it_does_not_fit(
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / "wide.npy"
    np.save(path, np.random.default_rng(0).normal(size=(12, 5)))
    site = probed([str(path), "pca"])
    assert any("has directions of 5 entries, and the site 8 axes" in note for note in site.notes)
    assert site.bases is not None
    assert {row.basis for row in site.bases.table} == {"axes", "rotations", "pca"}


def test_neurons_are_not_ranked_against_what_was_made_for_them(tmp_path: pathlib.Path) -> None:
    save_file({"decoder.weight": torch.randn(12, 30)}, tmp_path / "d.safetensors")
    model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 2))
    report = bp.probe(
        model, [torch.randn(300, 6)], bases=tmp_path / "d.safetensors", progress=False
    )
    site = report["1"]
    assert site.bases is not None and [s.name for s in site.bases.standings] == ["standard"]
    assert any(row.basis == "d" and row.directions == 30 for row in site.bases.table)
    assert any("Dictionaries are not ranked here" in note for note in site.notes)
    assert any("no encoder" in note for note in site.notes)
    assert bp.Report.from_json(report.to_json()) == report


REFUSED: dict[str, Any] = {
    "no decoder": (lambda p: folder(p, {}, W_enc=torch.ones(4, 9)), "its tensors are W_enc"),
    "other width": (lambda p: folder(p, {"d_in": 5}, W_dec=torch.ones(9, 4)), "says 5"),
    "all zero": (lambda p: folder(p, {}, W_dec=torch.zeros(9, 4)), "are zero"),
    "not finite": (lambda p: folder(p, {}, W_dec=torch.full((9, 4), torch.nan)), "NaN"),
    "a vector": (lambda p: folder(p, {}, W_dec=torch.ones(9)), r"shape \[9\]"),
    "nothing": (lambda p: p / "x", "no such file or folder"),
    "an empty folder": (lambda p: p.mkdir() or p, "holds no sae_weights"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_dictionary_is_refused(name: str, tmp_path: pathlib.Path) -> None:
    made, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        probed(str(made(tmp_path / "sae")))


def test_damaged_files_and_unknown_kinds(tmp_path: pathlib.Path) -> None:
    made = folder(tmp_path / "a", {"architecture": "other"}, W_dec=torch.ones(9, 8))
    assert "no encoder" in read_dictionary(made).note
    made = folder(
        tmp_path / "b", {"architecture": "new"}, W_dec=torch.ones(9, 8), W_enc=torch.ones(8, 9)
    )
    assert read_dictionary(made).encode is None and "'new'" in read_dictionary(made).note
    (made / "cfg.json").write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        read_dictionary(made)
    (made / "sae_weights.safetensors").write_bytes(b"12")
    (made / "cfg.json").unlink()
    with pytest.raises(ValueError, match="damaged or no safetensors"):
        read_dictionary(made)
    with pytest.raises(ValueError, match="give the path of a dictionary"):
        probed("pcaa")
