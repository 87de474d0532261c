"""The package keeps its shape: which file may know which, what importing costs, what is written."""

import ast
import compileall
import functools
import graphlib
import inspect
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


# From the ground up: a room imports only itself and what stands above it. A room is a folder, or a
# module beside the folders.
ROOMS = """
errors        what can go wrong
interrupts    Ctrl-C at moments at which nothing is lost by it
parallel      small jobs side by side
devices       where tensors are made
memory        what was freed, given back to the system
brief         values on one line, and as a small table
arguments     what users hand over, checked at once
files         files that are replaced as a whole
arrays        what users have measured already, read in blocks
algebra       groups of changes of basis: no model, no data
statistics    samples, nulls, scores and p-values: no model
results       every frozen finding, in its file form
show          pages, tables and figures: results and nothing else
model         what a model is and was seen to compute
architecture  facts, the group that follows, its proof
evidence      rows, the null, scores
verdict       both answers, the outcome and the sentence
run           one pass over the data
activations   the door for matrices
compare       two or more networks
concepts      what directions tell
observation   the door for a model and data
attachment    the door for what the user runs
demo          the model that comes with the package
calibration   how often the instrument errs
cli           the command line
"""
ORDER = [line.split()[0] for line in ROOMS.strip().splitlines()]

# A finding shows itself when asked to: these imports happen inside its methods.
SHOWS_ITSELF = ("results", "show")


def _room(module: str) -> str:
    return module.split(".")[0]


def _edges() -> dict[str, set[str]]:
    """Module -> the modules that it imports when it is run, wherever in it that happens."""
    known = {_module(path): path for path in SOURCES}
    edges: dict[str, set[str]] = {}
    for module, path in known.items():
        found: set[str] = set()
        for name in _of(path, with_types=False):
            below = name.removeprefix("basis_probe.")
            if name.startswith("basis_probe."):
                found.add(below if below in known else below.rpartition(".")[0])
        edges[module] = (found & set(known)) - {module, ""}
    return edges


def test_every_room_has_its_place() -> None:
    rooms = {_room(_module(path)) for path in SOURCES} - {"", "__main__"}
    assert rooms == set(ORDER)


def test_arrows_point_one_way() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, others in _edges().items()
        for other in others
        if module not in ("", "__main__")
        and ORDER.index(_room(other)) > ORDER.index(_room(module))
        and (_room(module), _room(other)) != SHOWS_ITSELF
    ]
    assert wrong == []


def test_there_is_no_circle() -> None:
    edges = {
        module: {other for other in others if (_room(module), _room(other)) != SHOWS_ITSELF}
        for module, others in _edges().items()
    }
    # What was seen of a part of the data concludes itself when asked to.
    edges["run.parts"] -= {"run.report"}
    # A package's file imports what lies in it, and is not what its modules import.
    graphlib.TopologicalSorter(edges).prepare()


