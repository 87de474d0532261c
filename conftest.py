"""What holds for every test: no network, no picture window, no skip where all assets exist."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

# Before anything imports them: model libraries read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["WANDB_MODE"] = "disabled"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import annotations
import jaxtyping
import pytest
import tiers
import torch

annotations.check_shapes()

# Shells have what runs in their background ignore Ctrl-C; tests send it, and Python is to hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests run side by side in processes; threads within each would only get in each other's way.
torch.set_num_threads(1)

SKIPPING_IS_AN_ERROR = (
    os.environ.get("CI") == "true" and os.environ.get("BASIS_PROBE_REQUIRE_ASSETS") == "1"
)

_LOOPBACK = ("127.", "::1", "localhost")
_attempts: list[str] = []


def _forbid_network(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.connect":
        connecting, address = arguments
        if isinstance(connecting, socket.socket) and connecting.family == socket.AF_UNIX:
            return
        host = str(address[0] if isinstance(address, tuple) else address)
    elif event == "socket.getaddrinfo":
        if arguments[0] is None:
            return
        name = arguments[0]
        host = name.decode() if isinstance(name, bytes) else str(name)
    else:
        return
    if not host.startswith(_LOOPBACK):
        _attempts.append(host)
        raise ConnectionRefusedError(f"tests have no network: {host} was to be reached")


# An audit hook also sees what C extensions and other threads of this process do through `socket`.
sys.addaudithook(_forbid_network)


@pytest.fixture(autouse=True)
def shapes_are_checked() -> None:
    annotations.start_counting()


@pytest.fixture(autouse=True)
def no_network() -> Iterator[None]:
    """Fails a test that tries to leave the machine, also where the refusal was swallowed."""
    _attempts.clear()
    yield
    assert not _attempts, f"the test tried to reach {sorted(set(_attempts))}"


@pytest.fixture(autouse=True)
def settings_stay() -> Iterator[None]:
    """Fails a test that leaves settings of torch behind: numbers of tests after it would be others.

    With other threads sums are rounded in another way, and processes that are forked could hang.
    """
    before = _settings()
    yield
    after = _settings()
    torch.set_num_threads(before["threads"])
    torch.set_default_dtype(before["default type"])
    torch.set_grad_enabled(before["gradients"])
    left = {name: (before[name], after[name]) for name in before if after[name] != before[name]}
    assert not left, f"the test leaves settings of torch as others (before, after): {left}"


def _settings() -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "default type": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "functions watched": torch.overrides._len_torch_function_stack(),
    }


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where models run: the CPU, or what BASIS_PROBE_DEVICE names, such as cuda."""
    return torch.device(os.environ.get("BASIS_PROBE_DEVICE", "cpu"))


@pytest.fixture
def as_shipped() -> Iterator[None]:
    """The package as users have it: annotations are not checked, so its own errors speak."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


class NothingIsSkipped:
    """Turns every skip, of a test or of a whole file, into a failure."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Iterator[None]:
        report = yield
        return self._failed(report)

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Iterator[None]:
        report = yield
        return self._failed(report)

    def _failed(self, report):
        if report.skipped and not hasattr(report, "wasxfail"):
            report.outcome = "failed"
            report.longrepr = f"skipped, where nothing may be: {report.longrepr}"
        return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tiers.mark(items)


def pytest_configure(config: pytest.Config) -> None:
    if SKIPPING_IS_AN_ERROR:
        # As a plugin and not as hooks of this file, which would not see the package's doctests.
        config.pluginmanager.register(NothingIsSkipped())


@pytest.fixture(autouse=True, scope="session")
def doctest_names(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace["torch"] = torch
