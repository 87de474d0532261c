"""Compiled transformers: residual streams whose axes have labels, because a compiler wrote them."""

from __future__ import annotations

import importlib
import logging
import pathlib
import sys
import types
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import basis_probe as bp

from . import sources
from .entry import Entry, Notes, Settings, Verdict, span

_ANY_MAP = bp.groups.GeneralLinear
BOS = "compiler_bos"
CLEAR = 0.9


def run(notes: Notes, settings: Settings) -> None:
    """Programs compiled, probed on their axes and off them, and their labels recovered."""
    home = sources.package("tracr-pypi", "1.0.0", settings)
    notes.say(
        "[Tracr](https://arxiv.org/abs/2301.05062) compiles programs into transformers and gives "
        "every axis of the residual stream a variable and a value, so it is known what a method "
        "that reads axes must find. The compiler's matrices are put into a torch module (no norm, "
        "ReLU, a head for every selector) which answers as the programs do. Without a norm its "
        "group "
        "holds every invertible map: the architecture says nothing of the axes. Every value of "
        "every variable is a concept, its labels those that the program itself computes. A "
        f"concept is told where a direction, chosen on half of the texts, correlates by more than "
        f"{CLEAR} with it on the other half."
    )
    rows: list[list[str]] = []
    for name, make, vocabulary in _programs()[: settings.of(3, 2)]:
        compiled = _compile(home, make, vocabulary, length=settings.of(8, 6))
        rows.append(_measured(notes, name, compiled, settings))
    notes.table(
        ["program", "axes that vary", "kurtosis of a position: axes, turned", "axes (z of form)",
         "turned axes", "concepts", "told by axes", "by turned axes", "by ICA of turned axes",
         "by their own axis"],
        rows,
    )  # fmt: skip
    names = [row[0] for row in rows]
    told, turned, found, own, form, twin = (
        [notes.numbers[f"{name}/{key}"] for name in names]
        for key in ("told", "turned told", "ica told", "own", "form", "twin form")
    )
    notes.holds("form is claimed of the axes of every program", min(form) == 1)
    notes.holds("and of the turned axes of none", max(twin) == 0)
    notes.holds("axes tell more concepts than turned ones", min(told) > max(turned) + 0.3)
    notes.holds("nearly every concept is told by the axis that bears its name", min(own) > 0.7)
    notes.say(
        "The instrument finds what was put there, and loses it when it is turned away: form stands "
        "out on the axes of every program and on the turned axes of none. The axes tell "
        f"{span(told, '.0%')} of the concepts, and {span(own, '.0%')} are told by the axis that "
        f"bears their name; turned ones tell {span(turned, '.0%')}. FastICA of the turned axes, "
        f"which knows nothing of the original ones, brings back {span(found, '.0%')}: the m values "
        "of a variable exclude each other and span m - 1 dimensions, in which they are the corners "
        "of a simplex and not components at right angles; the smaller m, the further from it."
    )
    notes.row(
        "Axes of compiled transformers are the program's variables",
        f"{span(told, '.0%')} of their values told, {span(turned, '.0%')} by turned axes",
        f"form in {sum(form):.0f} of {len(names)}, turned {sum(twin):.0f}",
        Verdict.HOLDS,
    )


# --- the compiler, as far as it needs nothing but numpy -------------------------------------------


def _modules(home: pathlib.Path) -> dict[str, Any]:
    """The parts of the compiler that come before its assembly in another framework."""
    if str(home) not in sys.path:
        sys.path.insert(0, str(home))
    if "absl" not in sys.modules and importlib.util.find_spec("absl") is None:
        # All that is used of it is its logger.
        absl = types.ModuleType("absl")
        absl.logging = logging.getLogger("tracr")  # pyright: ignore[reportAttributeAccessIssue]
        sys.modules["absl"] = absl
    if "tracr.compiler" not in sys.modules:
        # Its own __init__ imports the assembly, which asks for jax and haiku.
        package = types.ModuleType("tracr.compiler")
        package.__path__ = [str(home / "tracr" / "compiler")]
        sys.modules["tracr.compiler"] = package
    names = "basis_inference craft_graph_to_model expr_to_craft_graph rasp_to_graph nodes lib"
    found = {name: importlib.import_module(f"tracr.compiler.{name}") for name in names.split()}
    found["bases"] = importlib.import_module("tracr.craft.bases")
    found["transformers"] = importlib.import_module("tracr.craft.transformers")
    found["rasp"] = importlib.import_module("tracr.rasp.rasp")
    return found


