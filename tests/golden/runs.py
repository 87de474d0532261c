"""Runs of everything that the package does, on small models in float64 that are built here.

Each function below is one run. It returns what a user gets, in a plain form that JSON holds: what
it returned when it was last looked at lies in `values/`, and `test_golden.py` compares.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import pathlib
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from plain import plain
from torch import Tensor, nn

from basis_probe import (
    Attachment,
    Partial,
    Report,
    StreamError,
    ablate,
    attach,
    compare_layers,
    demo,
    dissect,
    observe,
    probe,
    probe_activations,
    rebasin,
    similarity,
    stitch,
    symmetries,
    top_examples,
)
from basis_probe.concepts import Effort as DissectionEffort
from basis_probe.statistics.nulls import Counterfactual as CounterfactualNull
from basis_probe.statistics.nulls import CovariancePreserving as CovarianceNull
from basis_probe.statistics.nulls import GaussianSurrogate as GaussianNull
from basis_probe.statistics.nulls import RandomWeights as RandomWeightsNull
from basis_probe.statistics.nulls import Rotation as RotationNull
from basis_probe.statistics.nulls import TurnedPreactivation as TurnedNull

Run = Callable[[], Any]
RUNS: dict[str, Run] = {}
SLOW: set[str] = set()
FEW = 49
"""Frames of a null where their number does not matter."""


def run(function: Run) -> Run:
    """Enters a run under its name."""
    RUNS[function.__name__] = function
    return function


def slow(function: Run) -> Run:
    """Enters a run that takes more than two seconds."""
    SLOW.add(function.__name__)
    return run(function)


# --- models and data ------------------------------------------------------------------------------


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def set_weights(model: nn.Module, seed: int) -> nn.Module:
    """The model in float64 and evaluation mode, every parameter and buffer drawn from the seed."""
    generator = draws(seed)
    model = model.double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.ndim > 1:
                fan = parameter[0].numel()
                parameter.copy_(noise / fan**0.5)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            else:
                parameter.copy_(1 + 0.2 * noise.abs())
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator).double())
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator).double())
    return model


class MLP(nn.Module):
    def __init__(self, act: nn.Module, *, inner: int = 20) -> None:
        super().__init__()
        self.up, self.act = nn.Linear(8, inner), act
        self.mid, self.down = nn.Linear(inner, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.mid(self.act(self.up(x)))))


class ResidualCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv1, self.norm1 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.relu, self.head = nn.ReLU(), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem_norm(self.stem(x)))
        x = self.relu(x + self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x))))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-12))


class Rotary(nn.Module):
    """Turns halves of a head against each other, by angles that grow with the position."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        speeds = 10.0 ** -torch.arange(half, dtype=x.dtype)
        angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * speeds
        angles = torch.cat([angles, angles], -1)
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * angles.cos() + turned * angles.sin()


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, kv: int, *, rotary: bool, causal: bool) -> None:
        super().__init__()
        size = dim // heads
        self.heads, self.kv, self.size, self.causal = heads, kv, size, causal
        self.q_proj, self.k_proj = nn.Linear(dim, heads * size), nn.Linear(dim, kv * size)
        self.v_proj, self.o_proj = nn.Linear(dim, kv * size), nn.Linear(heads * size, dim)
        self.rotary = Rotary() if rotary else nn.Identity()

    def split(self, x: Tensor, count: int) -> Tensor:
        return x.view(*x.shape[:2], count, self.size).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k = self.split(self.q_proj(x), self.heads), self.split(self.k_proj(x), self.kv)
        v, copies = self.split(self.v_proj(x), self.kv), self.heads // self.kv
        q, k = self.rotary(q), self.rotary(k)
        k, v = k.repeat_interleave(copies, 1), v.repeat_interleave(copies, 1)
        scores = q @ k.transpose(-1, -2) / self.size**0.5
        if self.causal:
            length = x.shape[1]
            ahead = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(ahead, float("-inf"))
        if mask is not None:
            scores = scores.masked_fill(mask[:, None, None, :] == 0, float("-inf"))
        z = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.o_proj(z)


