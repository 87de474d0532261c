"""`basis-probe demo`: the language model that comes with the package."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from basis_probe.cli.arguments import add_probing, positive
from basis_probe.cli.command import Command, Status
from basis_probe.cli.probing import probe_and_write

if TYPE_CHECKING:
    from basis_probe.cli.screen import Screen


class DemoCommand(Command):
    """Probes the model that comes with the package."""

    name = "demo"
    summary = "probe the language model that comes with basis_probe, and write a report"
    examples = (
        ("basis-probe demo", "write basis_probe_demo.html; open it in a browser"),
        ("basis-probe demo --texts 32 --sites 'blocks.*.mlp.hook_post'", "a quick look at neurons"),
    )

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        add_probing(parser, out="basis_probe_demo.html", examples=5)
        parser.add_argument("--texts", type=positive, default=256, help="documents (default 256)")

    def run(self, parsed: argparse.Namespace, screen: Screen) -> Status:
        import torch

        from basis_probe import demo
        from basis_probe.model.load import BridgeError
        from basis_probe.model.network import device_of

        threads = torch.get_num_threads()
        texts = demo.texts(parsed.texts, seed=1)
        size = parsed.batch_size
        data = [texts[start : start + size] for start in range(0, len(texts), size)]
        try:
            # The model is so small that threads would wait for each other more than they compute.
            torch.set_num_threads(1)
            device = device_of(parsed.device)
            try:
                model: Any = demo.load(device)
            except BridgeError as error:
                screen.complain(f"{error}. The Hugging Face form of the model is probed instead")
                model, tokenizer = demo.load_hf()
                model.to(device).tokenizer = tokenizer
            return probe_and_write(model, data, parsed, screen, max_samples=None)
        finally:
            torch.set_num_threads(threads)
