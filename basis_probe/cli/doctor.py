"""`basis-probe doctor`: what is installed, and whether it is enough."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import platform
from typing import TYPE_CHECKING, Any

from basis_probe.cli.command import Command, Status

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet
    from rich.table import Table

    from basis_probe.cli.screen import Screen

PACKAGE = "basis-probe"


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        what: its name.
        found: what is there.
        needed: what is needed, or an empty string.
        fine: whether it is enough.
        remedy: what to do where it is not, or an empty string.
    """

    what: str
    found: str
    needed: str = ""
    fine: bool = True
    remedy: str = ""

    @property
    def state(self) -> str:
        """In a word or two."""
        if self.fine:
            return "ok"
        gone = self.found.startswith("lacks") or self.found.endswith("not installed")
        return "missing" if gone else "does not fit"


class DoctorCommand(Command):
    """Says what is installed."""

    name = "doctor"
    summary = "say which versions, devices and files there are, and what is missing"
    examples = (
        ("basis-probe doctor", "status 1 if something is missing"),
        ("basis-probe doctor --json", "to put into a bug report"),
    )

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """It takes no words of its own."""

    def run(self, parsed: argparse.Namespace, screen: Screen) -> Status:
        checks = [*_surroundings(), *_packages(), *_bridges(), *_devices(), _demo_model()]
        wrong = [check for check in checks if not check.fine]
        screen.show(_table(checks))
        screen.give([dataclasses.asdict(check) for check in checks])
        for check in wrong:
            needed = f", needed: {check.needed}" if check.needed else ""
            screen.complain(f"{check.what}: {check.found}{needed}{check.remedy}")
        screen.say("something is missing" if wrong else "everything that is needed is there")
        return Status.FAILED if wrong else Status.DONE


def _surroundings() -> list[Check]:
    return [
        Check("python", platform.python_version(), ">=3.10"),
        Check("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
    ]


def _packages() -> list[Check]:
    """The package itself and everything that it needs to run."""
    from packaging.requirements import Requirement

    try:
        own = importlib.metadata.version(PACKAGE)
        lines = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return [Check(PACKAGE, "run from its sources, not installed")]
    checks = [Check(PACKAGE, own)]
    for requirement in map(Requirement, lines):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        wanted = str(requirement.specifier)
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            remedy = f"; pip install '{requirement}'"
            checks.append(
                Check(requirement.name, "not installed", wanted, fine=False, remedy=remedy)
            )
            continue
        fine = requirement.specifier.contains(version, prereleases=True)
        found = version if fine else f"{version}, {_off(version, requirement.specifier)}"
        remedy = "" if fine else f"; pip install '{requirement.name}{wanted}'"
        checks.append(Check(requirement.name, found, wanted, fine=fine, remedy=remedy))
    return checks


def _off(version: str, wanted: SpecifierSet) -> str:
    """On which side of what is needed a version lies."""
    from packaging.version import Version

    lowest = [Version(one.version) for one in wanted if one.operator in (">=", ">", "==", "~=")]
    return "too old" if any(Version(version) < low for low in lowest) else "too new"


def _bridges() -> list[Check]:
    """Whether language models can be loaded by name: the one thing that needs TransformerLens."""
    from basis_probe.model.load import BridgeError, bridge_class

    try:
        bridge_class()
    except BridgeError as error:
        found = str(error).partition(", and a TransformerBridge")[0]
        told = (
            "; plain PyTorch and Hugging Face models are probed without it; "
            f"{str(error).partition('needs it: ')[2].partition('. Plain')[0]}"
        )
        return [Check("TransformerBridge", found, fine=False, remedy=told)]
    return [Check("TransformerBridge", "models are loaded by name")]


def _devices() -> list[Check]:
    import torch

    checks = [Check("cpu", f"{torch.get_num_threads()} threads for torch")]
    for index in range(torch.cuda.device_count()):
        found: Any = torch.cuda.get_device_properties(index)
        checks.append(Check(f"cuda:{index}", f"{found.name}, {found.total_memory / 2**30:.0f} GiB"))
    if torch.backends.mps.is_available():
        checks.append(Check("mps", "available; statistics run on the CPU, in float64"))
    if len(checks) == 1:
        checks.append(Check("accelerator", "none; models run on the CPU"))
    return checks


def _demo_model() -> Check:
    from basis_probe import demo

    missing = [
        name
        for name in ("config.json", "model.safetensors", "tokenizer.json")
        if not (demo.MODEL_DIR / name).is_file()
    ]
    if missing:
        return Check("demo model", f"lacks {', '.join(missing)}", "its files", fine=False)
    size = sum(path.stat().st_size for path in demo.MODEL_DIR.iterdir() if path.is_file())
    return Check("demo model", f"{size / 1e6:.1f} MB")


def _table(checks: list[Check]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("", "found", "needed", ""):
        table.add_column(heading, overflow="fold")
    for check in checks:
        mark = Text(check.state, "green" if check.fine else "bold red")
        table.add_row(Text(check.what), Text(check.found), Text(check.needed), mark)
    return table