class SwiGLU(nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(dim, inner, bias=False) for _ in range(2))
        self.down_proj, self.act_fn = nn.Linear(inner, dim, bias=False), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class LlamaBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(dim), RMSNorm(dim)
        self.self_attn = Attention(dim, 4, 2, rotary=True, causal=True)
        self.mlp = SwiGLU(dim, 20)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """RMSNorm, SwiGLU, grouped queries, rotary positions."""

    def __init__(self, *, layers: int = 2, dim: int = 16, tied: bool = False) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, dim)
        self.layers = nn.ModuleList(LlamaBlock(dim) for _ in range(layers))
        self.norm, self.lm_head = RMSNorm(dim), nn.Linear(dim, VOCABULARY, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


class BertBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention = Attention(dim, 4, 4, rotary=False, causal=False)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.intermediate, self.act = nn.Linear(dim, 24), nn.GELU()
        self.output = nn.Linear(24, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.output(self.act(self.intermediate(x))))


class Bert(nn.Module):
    """Post-norm, learned positions, padding masks."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(VOCABULARY, dim), nn.Embedding(12, dim)
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(BertBlock(dim) for _ in range(2))
        self.classifier = nn.Linear(dim, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.words(input_ids) + self.positions(places))
        for layer in self.layers:
            x = layer(x, attention_mask)
        return self.classifier(x)


VOCABULARY = 40


def rows(batches: int = 4, size: int = 60) -> list[Tensor]:
    """Batches of rows [row, 8] whose mean drifts."""
    generator = draws(1)
    return [
        torch.randn(size, 8, generator=generator, dtype=torch.float64) + 0.2 * number
        for number in range(batches)
    ]


def images(batches: int = 3, size: int = 6) -> list[Tensor]:
    generator = draws(2)
    return [
        torch.randn(size, 3, 6, 6, generator=generator, dtype=torch.float64) for _ in range(batches)
    ]


def ids(batches: int = 4, size: int = 6, length: int = 10) -> list[Tensor]:
    generator = draws(3)
    return [
        torch.randint(1, VOCABULARY, (size, length), generator=generator) for _ in range(batches)
    ]


def padded(batches: int = 4) -> list[dict[str, Tensor]]:
    """Sequences of unequal length, and masks that say where they end."""
    found = []
    for number, batch in enumerate(ids(batches)):
        mask = torch.ones_like(batch)
        for row in range(len(batch)):
            mask[row, 10 - (row + number) % 4 :] = 0
        found.append({"input_ids": batch * mask, "attention_mask": mask})
    return found


def relu() -> nn.Module:
    return set_weights(MLP(nn.ReLU()), 0)


def quiet(function: Run) -> Any:
    """The result, with the warnings of the package as part of it where there are any."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = function()
    words = sorted({f"{w.category.__name__}: {w.message}" for w in caught})
    return {"result": found, "warnings": words} if words else found


def probed(model: nn.Module, data: Any, **options: Any) -> Any:
    return quiet(lambda: plain(probe(model, data, progress=False, **options)))


# --- architectures, each through `probe` ----------------------------------------------------------


@run
def relu_mlp() -> Any:
    return probed(relu(), rows())


@run
def gelu_mlp() -> Any:
    return probed(set_weights(MLP(nn.GELU()), 1), rows(), seed=3)


@run
def prelu_mlp() -> Any:
    return probed(set_weights(MLP(nn.PReLU()), 2), rows())


@run
def residual_cnn() -> Any:
    model = set_weights(ResidualCNN(), 3)
    with torch.no_grad():
        # Hardly any pixel is zero in all channels: the kurtosis of such a row is rounding noise.
        model.stem_norm.bias.add_(2)
        model.norm1.bias.add_(1)
    return probed(model, images(), null=CounterfactualNull(frames=FEW))


@run
def swiglu_transformer() -> Any:
    return probed(set_weights(Llama(), 4), ids())


@run
def bert() -> Any:
    return probed(set_weights(Bert(), 5), padded())


@run
def tied_embeddings() -> Any:
    return probed(set_weights(Llama(layers=1, tied=True), 6), ids())


@slow
def demo_model() -> Any:
    model, tokenizer = demo.load_hf()
    texts = demo.texts(12, seed=1)
    batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=48)
    sites = ["model.layers.0", "model.layers.2.mlp.down_proj:in", "model.layers.1"]
    return probed(model.double(), [dict(batch)], sites=sites)


# --- ways to run ----------------------------------------------------------------------------------


