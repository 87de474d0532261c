"""What the README and the examples show runs as it stands."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.slow
def test_the_readme_runs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = _blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(blocks) == 1
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert getattr(names["probe"], "passes") == 1  # noqa: B009


# Every example in a short form: what stands in it, and what is put in its place.
SHORT = {
    "quickstart": {"TEXTS = 96": "TEXTS = 12", "texts[:8]": "texts[:1]"},
    "torch_cnn": {"STEPS = 150": "STEPS = 4", "IMAGES = 256": "IMAGES = 64"},
    "raw_activations": {"SAMPLES = 4000": "SAMPLES = 600"},
    "rotation": {"TEXTS = 64": "TEXTS = 12"},
    "network_dissection": {"IMAGES = 400": "IMAGES = 48", "STEPS = 300": "STEPS = 150"},
    "adam_and_sgd": {"STEPS = 400": "STEPS = 2", "EVERY = 200": "EVERY = 2", "= 3000": "= 300"},
}


def _run(name: str) -> None:
    source = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    assert "# %%" in source
    for long, short in SHORT[name].items():
        assert source.count(long) == 1, f"{name} does not hold {long!r} once"
        source = source.replace(long, short)
    # The nulls are as many as they are in the whole form; samples are what is saved.
    exec(compile(source, f"{name}.py", "exec"), {"__name__": "__main__"})


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("name", ["raw_activations", "torch_cnn"])
def test_an_example_runs_in_a_short_form(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _run(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart", "rotation", "adam_and_sgd", "network_dissection"])
def test_a_longer_example_runs_in_a_short_form(
    name: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    _run(name)
    said = capsys.readouterr().out
    if name == "rotation":
        assert "certificate holds: True" in said
    if name == "adam_and_sgd":
        assert (tmp_path / "adam_and_sgd.png").stat().st_size > 5_000
        assert said.count("step    2: offset") == 3


def test_every_example_is_listed_and_run() -> None:
    listed = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "examples").glob("*.py"):
        assert f"]({path.name})" in listed, f"examples/README.md does not list {path.name}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_quickstart_notebook_runs_in_a_kernel(tmp_path: pathlib.Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    assert not [out for out in outputs if out.output_type == "error"]
    shown = [out.data for out in outputs if "data" in out]
    pages = [data["text/html"] for data in shown if "text/html" in data]
    assert any('class="bp fragment"' in page for page in pages)
    assert any("image/png" in data for data in shown)


@pytest.mark.slow
def test_the_quickstart_notebook_runs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]), "quickstart.ipynb", "exec"), names)
    said = capsys.readouterr().out
    assert "on the axes -> EMERGENT" in said and "rotated away -> ARBITRARY" in said


@pytest.mark.slow
def test_the_functional_network_runs(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location(
        "functional_network", ROOT / "examples" / "functional_network.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(steps=20)
    said = capsys.readouterr().out
    assert said.count("relu()") == 4


@pytest.mark.slow
def test_the_two_networks_run(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location(
        "two_networks", ROOT / "examples" / "two_networks.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(count=96, epochs=1, stitch_epochs=0, size=24)
    said = capsys.readouterr().out
    assert said.count("accuracy lost by stitching") == 2
    assert said.count("hold") == 16 and "nan" not in said
