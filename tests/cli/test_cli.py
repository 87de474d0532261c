"""The command line writes reports, and says what is wrong in one line."""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from typing import Any, cast

import pytest
import torch
from fake_report import fake_report, wide_report

import basis_probe as bp
from basis_probe import demo
from basis_probe.cli import main
from basis_probe.cli.arguments import NULL_NAMES
from basis_probe.cli.command import Refused
from basis_probe.cli.entry import COMMANDS
from basis_probe.cli.probing import save_each, write
from basis_probe.cli.screen import Screen, Voice
from basis_probe.cli.windows import Windows
from basis_probe.evidence.site import NULLS
from basis_probe.model.load import BridgeError


def _refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command says on the way to its refusal."""
    try:
        status = main(list(words))
    except SystemExit as leaving:
        # Words that make no command are refused by the parser.
        status = leaving.code
    captured = capsys.readouterr()
    assert status == 2
    assert "Traceback" not in captured.err
    return re.sub(r"\s+", " ", captured.err)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(demo.texts(60, 2)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def bridge() -> Any:
    return demo.load()


# --- what it does ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_demo_writes_its_report(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, data = tmp_path / "r.html", tmp_path / "r.json"
    words = ["demo", "--texts", "5", "--batch-size", "2", "--seed", "4"]
    words += ["--sites", "blocks.[12].hook_resid_pre"]
    assert main([*words, "--out", str(page), "--out", str(data)]) == 0
    captured = capsys.readouterr()
    report = bp.Report.from_json(data.read_text(encoding="utf-8"))
    assert report.sites == (
        "blocks.1.hook_resid_pre",
        "blocks.2.hook_resid_pre",
    )
    assert report.provenance.seed == 4
    assert report.provenance.n_examples == 5
    assert report.provenance.n_batches == 3
    # The demo shows what activates axes without being asked to.
    found = report["blocks.1.hook_resid_pre"].examples
    assert found is not None and {len(top.contexts) for top in found.axes} == {5}
    assert report.provenance.model.startswith("TransformerBridge basis-probe-demo (")
    assert not report.partial
    html = page.read_text(encoding="utf-8")
    for site in report.sites:
        assert site in html
        assert site in captured.out
    plain = re.sub(r"\s+", "", captured.out)
    assert f"wrote{page}" in plain
    assert f"wrote{data}" in plain
    # Off a terminal no progress is drawn.
    assert captured.err == ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::basis_probe.MisleadingNull")
def test_a_report_on_a_folder_and_a_text(
    text: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, table = tmp_path / "r.json", tmp_path / "r.csv"
    words = ["report", str(demo.MODEL_DIR), "--text", str(text), "--length", "16"]
    words += ["--max-samples", "250", "--sites", "blocks.3.mlp.hook_post", "--null", "rotation"]
    assert main([*words, "--out", str(data), "--out", str(table)]) == 0
    report = bp.Report.from_json(data.read_text(encoding="utf-8"))
    site = report["blocks.3.mlp.hook_post"]
    assert site.n_samples == 250
    assert site.null is not None
    assert site.null.name == "rotation"
    assert report.provenance.settings["null"].startswith("rotation")
    assert table.read_text(encoding="utf-8").splitlines()[0].startswith("site,")
    # A path says more about the machine than about the model.
    assert str(demo.MODEL_DIR.parent) not in report.provenance.model


@pytest.mark.slow
def test_a_quick_look_sees_fewer_samples_and_proves_nothing(
    text: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["report", str(demo.MODEL_DIR), "--text", str(text), "--length", "16"]
    words += ["--sites", "blocks.3.mlp.hook_post", "--effort", "quick"]
    for more, most in (([], "1024"), (["--max-samples", "100"], "100")):
        out = tmp_path / f"{most}.json"
        assert main([*words, *more, "--out", str(out)]) == 0
        report = bp.Report.load(out)
        assert report.provenance.settings["max_samples"] == most
        assert report.provenance.settings["effort"] == "quick"
        assert report.site_reports[0].symmetry.certificate is None
    capsys.readouterr()
    part = str(tmp_path / "p.safetensors")
    said = _refused(capsys, *words, "--shard", "0/2", "--out", part)
    assert "--effort quick is for runs of one process; give --max-samples with --shard" in said


@pytest.mark.slow
def test_an_untrained_copy_is_asked_from_the_command_line(
    text: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["report", str(demo.MODEL_DIR), "--text", str(text), "--length", "16"]
    words += ["--sites", "blocks.3.hook_resid_pre", "--effort", "quick", "--initialisation"]
    out = tmp_path / "r.json"
    assert main([*words, "--out", str(out)]) == 0
    report = bp.Report.load(out)
    assert report.provenance.settings["initialisation"] == "asked"
    verdict = report.site_reports[0].verdict
    assert verdict.outcome is bp.Outcome.EMERGENT
    assert "training made these axes stand out" in verdict.sentence
    capsys.readouterr()
    words = [word for word in words if word not in ("--effort", "quick")]
    said = _refused(capsys, *words, "--shard", "0/2", "--out", str(tmp_path / "p.safetensors"))
    assert "leave out one of --shard and --initialisation" in said


def test_texts_are_cut_into_examples_that_begin_as_texts_do(
    bridge: Any, text: pathlib.Path
) -> None:
    batches = [*Windows(bridge, text, length=16, size=4)]
    rows = torch.cat(batches)
    ids = list(bridge.tokenizer(text.read_text(encoding="utf-8"))["input_ids"])
    first = bridge.tokenizer.bos_token_id
    lead = int(ids[0] == first)
    assert rows.shape[1] == 16
    if lead:
        assert bool((rows[:, 0] == first).all())
    assert rows[:, lead:].flatten().tolist() == ids[lead:][: rows[:, lead:].numel()]
    # Only what fills no example is left out.
    assert len(ids) - lead - rows[:, lead:].numel() < 16 - lead
    assert {len(batch) for batch in batches[:-1]} == {4}


@pytest.mark.slow
def test_a_text_is_read_as_far_as_it_is_used(
    bridge: Any, text: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    long, said = tmp_path / "long.txt", text.read_text(encoding="utf-8")
    long.write_text("\n".join([said] * 200) + "\0", encoding="utf-8")
    data = Windows(bridge, long, length=16, size=4)
    some = [*itertools.islice(data, 5)]
    assert torch.equal(
        torch.cat(some), torch.cat([*itertools.islice(Windows(bridge, text, length=16, size=4), 5)])
    )
    # It can be gone through again, and what is not text is found where it is used.
    assert torch.equal(next(iter(data)), some[0])
    with pytest.raises(Refused, match="is no text"):
        list(data)


@pytest.mark.parametrize(
    "raw", [b"\x89PNG\r\n\x1a\n" * 900, "text\n".encode("utf-16") * 900, bytes(range(256)) * 9]
)
def test_what_is_no_text_is_refused(bridge: Any, raw: bytes, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(raw)
    with pytest.raises(Refused, match="is no text in UTF-8"):
        Windows(bridge, path, length=16, size=4)


def test_examples_longer_than_the_context_are_refused(bridge: Any, text: pathlib.Path) -> None:
    context = bridge.cfg.n_ctx
    with pytest.raises(Refused, match=f"more than the {context} tokens"):
        Windows(bridge, text, length=context + 1, size=4)


class _Half:
    """A report that cannot be written to one of its files."""

    def save(self, path: pathlib.Path) -> pathlib.Path:
        if path.stem == "bad":
            raise OSError(28, "No space left on device")
        path.write_text("done")
        return path


def test_every_file_is_tried_whatever_happens_to_the_others(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / name for name in ("a.json", "bad.html", "c.csv")]
    assert save_each(_Half(), paths, Screen.of(Voice.READER)) == [paths[0], paths[2]]
    # Lines break wherever they are full.
    assert "bad.htmlwasnotwritten" in "".join(capsys.readouterr().err.split())


def test_files_that_cannot_be_written_are_refused_before_the_run(
    text: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "a.json")
    words = ["report", str(demo.MODEL_DIR), "--text", str(text), "--out", str(tmp_path / "a.json")]
    for more, why in (
        (["--out", str(tmp_path / "folder.html")], "is a folder"),
        (["--out", str(tmp_path / "nowhere" / "a.json")], "there is no folder"),
        (["--out", str(tmp_path / "link.json")], "are the same file"),
        (["--checkpoint", str(tmp_path / "a.json")], "are the same file"),
        (["--checkpoint", str(tmp_path)], "is a folder"),
        (["--memory-budget", "inf"], "is not a positive number of gigabytes"),
        (["--examples", "1" * 30], "is no whole number"),
        (["--shard", f"0/{'9' * 99}"], "is no shard"),
    ):
        assert why in _refused(capsys, *words, *more)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.html", "link.json"]


@pytest.mark.slow
def test_symmetries_are_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    words = [
        "symmetries",
        str(demo.MODEL_DIR),
        "--sites",
        "blocks.0.mlp.hook_*",
        "*.hook_resid_mid",
    ]
    assert main(words) == 0
    out = capsys.readouterr().out
    joined = re.sub(r"\s+", "", out)
    headings = ("site", "group", "privileges", "certificate", "because")
    for expected in (*headings, "orthogonal", "AXES", "NONE", "holds"):
        assert expected in joined
    # What repeats from block to block is one row.
    assert "blocks.*.hook_resid_mid(4)" in joined
    assert "blocks.0.attn" not in joined
    assert "permutation" in joined


@pytest.mark.slow
def test_a_saved_report_is_shown_and_written_again(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fake_report().save(tmp_path / "r.json")
    assert main(["show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "privileged" in shown
    assert "Can stories260k (LlamaForCausalLM) be read neuron by neuron?" in shown
    other, page = tmp_path / "again.json", tmp_path / "again.md"
    assert main(["show", str(path), "--out", str(other), "--out", str(page)]) == 0
    assert other.read_text(encoding="utf-8") == path.read_text(encoding="utf-8")
    assert page.is_file()


@pytest.mark.parametrize("installed", [True, False])
def test_the_version(
    installed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(name: str) -> str:
        if not installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return f"7.8.9 of {name}"

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(SystemExit) as leaving:
        main(["--version"])
    assert leaving.value.code == 0
    said = capsys.readouterr().out
    assert said == (
        "basis-probe 7.8.9 of basis-probe\n"
        if installed
        else "basis-probe (run from its sources, not installed)\n"
    )


@pytest.mark.parametrize("command", [c.name for c in COMMANDS])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main([command, "--help"])
    assert leaving.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: basis-probe {command}" in said
    assert "examples:\n  " in said
    assert "--json" in said
    assert "exit status:" in said


# --- what it refuses ------------------------------------------------------------------------------


def test_words_that_make_no_command(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    assert "the following arguments are required: COMMAND" in _refused(capsys)
    assert "invalid choice: 'prove'" in _refused(capsys, "prove")
    assert "required: --text" in _refused(capsys, "report", "model")
    assert "'0' is no whole number of at least 1" in _refused(capsys, "demo", "--texts", "0")
    assert "invalid choice: 'none'" in _refused(capsys, "demo", "--null", "none")
    assert tuple(NULLS) == NULL_NAMES
    said = _refused(capsys, "demo", "--out", str(tmp_path / "r.doc"))
    assert "r.doc' must end in .html, .htm, .json, .csv, .md, .tex, .pdf" in said
    said = _refused(capsys, "demo", "--out", str(tmp_path / "nowhere" / "r.html"))
    assert f"there is no folder {tmp_path / 'nowhere'}" in said
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_not_there(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    said = _refused(capsys, "show", str(tmp_path / "r.json"))
    assert said.startswith("basis-probe show: there is no file")
    assert "give a report saved as .json" in said
    said = _refused(capsys, "report", str(demo.MODEL_DIR), "--text", str(tmp_path / "t.txt"))
    assert said.startswith("basis-probe report: there is no file")
    assert "--text takes a plain text file" in said


def test_what_is_refused_is_said_in_however_few_columns(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns in ("0", "1", "-5", "abc"):
        monkeypatch.setenv("COLUMNS", columns)
        assert "there is no file" in _refused(capsys, "show", str(tmp_path / "r.json"))


def test_files_of_a_model_are_not_written_over(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    model, text = tmp_path / "model", tmp_path / "t.txt"
    model.mkdir()
    text.write_text("a b c")
    for name in ("config.json", "model.safetensors"):
        (model / name).write_text("{}")
    (tmp_path / "link.json").symlink_to(model / "config.json")
    words = ["report", str(model), "--text", str(text)]
    for out in (model / "config.json", tmp_path / "link.json"):
        assert "is a file of the model" in _refused(capsys, *words, "--out", str(out))
    shard = ["--shard", "0/2", "--out", str(model / "model.safetensors")]
    assert "is a file of the model" in _refused(capsys, *words, *shard)
    assert {path.read_text() for path in model.iterdir()} == {"{}"}
    # A report that was written there before is replaced.
    fake_report().save(model / "r.json")
    said = _refused(capsys, *words, "--out", str(model / "r.json"))
    assert "is a file of the model" not in said and "lacks the tokenizer" in said


def test_what_is_no_report(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "r.json"
    for content, message in (
        (b"<html>", "not a basis_probe report: not JSON"),
        (b'{"basis_probe": 99}', "the report has format 99"),
        (b'{"basis_probe": 1, "report": 1}', "damaged at"),
        (b"\xff\xfe\x00", "not a basis_probe report: not JSON"),
    ):
        path.write_bytes(content)
        assert message in _refused(capsys, "show", str(path))


def test_models_that_cannot_be_had(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, text: pathlib.Path
) -> None:
    said = _refused(capsys, "symmetries", "nobody/no-such-model")
    assert "'nobody/no-such-model' is no local folder and could not be had from the Hugging" in said
    assert "give its folder" in said
    said = _refused(capsys, "report", "./nowhere", "--text", str(text))
    assert "there is no folder './nowhere': needs a local folder as save_pretrained" in said
    said = _refused(capsys, "symmetries", str(tmp_path))
    assert "lacks config.json, the weights (model.safetensors), the tokenizer" in said


def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str], text: pathlib.Path) -> None:
    for words in (["demo"], ["report", str(demo.MODEL_DIR), "--text", str(text)]):
        said = _refused(capsys, *words, "--device", "cuda:99")
        assert "device='cuda:99' cannot be used here" in said
    assert "device='meta' holds no numbers" in _refused(capsys, "demo", "--device", "meta")


@pytest.mark.slow
def test_sites_that_are_not_there(
    bridge: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "load", lambda *_: bridge)
    monkeypatch.setattr("basis_probe.model.load.from_directory", lambda *_, **__: bridge)
    said = _refused(capsys, "demo", "--texts", "2", "--sites", "blocks.0.mlp.hook_pots")
    assert said.startswith("basis-probe demo: no site matches 'blocks.0.mlp.hook_pots'; nearest: ")
    assert "blocks.0.mlp.hook_post" in said
    said = _refused(capsys, "symmetries", str(demo.MODEL_DIR), "--sites", "blocks.0.mlp.hook_pots")
    assert "no site matches 'blocks.0.mlp.hook_pots'; nearest: " in said


def test_a_text_that_is_too_short(
    bridge: Any,
    capsys: pytest.CaptureFixture[str],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("basis_probe.model.load.from_directory", lambda *_, **__: bridge)
    path = tmp_path / "short.txt"
    path.write_text("two words", encoding="utf-8")
    said = _refused(capsys, "report", str(demo.MODEL_DIR), "--text", str(path))
    assert re.search(r"the text has \d+ tokens, fewer than one example of 128; give a longer", said)
    path.write_text("", encoding="utf-8")
    assert "the text has 0 tokens" in _refused(
        capsys, "report", str(demo.MODEL_DIR), "--text", str(path)
    )


# --- what goes wrong on the way -------------------------------------------------------------------


class Broken(torch.nn.Module):
    """A model that fails in its third batch."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.inner, self.error, self.calls = torch.nn.Linear(4, 4), error, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 4:
            raise self.error("on purpose")
        return self.inner(x)