def _programs() -> list[tuple[str, Any, tuple[str, ...]]]:
    return [
        ("reverse", lambda t: t["lib"].make_reverse(t["rasp"].tokens), tuple("abcde")),
        ("histogram", lambda t: t["lib"].make_hist(), tuple("abcde")),
        (
            "pair balance",
            lambda t: t["lib"].make_pair_balance(t["rasp"].tokens, "(", ")"),
            ("(", ")", "a", "b"),
        ),
    ]


class Compiled(nn.Module):
    """[batch, 1 + length] numbers of words, the first for BOS -> the axes of the answer."""

    def __init__(
        self, labels: Sequence[Any], words: Sequence[str], length: int, answer: Sequence[int]
    ) -> None:
        super().__init__()
        self.labels, self.words, self.length = list(labels), [BOS, *words], length
        place = {(one.name, one.value): at for at, one in enumerate(labels)}
        table = torch.zeros(len(self.words), len(labels))
        for row, word in enumerate(self.words):
            table[row, place["tokens", word]] = 1
            table[row, place["one", None]] = 1
        places = torch.zeros(length + 1, len(labels))
        for at in range(length):
            if ("indices", at) in place:
                places[at + 1, place["indices", at]] = 1
        self.embed, self.places = nn.Parameter(table), nn.Parameter(places)
        self.blocks = nn.ModuleList()
        self.answer = nn.Linear(len(labels), len(answer), bias=False)
        self.answer.weight = nn.Parameter(torch.eye(len(labels))[list(answer)])

    def forward(self, words: Tensor) -> Tensor:
        return self.answer(self.stream(words))

    def stream(self, words: Tensor) -> Tensor:
        """The residual stream behind the last block, [batch, 1 + length, dim]."""
        stream = self.embed[words] + self.places[: words.shape[1]]
        for block in self.blocks:
            stream = block(stream)
        return stream


class Head(nn.Module):
    """What one head with full attention adds to the stream."""

    def __init__(self, bilinear: Tensor, moved: Tensor) -> None:
        super().__init__()
        size = len(moved)
        maps = bilinear.T, torch.eye(size), moved, torch.eye(size)
        self.query, self.key, self.value, self.out = (
            nn.Linear(size, size, bias=False) for _ in maps
        )
        for layer, weight in zip(self.children(), maps, strict=True):
            layer.weight = nn.Parameter(weight)

    def forward(self, stream: Tensor) -> Tensor:
        pattern = (self.query(stream) @ self.key(stream).transpose(1, 2)).softmax(-1)
        return self.out(pattern @ self.value(stream))


class Heads(nn.Module):
    """stream + what its heads add."""

    def __init__(self, heads: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(*maps) for maps in heads)

    def forward(self, stream: Tensor) -> Tensor:
        return stream + torch.stack([head(stream) for head in self.heads]).sum(0)