def test_results_know_how_to_show_themselves_only_when_asked() -> None:
    for path, names in _below("results").items():
        shown = [name for name in names if _within(name, ("basis_probe.show",))]
        at_import: set[str] = set()
        for node in _runs_at_import(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                at_import |= _imports(node, _module(path), is_package=path.name == "__init__.py")
        assert not at_import & set(shown), f"{_module(path)} imports show at once"


def test_errors_need_nothing_of_the_package_to_be_raised() -> None:
    needed = {path: _of(path, with_types=False) for path in _below("errors")}
    assert _strangers(needed, ()) == []


@pytest.mark.parametrize(
    "name", ["", "groups", "nulls", "scores", "bases", "concepts", "compare", "results"]
)
def test_a_namespace_lists_its_public_names_only(name: str) -> None:
    import basis_probe

    space = getattr(basis_probe, name) if name else basis_probe
    assert sorted(dir(space)) == sorted(space.__all__)
    assert len(dir(space)) <= 60
    for public in dir(space):
        assert getattr(space, public) is not None
    taken: dict[str, object] = {}
    exec(f"from {space.__name__} import *", taken)
    assert set(taken) - {"__builtins__"} == set(dir(space))


def test_the_check_of_arrows_sees_every_way_of_importing() -> None:
    source = """
import basis_probe.model.trace
from basis_probe import model
from basis_probe.model import trace
def late():
    from ..model.trace import Trace
    from . import siblings
"""
    found = _imports(ast.parse(source), "statistics.moments", is_package=False)
    assert found == {
        "basis_probe.model.trace",
        "basis_probe.model",
        "basis_probe.model.trace.Trace",
        "basis_probe.statistics.siblings",
    }
    path = PACKAGE / "statistics" / "moments.py"
    assert len(_strangers({path: found}, ("algebra", "statistics", "errors"))) == 3
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
LIBRARIES = {
    "transformer_lens": ("model",),
    "transformers": ("model",),
    "matplotlib": ("show.canvas", "show.maps", "show.plots"),
    "rich": ("cli", "show"),
    "jinja2": ("show",),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_stays_in_its_room(library: str) -> None:
    strangers = [
        _module(path)
        for path in SOURCES
        if any(_within(name, (library,)) for name in _of(path, with_types=False))
        and not _within(_module(path), LIBRARIES[library])
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


_MADE = ("empty", "eye", "linspace", "logspace", "ones", "rand", "randn", "zeros")
"""What torch makes in its default type, unless it is told another."""


def test_no_tensor_is_made_in_the_default_type() -> None:
    """All threads share it: each number would be rounded as another thread likes it."""
    found: list[str] = []
    for path in SOURCES:
        if _room(_module(path)) in ("demo", "calibration"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in [
                f"torch.{m}" for m in _MADE
            ]:
                told = {word.arg: ast.unparse(word.value) for word in node.keywords}
                if "dtype" not in told and None not in told and told.get("device") != "'meta'":
                    found.append(f"{_module(path)}, line {node.lineno}: {ast.unparse(node)}")
    assert found == []


def test_no_file_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "util", "common", "helpers", "misc"}
    assert [str(path) for path in PACKAGE.rglob("*") if path.stem in drawers] == []


FORBIDDEN = re.compile(
    r"\bissue #?\d|\bthis session\b|\bnext session\b|\bplan\.md\b|\bTODO\b|\bFIXME\b|\bXXX\b"
    r"|/work/|/tmp/|/home/|/root/|\bDESIGN\.md\b|\bSTYLE\.md\b|\b20[2-9]\d-[01]\d-[0-3]\d\b",
    re.IGNORECASE,
)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_importing_brings_in_torch_and_little_else() -> None:
    # tqdm is not asked about: torch may bring it along.
    asked = tuple(name for name in HEAVY if name != "tqdm")
    code = (
        "import sys, torch; before = set(sys.modules); import basis_probe; basis_probe.probe; "
        f"print([name for name in {asked!r} if name in set(sys.modules) - before])"
    )
    assert _in_fresh_python(code).strip() == "[]"


@pytest.mark.parametrize("words", [["--help"], ["report", "--help"], ["completion", "bash"]])
def test_help_is_there_without_torch(words: list[str]) -> None:
    code = (
        "import sys; from basis_probe.cli import main\n"
        f"try: main({words!r})\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'numpy', 'rich') if name in sys.modules])"
    )
    heavy = _in_fresh_python(code).splitlines()[-1]
    assert heavy == ("['rich']" if words[0] == "completion" else "[]")


def test_no_module_has_the_name_of_a_public_function() -> None:
    import basis_probe

    for path in PACKAGE.iterdir():
        found = getattr(basis_probe, path.stem, None) if path.stem in basis_probe.__all__ else None
        assert found is None or inspect.ismodule(found), f"{path.stem}: importing it hides it"


IMPORT_BUDGET = 0.3


@pytest.mark.slow
def test_importing_costs_little_over_torch(tmp_path: pathlib.Path) -> None:
    # Of compiled files, as they are once installed; processor time of the import alone, so that a
    # busy machine does not count against it.
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name)
    assert compileall.compile_dir(tmp_path, quiet=1)
    code = (
        f"import sys, time, torch; sys.path.insert(0, {str(tmp_path)!r}); "
        "start = time.process_time(); import basis_probe; basis_probe.probe; "
        "took = time.process_time() - start; "
        "assert basis_probe.__file__.startswith(sys.path[0]); print(took)"
    )
    seconds = statistics.median(float(_in_fresh_python(code)) for _ in range(3))
    assert seconds <= IMPORT_BUDGET, f"import basis_probe takes {seconds:.2f} s over import torch"


@pytest.mark.slow
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
