"""What Neuronpedia imports: two sources that hold what its tables take."""

from __future__ import annotations

import dataclasses
import gzip
import json
import pathlib
from typing import Any

import pytest
from fake_report import fake_report, hostile_report, with_examples

import basis_probe as bp

# Columns of the tables: those that have no default, and the others that are written.
TABLES: dict[str, tuple[set[str], set[str]]] = {
    "release": (
        {"name", "description", "creatorName", "urls", "creatorId"}, {"visibility"},
    ),
    "model": (
        {"id", "creatorId", "layers", "neuronsPerLayer", "owner"},
        {"displayName", "displayNameShort", "visibility"},
    ),
    "sourceset": (
        {"modelId", "name", "description", "creatorName", "urls", "creatorId"},
        {"releaseName", "visibility"},
    ),
    "source": ({"id", "modelId", "setName", "creatorId"}, {"notes", "visibility"}),
    "features": (
        {"modelId", "layer", "index"},
        {"creatorId", "sourceSetName", "vectorLabel", "maxActApprox"},
    ),
    "activations": (
        {
            "id", "tokens", "index", "layer", "modelId", "maxValue", "maxValueTokenIndex",
            "minValue", "values", "creatorId",
        },
        {"qualifyingTokenIndex", "dataIndex"},
    ),
}  # fmt: skip


def _rows(folder: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.rglob("*.jsonl*")):
        name = path.parent.name if path.suffix == ".gz" else path.stem
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        found[name] = [json.loads(line) for line in raw.decode("utf-8").splitlines()]
    return found


def _site(report: bp.Report, **settings: Any) -> bp.SiteReport:
    return with_examples(report, **settings)["blocks.0.mlp.hook_post"]


def test_both_sources_hold_what_the_tables_take(tmp_path: pathlib.Path) -> None:
    site = _site(fake_report(), sides=2)
    assert site.examples is not None
    folders = bp.export_neuronpedia(site, tmp_path, model_name="llama-260k", name="probe")
    assert [str(one.relative_to(tmp_path)) for one in folders] == [
        "llama-260k/0-probe-axes",
        "llama-260k/0-probe-rotated",
    ]
    for folder, directions in zip(
        folders, (site.examples.axes, site.examples.rotated), strict=True
    ):
        rows = _rows(folder)
        assert set(rows) == set(TABLES)
        for name, (needed, more) in TABLES.items():
            for row in rows[name]:
                assert needed <= set(row) <= needed | more, name
        [source] = rows["source"]
        assert source["id"] == folder.name and source["setName"] == rows["sourceset"][0]["name"]
        keys = {(row["modelId"], row["layer"], row["index"]) for row in rows["features"]}
        assert len(keys) == len(rows["features"]) == len(directions)
        assert len({row["id"] for row in rows["activations"]}) == len(rows["activations"])
        for row in rows["activations"]:
            assert (row["modelId"], row["layer"], row["index"]) in keys
            assert len(row["tokens"]) == len(row["values"])
            assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"]
            assert row["maxValue"] == max(row["values"]) and row["minValue"] == min(row["values"])
        tops = dict(zip([row["index"] for row in rows["features"]], directions, strict=True))
        for row in rows["features"]:
            expected = max(max(one.activations) for one in tops[row["index"]].contexts)
            assert (
                row["maxActApprox"] == expected and row["vectorLabel"] == tops[row["index"]].label
            )
    indices = [int(row["index"]) for row in _rows(folders[0])["features"]]
    expected = [(top.axis or 0) + site.dim * (top.sign < 0) for top in site.examples.axes]
    assert indices == expected


def test_the_same_site_gives_the_same_files(tmp_path: pathlib.Path) -> None:
    site = _site(fake_report())
    made = [
        bp.export_neuronpedia(site, tmp_path / name, model_name="m") for name in ("one", "other")
    ]
    for one, other in zip(*made, strict=True):
        for path in one.rglob("*.jsonl*"):
            assert path.read_bytes() == (other / path.relative_to(one)).read_bytes()


def test_hostile_tokens_are_written_as_text(tmp_path: pathlib.Path) -> None:
    for place, site in enumerate(with_examples(hostile_report(), text="\ud800\x00\n\u202e")):
        if site.examples is not None:
            folders = bp.export_neuronpedia(site, tmp_path / str(place), model_name="m")
            assert len(_rows(folders[0])["activations"]) == 25


def test_what_neuronpedia_does_not_take_is_refused(tmp_path: pathlib.Path) -> None:
    site = _site(fake_report())
    with pytest.raises(ValueError, match=r"model_name='Org/Model': Neuronpedia takes \[a-z0-9_-\]"):
        bp.export_neuronpedia(site, tmp_path, model_name="Org/Model")
    with pytest.raises(ValueError, match=r"name='a/b': Neuronpedia takes"):
        bp.export_neuronpedia(site, tmp_path, model_name="m", name="a/b")
    with pytest.raises(ValueError, match="has no examples"):
        bare = dataclasses.replace(site, examples=None)
        bp.export_neuronpedia(bare, tmp_path, model_name="m")
    wrong: Any = fake_report()
    with pytest.raises(TypeError, match="give a site of a report"):
        bp.export_neuronpedia(wrong, tmp_path, model_name="m")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be made"):
        bp.export_neuronpedia(site, tmp_path / "file", model_name="m")