def _broken_demo(monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    def load(*_: Any) -> torch.nn.Module:
        return Broken(error)

    def texts(count: int, seed: int) -> torch.Tensor:
        return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))

    monkeypatch.setattr(demo, "load", load)
    monkeypatch.setattr(demo, "texts", texts)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_was_gathered_is_written_when_a_run_breaks(
    error: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _broken_demo(monkeypatch, error)
    path = tmp_path / "r.json"
    words = ["demo", "--texts", "500", "--batch-size", "120", "--sites", "inner"]
    status = main([*words, "--out", str(path)])
    captured = capsys.readouterr()
    report = bp.Report.from_json(path.read_text(encoding="utf-8"))
    assert report.partial
    # The first look at the model is none of its calls.
    assert report["inner"].n_samples == 360
    assert status == (1 if error is RuntimeError else 130)
    if error is RuntimeError:
        assert "batch 3 failed: RuntimeError: on purpose" in re.sub(r"\s+", " ", captured.err)
    assert "Traceback" not in captured.err


def test_an_interrupt_before_the_first_batch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "load", interrupted)
    assert main(["demo"]) == 130
    assert "interrupted before anything was measured" in capsys.readouterr().err


def test_debugging_shows_where_an_error_came_from(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="not a basis_probe report"):
        path = tmp_path / "r.json"
        path.write_text("nothing", encoding="utf-8")
        main(["--debug", "show", str(path)])


