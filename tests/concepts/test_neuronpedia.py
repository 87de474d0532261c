"""What Neuronpedia imports: two sources that hold what its tables take."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import pathlib
import re
from typing import Any, cast

import pytest
from fake_report import fake_report, hostile_report, with_examples

import basis_probe as bp

# The columns of the tables that are written, with their types; those with "!" have no default.
TABLES: dict[str, dict[str, str]] = {
    "release": {
        "name": "text!", "description": "text!", "creatorName": "text!", "urls": "text[]!",
        "creatorId": "text!", "visibility": "visibility",
    },
    "model": {
        "id": "text!", "creatorId": "text!", "layers": "int!", "neuronsPerLayer": "int!",
        "owner": "text!", "displayName": "text", "displayNameShort": "text",
        "visibility": "visibility",
    },
    "sourceset": {
        "modelId": "text!", "name": "text!", "description": "text!", "creatorName": "text!",
        "urls": "text[]!", "creatorId": "text!", "releaseName": "text", "visibility": "visibility",
    },
    "source": {
        "id": "text!", "modelId": "text!", "setName": "text!", "creatorId": "text!",
        "notes": "text", "visibility": "visibility",
    },
    "features": {
        "modelId": "text!", "layer": "text!", "index": "text!", "creatorId": "text",
        "sourceSetName": "text", "vectorLabel": "text", "maxActApprox": "float",
    },
    "activations": {
        "id": "text!", "tokens": "text[]!", "index": "text!", "layer": "text!", "modelId": "text!",
        "maxValue": "float!", "maxValueTokenIndex": "int!", "minValue": "float!",
        "values": "float[]!", "creatorId": "text!", "qualifyingTokenIndex": "int",
        "dataIndex": "text",
    },
}  # fmt: skip


def _fits(value: object, kind: str) -> bool:
    """Whether a column of a type takes a value."""
    kind = kind.removesuffix("!")
    if kind.endswith("[]"):
        return isinstance(value, list) and all(_fits(one, kind[:-2]) for one in value)
    if kind == "visibility":
        return value in ("PUBLIC", "UNLISTED", "PRIVATE")
    if kind == "text":
        # What UTF-8 has no bytes for, and zero, are taken by no database.
        return isinstance(value, str) and "\0" not in value and bool(value.encode() or True)
    if kind == "int":
        return type(value) is int and abs(value) < 2**31
    return type(value) in (int, float) and math.isfinite(float(cast("float", value)))


def _require_importable(folder: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
    """Fails unless the import takes the files of a source as they are; what they hold."""
    rows = _rows(folder)
    assert set(rows) == set(TABLES)
    for name, table in TABLES.items():
        needed = {column for column, kind in table.items() if kind.endswith("!")}
        for row in rows[name]:
            # Columns are those of the first row; one that the table lacks is refused.
            assert needed <= set(row) <= set(table) and row.keys() == rows[name][0].keys(), name
            for column, value in row.items():
                assert _fits(value, table[column]), (name, column, value)
    [release], [model], [group], [source] = (
        rows[name] for name in ("release", "model", "sourceset", "source")
    )
    # The folders are asked for by the names of the model and the source.
    assert (model["id"], source["id"]) == (folder.parent.name, folder.name)
    # "layer-set", in which two underscores would part the set from something else.
    assert re.fullmatch(r"\d+-[A-Za-z0-9-]+", source["id"]) and model["owner"].strip()
    assert source["id"].partition("-")[2] == source["setName"] == group["name"]
    assert group["releaseName"] == release["name"]
    keys = {(row["modelId"], row["layer"], row["index"]) for row in rows["features"]}
    assert len(keys) == len(rows["features"]) and len({row["id"] for row in rows["activations"]})
    assert {key[:2] for key in keys} == {(model["id"], source["id"])}
    assert {row["sourceSetName"] for row in rows["features"]} == {group["name"]}
    assert {(row["modelId"], row["layer"], row["index"]) for row in rows["activations"]} <= keys
    return rows


def _rows(folder: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.rglob("*.jsonl*")):
        name = path.parent.name if path.suffix == ".gz" else path.stem
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        # As the import does it.
        text = raw.decode("utf-8").replace("\\u0000", " ") if path.suffix == ".gz" else raw.decode()
        found[name] = [json.loads(line) for line in text.split("\n") if line]
    return found


def _site(report: bp.Report, **settings: Any) -> bp.SiteReport:
    return with_examples(report, **settings)["blocks.0.mlp.hook_post"]


def test_both_sources_hold_what_the_tables_take(tmp_path: pathlib.Path) -> None:
    site = _site(fake_report(), sides=2)
    assert site.examples is not None
    folders = bp.export_neuronpedia(site, tmp_path, model_name="llama-260k", name="probe")
    assert [str(one.relative_to(tmp_path)) for one in folders] == [
        "llama-260k/0-probe-blocks-mlp-hook-post-axes",
        "llama-260k/0-probe-blocks-mlp-hook-post-rotated",
    ]
    for folder, directions in zip(
        folders, (site.examples.axes, site.examples.rotated), strict=True
    ):
        rows = _require_importable(folder)
        assert len(rows["features"]) == len(directions)
        assert len({row["id"] for row in rows["activations"]}) == len(rows["activations"])
        for row in rows["activations"]:
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
    text = "\ud800\x00\n\u202e\\u0000\\"
    for place, site in enumerate(with_examples(hostile_report(), text=text)):
        if site.examples is not None:
            folders = bp.export_neuronpedia(site, tmp_path / str(place), model_name="m")
            rows = _require_importable(folders[0])["activations"]
            assert len(rows) == 25
            shown = text.replace("\ud800", "?").replace("\x00", "\ufffd")
            assert any(shown in token for row in rows for token in row["tokens"])


def test_sites_of_one_layer_stand_beside_each_other(tmp_path: pathlib.Path) -> None:
    report = with_examples(fake_report())
    shown = [site for site in report if site.examples is not None]
    made = [
        folder for site in shown for folder in bp.export_neuronpedia(site, tmp_path, model_name="m")
    ]
    assert len({site.layer for site in shown}) < len(shown)
    assert len(set(made)) == 2 * len(shown)


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