@run
def observed_in_two_parts() -> Any:
    null = RotationNull(frames=FEW)
    parts = [
        observe(relu(), rows(), null=null, shard=(number, 2), progress=False) for number in range(2)
    ]
    with tempfile.TemporaryDirectory() as folder:
        saved = Partial.load(parts[1].save(pathlib.Path(folder) / "part.safetensors"))
        whole = parts[0] + saved
    return quiet(lambda: plain(whole.report(relu(), null=null, progress=False)))


class Interrupted:
    """Data that end in an error at a batch."""

    def __init__(self, data: list[Tensor], at: int) -> None:
        self.data, self.at = data, at

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.data[: self.at]
        raise RuntimeError("the power failed")


@contextlib.contextmanager
def hours_pass() -> Iterator[None]:
    """Minutes lie between any two looks at the clock, so that a checkpoint is always due."""
    minutes = itertools.count()
    with mock.patch("time.monotonic", lambda: 120.0 * next(minutes)):
        yield


@run
def checkpoint_after_an_interruption() -> Any:
    model, lengths = relu(), []
    model.up.register_forward_hook(lambda module, args, output: lengths.append(len(output)))
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"checkpoint": pathlib.Path(folder) / "run.safetensors"}
        options |= {"null": RotationNull(frames=FEW), "max_samples": 150}
        try:
            with hours_pass():
                probe(model, Interrupted(rows(), 2), progress=False, **options)
        except StreamError as error:
            first = {"error": str(error), "report": quiet(lambda: plain(error.report()))}
        lengths.clear()
        second = probed(model, rows(), **options)
    # Two batches of 60 rows were read before, and of the third 30 are needed.
    return {"first": first, "second": second, "batches of the second": lengths}


@run
def memory_budget() -> Any:
    null = RotationNull(frames=FEW, samples=64)
    return probed(relu(), rows(), memory_budget=60_000, null=null)


@run
def attached() -> Any:
    model = relu()

    def watched() -> Any:
        probe: Attachment
        with attach(model, seed=5, sites=["up", "act"]) as probe:
            for batch in rows():
                model(batch)
        return plain(probe.report())

    return quiet(watched)


@run
def activations_exact() -> Any:
    pre = torch.cat(rows()) @ torch.randn(8, 14, generator=draws(8), dtype=torch.float64)
    options: dict[str, Any] = {"pre": pre, "nonlinearity": "relu", "group": "permutation"}
    examples = torch.arange(len(pre)) // 4
    return quiet(lambda: plain(probe_activations(pre.relu(), examples=examples, **options)))


@run
def activations_fallback() -> Any:
    generator = draws(9)
    x = torch.randn(200, 9, generator=generator, dtype=torch.float64) ** 3
    x[:, 4] = 0
    return {
        "no group": quiet(lambda: plain(probe_activations(x))),
        "orthogonal": quiet(lambda: plain(probe_activations(x.numpy(), group="orthogonal"))),
        "permutation": quiet(lambda: plain(probe_activations(x, group="permutation", seed=2))),
    }


# --- options --------------------------------------------------------------------------------------


@run
def other_bases() -> Any:
    bases = ["pca", "varimax", "quartimax", "hadamard", "random"]
    sources = torch.rand(300, 5, generator=draws(11), dtype=torch.float64).sub(0.5)
    mixed = (sources.sign() * sources.abs().log().neg()) @ torch.randn(
        5, 5, generator=draws(12), dtype=torch.float64
    )
    return {
        "mlp": probed(relu(), rows(), sites=["up", "act"], bases=bases),
        # Independent sources, on which ICA settles.
        "mixed": quiet(lambda: plain(probe_activations(mixed, bases=["ica", "pca"]))),
    }


@run
def paths() -> Any:
    return probed(relu(), rows(), sites=["up", "act"], paths=3, null=RotationNull(frames=FEW))


@run
def examples() -> Any:
    model = set_weights(Llama(layers=1), 4)
    sites = ["layers.0", "layers.0.mlp.down_proj:in"]
    return {
        "probe": probed(model, ids(2), sites=sites, examples=2),
        "top": quiet(
            lambda: plain(top_examples(model, ids(), site=sites[1], axes=[0, 3], size=4, rotated=2))
        ),
    }


@run
def reference() -> Any:
    return probed(relu(), rows(), sites=["up", "act"], reference=set_weights(MLP(nn.ReLU()), 77))


@run
def random_weights() -> Any:
    return probed(relu(), rows(), sites=["up", "act"], null=RandomWeightsNull(frames=19))


