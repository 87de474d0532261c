"""Draws `rooms.svg`, the rooms of the package and what they import: `python docs/rooms.py`.

The rooms and their order are those of the list in `tests/test_structure.py`; a dot means that a
file of the room on that line imports one of the other room when it runs.
"""

from __future__ import annotations

import ast
import pathlib
from xml.sax.saxutils import escape

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "basis_probe"
WIDTH, LINE, LEFT = 960, 34, 150


def rooms() -> list[tuple[str, str]]:
    """Every room with what it is about, from the ground up."""
    tree = ast.parse((ROOT / "tests" / "test_structure.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ROOMS":
            text = ast.literal_eval(node.value)
            return [(line.split()[0], line.split(None, 1)[1]) for line in text.strip().splitlines()]
    raise SystemExit("tests/test_structure.py has no list of rooms")


def sources(room: str) -> list[pathlib.Path]:
    """The files of a room."""
    folder = PACKAGE / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]


def imports(room: str) -> set[str]:
    """The rooms that a room imports, for types only aside."""
    found: set[str] = set()
    for path in sources(room):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        typed = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and id(node) not in typed:
                parts = node.module.split(".")
                if parts[0] == "basis_probe" and len(parts) > 1:
                    found.add(parts[1])
    return found - {room}


def picture() -> str:
    """The rooms as an SVG: one line a room, what it imports as dots in the others' columns."""
    listed = rooms()
    names = [name for name, _ in listed]
    step = (WIDTH - LEFT - 330) / len(names)
    high = LINE * (len(names) + 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {high}" font-size="12" '
        'font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{high}" fill="#ffffff"/>',
    ]
    for row, (name, about) in enumerate(listed):
        y = LINE * (row + 1)
        parts.append(
            f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end" font-weight="bold">{name}</text>'
            f'<text x="{WIDTH - 320}" y="{y + 4}" fill="#333">{escape(about)}</text>'
            f'<line x1="{LEFT}" y1="{y}" x2="{LEFT + step * row}" y2="{y}" stroke="#ddd"/>'
            f'<circle cx="{LEFT + step * row}" cy="{y}" r="6" fill="#2f6f9f"/>'
        )
        for other in sorted(imports(name)):
            column = names.index(other)
            late = ' fill="none" stroke="#9f5f2f"' if column > row else ' fill="#9fbfd4"'
            parts.append(f'<circle cx="{LEFT + step * column}" cy="{y}" r="4"{late}/>')
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "rooms.svg").write_text(picture(), encoding="utf-8")