class Neurons(nn.Module):
    """stream + a layer of ReLU neurons."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        super().__init__()
        self.up = nn.Linear(first.shape[1], first.shape[0], bias=False)
        self.down = nn.Linear(second.shape[1], second.shape[0], bias=False)
        self.up.weight, self.down.weight = nn.Parameter(first), nn.Parameter(second)

    def forward(self, stream: Tensor) -> Tensor:
        return stream + self.down(torch.relu(self.up(stream)))


def _compile(
    home: pathlib.Path, make: Any, vocabulary: Sequence[str], *, length: int
) -> tuple[Compiled, Any, list[int], dict[str, Any]]:
    """The module, its program, the axes of the answer, and variables and what computes them."""
    t = _modules(home)
    program = make(t)
    extracted = t["rasp_to_graph"].extract_rasp_graph(program)
    graph = extracted.graph
    t["basis_inference"].infer_bases(graph, extracted.sink, set(vocabulary), length)
    direction = t["bases"].BasisDirection
    t["expr_to_craft_graph"].add_craft_components_to_rasp_graph(
        graph, bos_dir=direction("tokens", BOS), one_dir=direction("one"), mlp_exactness=100
    )
    model = t["craft_graph_to_model"].craft_graph_to_model(graph, extracted.sources)
    spaces = [model.residual_space]
    join = t["bases"].join_vector_spaces
    space = join(*spaces, t["bases"].VectorSpaceWithBasis(
        [direction("one"), direction("tokens", BOS), *(direction("tokens", w) for w in vocabulary),
         *(direction("indices", at) for at in range(length))]
    ))  # fmt: skip
    labels = sorted(space.basis)
    place = {label: at for at, label in enumerate(labels)}
    answer = [place[one] for one in extracted.sink[t["nodes"].OUTPUT_BASIS]]
    network = Compiled(labels, sorted(vocabulary), length, answer)
    for block in model.blocks:
        network.blocks.append(_block(block, place, t))
    expressions = {"tokens": t["rasp"].tokens, "indices": t["rasp"].indices} | {
        node[t["nodes"].OUTPUT_BASIS][0].name: node[t["nodes"].EXPR]
        for node in graph.nodes.values()
        if t["nodes"].OUTPUT_BASIS in node
    }
    return network.eval(), program, answer, expressions


def _block(block: Any, place: dict[Any, int], t: dict[str, Any]) -> nn.Module:
    size = len(place)

    def rows(basis: Sequence[Any]) -> Tensor:
        """[basis, size], which axis of the stream each is."""
        one_hot = torch.zeros(len(basis), size)
        for row, label in enumerate(basis):
            one_hot[row, place[label]] = 1
        return one_hot

    def matrix(values: Any) -> Tensor:
        return torch.from_numpy(np.asarray(values, dtype=np.float32))

    if isinstance(block, t["transformers"].MLP):
        first = (rows(block.fst.input_space.basis).T @ matrix(block.fst.matrix)).T
        second = (matrix(block.snd.matrix) @ rows(block.snd.output_space.basis)).T
        return Neurons(first, second)
    heads: list[tuple[Tensor, Tensor]] = []
    for head in block.as_multi().heads():
        bilinear = (
            rows(head.w_qk.left_space.basis).T
            @ matrix(head.w_qk.matrix)
            @ rows(head.w_qk.right_space.basis)
        )
        moved = (
            rows(head.w_ov.input_space.basis).T
            @ matrix(head.w_ov.matrix)
            @ rows(head.w_ov.output_space.basis)
        )
        heads.append((bilinear, moved.T))
    return Heads(heads)


# --- what is measured -----------------------------------------------------------------------------


def _texts(network: Compiled, count: int) -> Tensor:
    """[count, 1 + length] numbers of words; the first is BOS."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(1, len(network.words), (count, network.length), generator=generator)
    return torch.nn.functional.pad(words, (1, 0))


def _right(network: Compiled, program: Any, answer: Sequence[int], texts: Tensor) -> float:
    """Share of positions at which the module says what the program says."""
    with torch.no_grad():
        answers = network(texts)[:, 1:]
    hits: list[bool] = []
    for row, said in zip(texts[:, 1:].tolist(), answers, strict=True):
        expected = program([network.words[word] for word in row])
        for value, axes in zip(expected, said, strict=True):
            label = network.labels[answer[int(axes.argmax())]].value
            hits.append(label == value if len(answer) > 1 else abs(float(axes[0]) - value) < 1e-2)
    return sum(hits) / len(hits)


