"""The package keeps its shape: which file may know which, what importing costs, what is written."""

import ast
import compileall
import functools
import pathlib
import re
import shutil
import statistics
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "basis_probe"
SOURCES = sorted(PACKAGE.rglob("*.py"))


def _module(path: pathlib.Path) -> str:
    """The dotted name below the package: "statistics.moments"; "" for its root."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


class _WithoutTypes(ast.NodeTransformer):
    """Leaves out what only a type checker imports."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)


def _imports(tree: ast.AST, module: str, *, is_package: bool) -> set[str]:
    """Every module that the source may import, by its full name, wherever in it that happens."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = ["basis_probe", *filter(None, module.split("."))]
                kept = here[: len(here) - node.level + is_package]
                base = ".".join([*kept, *filter(None, [node.module])])
            # `from package import name` may import the module package.name.
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


@functools.cache
def _of(path: pathlib.Path, *, with_types: bool = True) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not with_types:
        tree = _WithoutTypes().visit(tree)
    return _imports(tree, _module(path), is_package=path.name == "__init__.py")


def _runs_at_import(node: ast.AST) -> list[ast.AST]:
    """What is executed when the file is imported: all but function bodies and type-only imports."""
    inside: list[ast.AST] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        inside += [child, *_runs_at_import(child)]
    return inside


def _within(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in allowed)


def _strangers(files: dict[pathlib.Path, set[str]], allowed: tuple[str, ...]) -> list[str]:
    """What the files import of the package beyond what is allowed."""
    return sorted(
        f"{_module(path)} imports {name}"
        for path, names in files.items()
        for name in names
        if _within(name, ("basis_probe",))
        and not _within(name, tuple(f"basis_probe.{part}" for part in allowed))
    )


IMPORTS = {path: _of(path) for path in SOURCES}


def _below(*parts: str) -> dict[pathlib.Path, set[str]]:
    chosen = {path: names for path, names in IMPORTS.items() if _within(_module(path), parts)}
    assert chosen, f"there is nothing below {parts}"
    return chosen


ARROWS = {
    "algebra": ("algebra", "errors", "brief"),
    "statistics": ("algebra", "statistics", "errors", "brief"),
    # A report shows itself: its methods call the presentation when they are called, not before.
    "records": ("records", "algebra", "errors"),
    "results": (
        "results",
        "records",
        "algebra.groups",
        "concepts.contexts",
        "statistics.multiplicity",
        "presentation",
        "errors",
        "brief",
    ),
    "brief": ("brief",),
    "presentation": (
        "concepts.findings",
        "concepts.contexts",
        "presentation",
        "results",
        "algebra.groups",
        "errors",
    ),
    # Adapters say what a model is; they compute no statistic and draw no picture.
    "adapters": ("adapters", "algebra", "results", "errors"),
}


@pytest.mark.parametrize("part", ARROWS)
def test_arrows_point_one_way(part: str) -> None:
    assert _strangers(_below(part), ARROWS[part]) == []


def test_before_during_and_after_the_data_come_in_this_order() -> None:
    order = ["watching", "problems", "reading", "concluding", "probe"]
    for place, part in enumerate(order):
        later = tuple(f"basis_probe.{name}" for name in order[place + 1 :])
        for path, names in _below(part).items():
            found = [name for name in names if _within(name, later)]
            assert not found, f"{_module(path)} imports {found}"


def test_errors_need_nothing_of_the_package_to_be_raised() -> None:
    needed = {path: _of(path, with_types=False) for path in _below("errors")}
    assert _strangers(needed, ()) == []


def test_results_know_of_the_presentation_only_when_asked_to_show() -> None:
    tree = ast.parse((PACKAGE / "results.py").read_text(encoding="utf-8"))
    at_import: set[str] = set()
    for node in _runs_at_import(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            at_import |= _imports(node, "results", is_package=False)
    assert at_import
    assert not [name for name in at_import if _within(name, ("basis_probe.presentation",))]


def test_the_check_of_arrows_sees_every_way_of_importing() -> None:
    source = """
import basis_probe.adapters.trace
from basis_probe import adapters
from basis_probe.adapters import trace
def late():
    from ..adapters.trace import Trace
    from . import siblings