def test_the_words_of_this_process_are_the_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["basis-probe", "show", "nowhere.json"])
    assert main() == 2
    assert "there is no file nowhere.json" in capsys.readouterr().err


# --- for whom it speaks ---------------------------------------------------------------------------


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("before", [True, False])
def test_json_for_a_program(
    before: bool, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fake_report().save(tmp_path / "r.json")
    words = ["show", str(path)]
    assert main(["--json", *words] if before else [*words, "--json"]) == 0
    captured = capsys.readouterr()
    assert bp.Report.from_json(captured.out) == fake_report()
    assert captured.err == ""


def test_json_in_place_of_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _broken_demo(monkeypatch, RuntimeError)
    monkeypatch.chdir(tmp_path)
    words = ["demo", "--texts", "250", "--batch-size", "250", "--sites", "inner"]
    assert main([*words, "--examples", "0", "--json"]) == 0
    assert bp.Report.from_json(capsys.readouterr().out).sites == ("inner",)
    assert list(tmp_path.iterdir()) == []


def test_symmetries_as_json(
    bridge: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("basis_probe.model.load.from_directory", lambda *_, **__: bridge)
    words = ["symmetries", "anything", "--sites", "blocks.0.mlp.hook_post", "--no-certificates"]
    assert main([*words, "--json"]) == 0
    [entry] = json.loads(capsys.readouterr().out)
    assert entry["site"] == "blocks.0.mlp.hook_post"
    assert (entry["privileges"], entry["certificate"]) == ("AXES", None)
    assert entry["unproved"]


def test_quiet_says_nothing_and_still_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _broken_demo(monkeypatch, RuntimeError)
    monkeypatch.chdir(tmp_path)
    words = ["demo", "--texts", "250", "--batch-size", "250", "--sites", "inner"]
    assert main([*words, "--examples", "0", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["basis_probe_demo.html"]
    assert main(["--quiet", "show", "nowhere.json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "there is no file nowhere.json" in captured.err


def test_a_fault_nobody_foresaw_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: Any) -> None:
        raise KeyError("unforeseen")

    monkeypatch.setattr(demo, "load", load)
    assert main(["demo"]) == 1
    captured = capsys.readouterr()
    said = re.sub(r"\s+", " ", captured.err)
    assert "Traceback" not in said
    assert "basis-probe demo: 'unforeseen' (KeyError; --debug shows where it came from)" in said
    with pytest.raises(KeyError, match="unforeseen"):
        main(["demo", "--debug"])


# --- the rest of it -------------------------------------------------------------------------------


def test_the_doctor_says_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    checks = {check["what"]: check for check in json.loads(capsys.readouterr().out)}
    assert checks["python"]["found"] == ".".join(map(str, sys.version_info[:3]))
    assert checks["torch"]["found"] == importlib.metadata.version("torch")
    assert checks["torch"]["needed"]
    assert all(check["fine"] for check in checks.values())
    assert main(["doctor"]) == 0
    assert "everything that is needed is there" in capsys.readouterr().out


def test_the_doctor_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs = ["torch>=99", "a-package-nobody-wrote>=2", "only-for-tests>=1; extra == 'dev'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: needs)
    monkeypatch.setattr(demo, "MODEL_DIR", tmp_path)
    assert main(["doctor"]) == 1
    captured = capsys.readouterr()
    said = re.sub(r"\s+", " ", captured.err)
    assert "needed: >=99" in said
    assert "a-package-nobody-wrote: not installed, needed: >=2" in said
    assert "demo model: lacks config.json, model.safetensors, tokenizer.json" in said
    assert "only-for-tests" not in captured.out + captured.err
    assert "something is missing" in captured.out


@pytest.fixture(params=["absent", "too old", "broken"])
def unusable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An environment whose TransformerLens cannot be used, and what is to be said of it."""
    found = importlib.metadata.version

    def version(name: str) -> str:
        if name == "transformer-lens" and request.param != "broken":
            if request.param == "absent":
                raise importlib.metadata.PackageNotFoundError(name)
            return "3.9.0"
        return found(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setitem(sys.modules, "transformer_lens", None)
    return {
        "absent": "transformer-lens is not installed",
        "too old": "transformer-lens 3.9.0 is too old",
        "broken": "transformer-lens is installed but cannot be imported (ModuleNotFoundError",
    }[request.param]


@pytest.mark.sample(default=1)
def test_without_a_usable_transformerlens_the_demo_probes_the_model_itself(
    unusable: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "r.json"
    words = ["demo", "--texts", "6", "--sites", "model.layers.1", "--examples", "1"]
    assert main([*words, "--out", str(data)]) == 0
    said = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert unusable in said and "pip install 'transformer-lens>=4,<5'" in said
    report = bp.Report.load(data)
    assert report.sites == ("model.layers.1",)
    found = report["model.layers.1"].examples
    # Its tokens have names, not numbers.
    assert found is not None and not found.axes[0].contexts[0].tokens[0].isdecimal()


def test_without_a_usable_transformerlens_names_are_refused_and_the_doctor_says_why(
    unusable: str, text: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = _refused(capsys, "report", str(demo.MODEL_DIR), "--text", str(text))
    assert unusable in said and "give the model itself to basis_probe.probe" in said
    with pytest.raises(BridgeError, match="sae-lens, asks for an older one"):
        demo.load()
    assert main(["doctor"]) == 1
    said = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert f"TransformerBridge: {unusable}" in said
    assert "plain PyTorch and Hugging Face models are probed without it" in said
    assert main(["doctor", "--json"]) == 1
    checks = {check["what"]: check["found"] for check in json.loads(capsys.readouterr().out)}
    assert main(["doctor"]) == 1
    [line] = [
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("TransformerBridge")
    ]
    assert line.rstrip().endswith("missing" if "is not installed" in unusable else "does not fit")
    assert checks["TransformerBridge"] == unusable or "cannot be imported" in unusable
    if "too old" in unusable:
        assert "transformer-lens: 3.9.0, too old, needed: <5,>=4" in said


@pytest.mark.slow
@pytest.mark.parametrize("words", [["show", "{report}"], ["show", "{report}", "--json"]])
def test_a_pipe_that_is_closed_early_is_no_error(words: list[str], tmp_path: pathlib.Path) -> None:
    report = wide_report(600, frames=9, dim=8).save(tmp_path / "r.json")
    line = [word.format(report=report) for word in words]
    with subprocess.Popen(
        [sys.executable, "-m", "basis_probe", *line],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (0, b"")


def test_a_report_is_on_disk_before_it_is_shown(tmp_path: pathlib.Path) -> None:
    class Gone:
        def show(self, what: object) -> None:
            raise BrokenPipeError

        say = give = show

    paths = [tmp_path / "r.json", tmp_path / "r.csv"]
    parsed = argparse.Namespace(out=paths, json=False)
    with pytest.raises(BrokenPipeError):
        write(wide_report(3, frames=9, dim=8), parsed, cast(Screen, Gone()))
    assert all(path.stat().st_size for path in paths)


def test_fish_completes_commands_options_and_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fish"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for command in COMMANDS:
        offered = f"complete -c basis-probe -n __fish_use_subcommand -a {command.name} -d "
        assert [line for line in lines if line.startswith(offered)]
    within = (
        "complete -c basis-probe -n '__fish_seen_subcommand_from demo' -l null -r -a 'rotation "
    )
    assert [line for line in lines if line.startswith(within)]
    files = [line for line in lines if "_from show' " in line and " -F " in line]
    assert len(files) == 2
    # Every word is quoted whole.
    for line in lines[1:]:
        assert shlex.split(line)[:3] == ["complete", "-c", "basis-probe"]


def test_bash_completes_commands_options_and_files(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out, encoding="utf-8")
    (tmp_path / "saved.json").touch()

    def completed(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in words)
        code = (
            f"source '{script}'; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; "
            "$(complete -p basis-probe | sed 's/.*-F \\([^ ]*\\).*/\\1/'); "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        run = subprocess.run(
            [bash, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        return run.stdout.split()

    assert completed("basis-probe", "sy") == ["symmetries"]
    assert completed("basis-probe", "demo", "--te") == ["--texts"]
    assert completed("basis-probe", "show", "sav") == ["saved.json"]


@pytest.mark.slow
def test_the_package_runs_as_a_module() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "basis_probe", "show", "nowhere.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "there is no file nowhere.json" in run.stderr
