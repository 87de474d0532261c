"""Runs the notebooks of tutorials/, keeps what they showed, and writes them as pages.

python docs/tutorials.py [NAME ...]
"""

from __future__ import annotations

import base64
import pathlib
import re
import sys
import tempfile
from typing import Any

import nbformat

FOLDER = pathlib.Path(__file__).with_name("tutorials")
# What changes from run to run, and says nothing.
CHANGES = re.compile(r"(PosixPath\('|<Figure size )[^\n]*")


def main(names: list[str]) -> None:
    """Runs the notebooks of these names, or all of them, and writes notebooks and pages anew."""
    from nbclient import NotebookClient

    for path in sorted(FOLDER.glob("*.ipynb")):
        if names and path.stem not in names:
            continue
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            resources = {"metadata": {"path": folder}}
            NotebookClient(
                notebook, timeout=600, kernel_name="python3", resources=resources
            ).execute()
        for cell in notebook.cells:
            cell.metadata.clear()
            if cell.cell_type == "code":
                cell.outputs = [kept for out in cell.outputs if (kept := _kept(out))]
        nbformat.write(notebook, path)
        for name, content in page(path).items():
            (FOLDER / name).write_bytes(content)


def _kept(output: Any) -> Any:
    """What a reader sees of an output; nothing of warnings and of names of figures."""
    if output.output_type == "stream":
        return output if output.name == "stdout" else None
    for kind in set(output.get("data", ())) - {"text/plain", "image/png"}:
        del output.data[kind]
    text = output.get("data", {}).get("text/plain", "")
    if "image/png" in output.get("data", ()):
        output.data.pop("text/plain", None)
    elif CHANGES.match(text):
        return None
    return output


def page(path: pathlib.Path) -> dict[str, bytes]:
    """A page in Markdown, and its pictures: name -> content."""
    notebook = nbformat.read(path, as_version=4)
    files: dict[str, bytes] = {}
    parts: list[str] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            if output.output_type == "stream":
                parts.append(f"```text\n{output.text.rstrip()}\n```")
            elif "image/png" in output.data:
                name = f"{path.stem}-{len(files)}.png"
                files[name] = base64.b64decode(output.data["image/png"])
                parts.append(f"![What the lines above draw]({name})")
            else:
                parts.append(f"```text\n{output.data['text/plain']}\n```")
    parts.append(f"*This page is [a notebook]({path.name}), as it was run.*")
    return {f"{path.stem}.md": ("\n\n".join(parts) + "\n").encode(), **files}


if __name__ == "__main__":
    main(sys.argv[1:])