"""
    found = _imports(ast.parse(source), "statistics.moments", is_package=False)
    assert found == {
        "basis_probe.adapters.trace",
        "basis_probe.adapters",
        "basis_probe.adapters.trace.Trace",
        "basis_probe.statistics.siblings",
    }
    path = PACKAGE / "statistics" / "moments.py"
    assert len(_strangers({path: found}, ARROWS["statistics"])) == 3
    assert _imports(ast.parse("from . import a"), "algebra", is_package=True) == {
        "basis_probe.algebra.a"
    }


def test_nobody_imports_the_root_of_the_package() -> None:
    siblings = {path.stem for path in PACKAGE.iterdir()}
    for path, names in IMPORTS.items():
        for name in names:
            if name.split(".")[0] == "basis_probe":
                assert name != "basis_probe", f"{_module(path)} imports the package root"
                # `from basis_probe import probe` would take a name from the root, not a module.
                assert name.split(".")[1] in siblings, f"{_module(path)} imports {name}"


# Which parts of the package may import what is large, or belongs to one concern only.
ROOMS = {
    "transformer_lens": ("adapters",),
    "transformers": ("adapters",),
    "matplotlib": ("presentation.plots", "presentation.plot", "presentation.heatmap"),
    "rich": ("cli", "presentation"),
    "jinja2": ("presentation",),
}


@pytest.mark.parametrize("library", ROOMS)
def test_a_library_stays_in_its_room(library: str) -> None:
    strangers = [
        _module(path)
        for path in SOURCES
        if any(_within(name, (library,)) for name in _of(path, with_types=False))
        and not _within(_module(path), ROOMS[library])
    ]
    assert strangers == []


def test_only_the_command_line_prints() -> None:
    for path in SOURCES:
        if _module(path) in ("cli", "__main__") or _within(_module(path), ("cli",)):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print",
                "sys.stdout.write",
                "sys.stderr.write",
            ):
                raise AssertionError(f"{_module(path)}, line {node.lineno}, prints")


def test_no_file_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "util", "common", "helpers", "misc"}
    assert [str(path) for path in PACKAGE.rglob("*") if path.stem in drawers] == []


FORBIDDEN = re.compile(
    r"\bissue #?\d|\bthis session\b|\bnext session\b|\bplan\.md\b|\bTODO\b|\bFIXME\b|\bXXX\b"
    r"|/work/|/tmp/|/home/|/root/|\bDESIGN\.md\b|\bSTYLE\.md\b|\b20[2-9]\d-[01]\d-[0-3]\d\b",
    re.IGNORECASE,
)


def test_sources_speak_of_their_subject_only() -> None:
    texts = [*SOURCES, *(path for path in PACKAGE.rglob("*.jinja"))]
    found = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in texts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if FORBIDDEN.search(line)
    ]
    assert found == []


HEAVY = (
    "transformer_lens",
    "transformers",
    "matplotlib",
    "pandas",
    "sklearn",
    "scipy",
    "jinja2",
    "rich",
    "tqdm",
)


def test_large_libraries_are_imported_where_they_are_used() -> None:
    for path in SOURCES:
        for node in _runs_at_import(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                is_package = path.name == "__init__.py"
                names = _imports(node, _module(path), is_package=is_package)
                heavy = [name for name in names if _within(name, HEAVY)]
                assert not heavy, f"{_module(path)} imports {heavy} as soon as it is imported"


def _in_fresh_python(code: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_importing_brings_in_torch_and_little_else() -> None:
    # tqdm is not asked about: torch may bring it along.
    asked = tuple(name for name in HEAVY if name != "tqdm")
    code = (
        "import sys, torch; before = set(sys.modules); import basis_probe; "
        f"print([name for name in {asked!r} if name in set(sys.modules) - before])"
    )
    assert _in_fresh_python(code).strip() == "[]"


IMPORT_BUDGET = 0.3


def test_importing_costs_little_over_torch(tmp_path: pathlib.Path) -> None:
    # Of compiled files, as they are once installed; processor time of the import alone, so that a
    # busy machine does not count against it.
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name)
    assert compileall.compile_dir(tmp_path, quiet=1)
    code = (
        f"import sys, time, torch; sys.path.insert(0, {str(tmp_path)!r}); "
        "start = time.process_time(); import basis_probe; took = time.process_time() - start; "
        "assert basis_probe.__file__.startswith(sys.path[0]); print(took)"
    )
    seconds = statistics.median(float(_in_fresh_python(code)) for _ in range(3))
    assert seconds <= IMPORT_BUDGET, f"import basis_probe takes {seconds:.2f} s over import torch"


def test_importing_has_no_consequences() -> None:
    code = """
import os, warnings, logging, torch
state = lambda: (
    dict(os.environ), torch.get_default_dtype(), torch.get_num_threads(), torch.initial_seed(),
    torch.is_grad_enabled(), list(warnings.filters), logging.getLogger().handlers[:], os.getcwd(),
)
before = state()
import basis_probe
print(before == state())
"""
    assert _in_fresh_python(code).strip() == "True"


def test_types_are_shipped() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_every_folder_of_sources_is_a_package() -> None:
    folders = {path.parent for path in SOURCES}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_shapes_are_checked_while_tests_run() -> None:
    import torch
    from jaxtyping import TypeCheckError

    from basis_probe.statistics.resampling import LeftOut

    with pytest.raises(TypeCheckError, match="samples dim"):
        LeftOut(torch.zeros(3), torch.zeros(3, dtype=torch.int64))