def _measured(notes: Notes, name: str, compiled: Any, settings: Settings) -> list[str]:
    network, program, answer, expressions = compiled
    texts = _texts(network, settings.of(600, 300))
    right = _right(network, program, answer, texts[:100])
    notes.holds(f"the module computes the program {name}", right == 1.0)
    with torch.no_grad():
        rows = network.stream(texts)[:, 1:].double().flatten(0, 1)
    varies = rows.std(0) > 1e-6
    rows = rows[:, varies]
    labels = [str(label) for label, kept in zip(network.labels, varies, strict=True) if kept]
    turned = rows @ bp.groups.Orthogonal(len(labels)).sample(torch.Generator().manual_seed(1))
    examples = torch.arange(len(texts)).repeat_interleave(network.length)
    reports = [
        bp.probe_activations(x, group="orthogonal", examples=examples) for x in (rows, turned)
    ]
    forms = [next(o for o in one.orders if o.order == "form") for one in reports]
    concepts = _concepts(network, expressions, texts)
    told, off, found = (_told(x, concepts) for x in (rows, turned, _components(turned)))
    flags = torch.stack(list(concepts.values()), 1).double()
    named = _correlations(rows[:, [labels.index(name) for name in concepts]], flags).diagonal()
    own = named > CLEAR
    group = bp.symmetries(network, texts[:4])["blocks.0"].group
    notes.holds(f"any map may act on the stream of {name}", isinstance(group, _ANY_MAP))
    shares = [float(one.double().mean()) for one in (told, off, found)]
    for key, value in (
        ("form", forms[0].claimed), ("twin form", forms[1].claimed), ("told", shares[0]),
        ("turned told", shares[1]), ("ica told", shares[2]), ("own", float(own.double().mean())),
        ("concepts", len(concepts)),
    ):  # fmt: skip
        notes.number(f"{name}/{key}", value)
    return [
        name, f"{len(labels)} of {len(network.labels)}",
        f"{_kurtosis(rows):.1f}, {_kurtosis(turned):.1f}",
        *(f"{one.verdict.outcome.name} ({form.effect:+.1f})" for one, form in
          zip(reports, forms, strict=True)),
        f"{len(concepts)}", *(f"{share:.0%}" for share in shares), f"{int(own.sum())}",
    ]  # fmt: skip


def _concepts(network: Compiled, expressions: dict[str, Any], texts: Tensor) -> dict[str, Tensor]:
    """Label -> at which positions the variable has the value, as the program itself computes it."""
    named = [label for label in network.labels if label.value is not None]
    names = {label.name for label in named}
    values: dict[str, list[Any]] = {name: [] for name in names}
    for row in texts[:, 1:].tolist():
        words = [network.words[word] for word in row]
        for name in names:
            values[name] += list(expressions[name](words))
    found = {}
    for label in named:
        flags = torch.tensor([value == label.value for value in values[label.name]])
        if flags.any() and not flags.all():
            found[str(label)] = flags
    return found


def _told(rows: Tensor, concepts: dict[str, Tensor]) -> Tensor:
    """Which concepts some direction tells: chosen on half of the texts, judged on the other.

    A concept is told if its flag and the direction correlate by more than `CLEAR`.
    """
    flags = torch.stack(list(concepts.values()), 1).double()
    half = len(rows) // 2
    chosen = _correlations(rows[:half], flags[:half]).max(0).indices
    judged = _correlations(rows[half:], flags[half:])
    return judged[chosen, torch.arange(len(chosen))] > CLEAR


def _correlations(rows: Tensor, flags: Tensor) -> Tensor:
    """[directions, concepts], absolute; 0 where one of the two does not vary."""
    parts = [x - x.mean(0) for x in (rows, flags)]
    parts = [x / x.norm(dim=0).clamp_min(1e-9) for x in parts]
    return (parts[0].T @ parts[1]).abs()


def _components(rows: Tensor) -> Tensor:
    """[samples, rank], what FastICA makes of the rows."""
    from sklearn.decomposition import FastICA

    rank = int(torch.linalg.matrix_rank(rows - rows.mean(0), rtol=1e-6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = FastICA(rank, random_state=0, max_iter=400).fit_transform(rows.numpy())
    return torch.from_numpy(found).double()


def _kurtosis(rows: Tensor) -> float:
    """The kurtosis of a position across axes, averaged over positions."""
    return float((rows.pow(4).mean(1) / rows.square().mean(1).square()).mean())


ENTRY = Entry(
    name="compiled",
    title="Compiled transformers",
    needs="the package tracr-pypi 1.0.0 (Apache 2.0) and networkx.",
    run=run,
)