@run
def nulls_by_choice() -> Any:
    found = {}
    for null in (
        RotationNull(frames=FEW, samples=100),
        CounterfactualNull(frames=FEW),
        CovarianceNull(frames=FEW),
        GaussianNull(frames=FEW),
        TurnedNull(frames=FEW),
    ):
        try:
            found[type(null).__name__] = probed(relu(), rows(), sites="act", null=null)
        except ValueError as error:
            found[type(null).__name__] = str(error)
    return found


@run
def groups_and_scores_by_choice() -> Any:
    return {
        "group": probed(relu(), rows(), sites="up", groups={"up": "orthogonal"}),
        "scores": probed(relu(), rows(), sites="act", scores=["kurtosis", "hoyer"]),
        "limited": probed(relu(), rows(), sites="mid", max_samples=70, seed=9),
    }


@run
def dead_axes_and_values_that_are_not_finite() -> Any:
    model, broken = relu(), rows()
    with torch.no_grad():
        model.up.weight[3] = 0
        model.up.bias[3] = -1
    broken[1][5, 2] = float("nan")
    return {"dead": probed(model, rows(), sites="act"), "NaN": probed(model, broken, sites="act")}


# --- the architecture alone -----------------------------------------------------------------------


@run
def symmetries_proved() -> Any:
    models: dict[str, tuple[nn.Module, Any]] = {
        "relu": (relu(), rows()[0][:4]),
        "cnn": (set_weights(ResidualCNN(), 3), images()[0][:2]),
        "llama": (set_weights(Llama(), 4), ids()[0][:2]),
        "bert": (set_weights(Bert(), 5), padded()[0]),
        "tied": (set_weights(Llama(layers=1, tied=True), 6), ids()[0][:2]),
    }
    found = {name: symmetries(model, example) for name, (model, example) in models.items()}
    return {
        name: {
            "reasons": by_reason(sites),
            "references": sorted({symmetry.reference for symmetry in sites.values()}),
            "certificates": {
                site: symmetry.unproved
                if symmetry.certificate is None
                else f"{symmetry.certificate.holds} {symmetry.certificate.stranger} "
                f"{symmetry.certificate.violation:.4g} {symmetry.unproved}"
                for site, symmetry in sites.items()
            },
            "printed": without_noise(str(sites).splitlines()),
        }
        for name, sites in found.items()
    }


@slow
def symmetries_of_families() -> Any:
    from families import FAMILIES

    found = {}
    for family in FAMILIES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                sites = symmetries(family.make(0), family.example(0), certificates=False)
            except (ValueError, RuntimeError, ImportError) as error:
                found[family.name] = f"{type(error).__name__}: {error}"
                continue
        found[family.name] = by_reason(sites)
    return found


def by_reason(sites: Any) -> dict[str, dict[str, str]]:
    """Reason -> group -> the names of the sites that have both."""
    found: dict[str, dict[str, str]] = {}
    for site, symmetry in sites.items():
        groups = found.setdefault(symmetry.because, {})
        group = f"{symmetry.group!r}, {symmetry.privileged.name}"
        groups[group] = f"{groups[group]} {site}" if group in groups else site
    return found


# --- two networks, concepts, causes ---------------------------------------------------------------


@run
def similar() -> Any:
    x = torch.cat(rows())
    turn = torch.linalg.qr(torch.randn(8, 8, generator=draws(4), dtype=torch.float64))[0]
    y = x @ turn + 0.3 * torch.randn(*x.shape, generator=draws(5), dtype=torch.float64)
    other = set_weights(MLP(nn.ReLU()), 7)
    groups = "orthogonal", "permutation", "general-linear", "signed-permutation"
    compared = {group: similarity(x, y, group=group) for group in groups}
    found: dict[str, Any] = {group: plain(one) for group, one in compared.items()}
    found["matrices"] = {group: plain(one.alignment.matrix) for group, one in compared.items()}
    found["cka"] = plain(similarity(x, y, measure="cka"))
    found["networks"] = quiet(lambda: plain(similarity(relu(), other, rows(), site="act")))
    found["layers"] = quiet(lambda: plain(compare_layers(relu(), other, rows())))
    return found


def labelled(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    with torch.no_grad():
        return [(batch, model(batch).argmax(1)) for batch in rows()]


@run
def stitched() -> Any:
    a, b = relu(), set_weights(MLP(nn.ReLU()), 7)
    return {
        "closed": plain(stitch(a, b, "act", labelled(b))),
        "linear": plain(stitch(a, b, "act", labelled(b), group="general-linear", epochs=1)),
    }


@run
def rebased() -> Any:
    a, b = relu(), set_weights(MLP(nn.ReLU()), 7)
    return plain(rebasin(a, b, labelled(a), points=3))


@run
def dissected() -> Any:
    model = set_weights(Llama(layers=1), 4)

    def concepts(batch: Tensor) -> dict[str, Tensor]:
        return {"even": batch % 2 == 0, "low": batch < 10, "seven": batch % 7 == 0}

    effort = DissectionEffort(shuffles=9, resamples=5)
    options: dict[str, Any] = {"frames": 19, "effort": effort, "progress": False}
    site = "layers.0.mlp.down_proj:in"
    return quiet(
        lambda: plain(dissect(model, ids(8), concepts, sites=site, measures="auc", **options))
    )


@run
def ablated() -> Any:
    model = set_weights(Llama(layers=1), 4)

    def loss(output: Tensor, batch: Any) -> Tensor:
        del batch
        return output[:, 1:].softmax(-1).square().mean()

    site = "layers.0.mlp.act_fn"
    found = ablate(model, ids(), site=site, axes=[0, 5, 9, 11], rotations=4, loss=loss)
    return {"effects": plain(found), "printed": str(found).splitlines()}


# --- what is shown --------------------------------------------------------------------------------


class VisibleText(HTMLParser):
    """What a reader of a page can read: no scripts, styles or drawings."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.hidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in ("script", "style", "svg"):
            self.hidden.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.hidden and self.hidden[-1] == tag:
            self.hidden.pop()

    def handle_data(self, data: str) -> None:
        if not self.hidden and data.strip():
            self.lines.append(" ".join(data.split()))


def visible(html: str) -> list[str]:
    parser = VisibleText()
    parser.feed(html)
    return parser.lines


def without_noise(lines: list[str]) -> list[str]:
    """The lines with numbers of the size of rounding errors, and the trailing spaces, left out."""
    noise = r"\b\d(\.\d+)?e[-\u2212]1[2-9]\b"
    return [re.sub(noise, "NOISE", line.replace("\\", "")).rstrip() for line in lines]


def stable(report: Report, lines: list[str]) -> list[str]:
    """The lines without versions and dates, which differ between machines."""
    versions = sorted(report.provenance.versions.values(), key=len, reverse=True)
    found: list[str] = []
    for line in without_noise(lines):
        for version in versions:
            line = line.replace(version, "VERSION")
        for digest in (report.provenance.model_digest, report.provenance.data_digest):
            line = line.replace(digest, "DIGEST") if digest else line
        found.append(re.sub(r"\b20\d\d-\d\d-\d\d\b", "DATE", line))
    return found


def shown(report: Report) -> dict[str, list[str]]:
    """The report as page, as fragment of a notebook, as Markdown, on a terminal, as a table."""
    from rich.console import Console

    texts: dict[str, str] = {"summary": str(report)}
    with tempfile.TemporaryDirectory() as folder:
        for ending in ("html", "md", "csv"):
            path = report.save(pathlib.Path(folder) / f"report.{ending}")
            texts[ending] = path.read_text(encoding="utf-8")
    texts["frame"] = str(list(report.to_dataframe().columns))
    lines = {name: text.splitlines() for name, text in texts.items() if name not in ("html", "csv")}
    lines["html"] = visible(texts["html"])
    lines["notebook"] = visible(report._repr_html_())
    lines["site"] = visible(report.site_reports[0]._repr_html_())
    with contextlib.suppress(ImportError):
        from basis_probe.show.terminal import render

        console = Console(file=io.StringIO(), width=100, record=True)
        console.print(render(report))
        lines["terminal"] = console.export_text().splitlines()
    return {name: stable(report, text) for name, text in lines.items()}


@run
def shown_mlp() -> Any:
    options: dict[str, Any] = {"bases": ["pca", "varimax"], "paths": 2}
    report = probe(relu(), rows(), sites=["up", "act"], progress=False, **options)
    again = Report.from_json(report.to_json())
    assert again == report and json.loads(report.to_json())
    return shown(again)


@run
def shown_transformer() -> Any:
    sites = ["layers.0", "layers.0.self_attn.o_proj:in", "layers.1.mlp.down_proj:in"]
    return shown(probe(set_weights(Llama(), 4), ids(), sites=sites, progress=False, examples=1))
