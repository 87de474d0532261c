"""Concepts as labels: which samples carry which, from arrays or from a function of a batch."""

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from basis_probe.arguments import array_of, instance
from basis_probe.brief import described
from basis_probe.concepts.tokens import TokenConcepts
from basis_probe.errors import DataError
from basis_probe.statistics.halves import Part, part_of

Concepts = (
    Mapping[str, Any]
    | Callable[[Any], Mapping[str, Any]]
    | TokenConcepts
    | Sequence[Mapping[str, Any] | Callable[[Any], Mapping[str, Any]] | TokenConcepts]
)
"""Name -> labels over all data in order, or a function from a batch to name -> its labels; or what
`token_concepts` gives; or several of these.

Labels are true or false (0 or 1) for every example [examples], token [examples, positions] or pixel
[examples, height, width]; per token also a list of one sequence for every example. Whole arrays of
integers or strings are categories, and make one concept for every value.
"""

FEWEST = 10
"""A concept with fewer samples, or missing from fewer, in either half of the data is left out."""


class Split(enum.Enum):
    """On which data concepts are chosen for directions, and scored."""

    HALVES = "chosen and thresholds fitted on half of the examples, scored on the others"
    NONE = "chosen and scored on all data, as published; scores are the best of many"


FIRST, SECOND, BOTH = 0, 1, 2
"""What a sample is used for: choosing, scoring, or both."""


def parts(halves: Int64[Tensor, " samples"]) -> tuple[Part, Part]:
    """Which samples choices are made on, and which they are scored on."""
    return part_of(halves != SECOND), part_of(halves != FIRST)


class Resolution(enum.Enum):
    """At which resolution maps of activations and maps of labels meet."""

    MAPS = "labels are reduced to the activations' resolution: true where half a cell or more is"
    LABELS = "activations are interpolated (bilinear) to the labels' resolution, as published"


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """Which samples carry which concept, and to which example each sample belongs.

    Attributes:
        names: of the concepts.
        values: [samples, concepts].
        examples: [samples], equal for samples of one example, which stand together.
        left_out: concept -> why it cannot be scored.
        counting: [samples, concepts], False where a sample does not count for a concept, because
            nothing of the concept's category is labelled in its example; None if all count.
    """

    names: tuple[str, ...]
    values: Bool[Tensor, "samples concepts"]
    examples: Int64[Tensor, " samples"]
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    counting: Bool[Tensor, "samples concepts"] | None = None

    def categorised(self, categories: Mapping[str, str]) -> "Labels":
        """The same, each concept counting in the examples that are labelled for its category.

        Args:
            categories: concept -> category; a concept that is not named counts everywhere.

        Raises:
            ValueError: for a concept that there is not.
        """
        unknown = [name for name in categories if name not in self.names]
        if unknown:
            raise ValueError(
                f"categories names {unknown[0]!r}, which is no concept; there are "
                f"{', '.join(self.names[:8])}"
            )
        index = self.examples.unique(return_inverse=True)[1]
        by_example = torch.zeros(int(index.max()) + 1, len(self.names), dtype=torch.float32)
        by_example.index_add_(0, index, self.values.float())
        there = torch.ones(by_example.shape, dtype=torch.bool)
        for category in set(categories.values()):
            own = [place for place, n in enumerate(self.names) if categories.get(n) == category]
            there[:, own] = (by_example[:, own] > 0).any(1, keepdim=True)
        return dataclasses.replace(self, counting=there[index])

    def usable(self, halves: Int64[Tensor, " samples"]) -> "Labels":
        """Those concepts that can be told in both halves; the others are named, with the reason.

        Args:
            halves: what every sample is used for: `FIRST`, `SECOND` or `BOTH`.

        Raises:
            ValueError: if none is left.
        """
        sizes = torch.tensor([len(halves[part]) for part in parts(halves)])
        counts = torch.stack([self.values[part].sum(0) for part in parts(halves)])
        missing = sizes[:, None] - counts
        left_out = dict(self.left_out)
        kept: list[int] = []
        for place, name in enumerate(self.names):
            true, false = counts[:, place], missing[:, place]
            if int(true.sum()) == 0:
                left_out[name] = "no sample carries it"
            elif int(false.sum()) == 0:
                left_out[name] = "every sample carries it"
            elif int(true.min()) < FEWEST:
                left_out[name] = (
                    f"{int(true[0])} and {int(true[1])} samples of the two halves carry it, "
                    f"{FEWEST} are needed in each"
                )
            elif int(false.min()) < FEWEST:
                left_out[name] = "nearly every sample carries it"
            else:
                kept.append(place)
        if not kept:
            why = "; ".join(f"{name}: {reason}" for name, reason in [*left_out.items()][:3])
            raise ValueError(f"none of the {len(self.names)} concepts can be scored ({why})")
        return Labels(
            tuple(self.names[place] for place in kept),
            self.values[:, kept],
            self.examples,
            left_out,
            None if self.counting is None else self.counting[:, kept],
        )


def expanded(concepts: Mapping[str, Any], *, categories: bool = True) -> dict[str, Any]:
    """Name -> bool tensor, or a list of bool tensors (one for every example) where rows differ.

    Args:
        concepts: name -> labels.
        categories: whether integers and strings may stand for categories; only where all data are
            seen at once, for otherwise the values are not known.

    Raises:
        TypeError: if they are no dict.
        DataError: for labels that are NaN, or neither true nor false.
    """
    instance("concepts", concepts, Mapping, "a dict from names to labels")
    found: dict[str, Any] = {}
    for name, values in concepts.items():
        for key, flags in _flags(str(name), values, categories=categories).items():
            if key in found:
                raise DataError(f"two concepts are called {key!r}: give each a name of its own")
            found[key] = flags
    if not found:
        raise DataError("there are no concepts: give at least one name with its labels")
    return found


def categories(values: Any, names: Sequence[str] | Mapping[int, str]) -> dict[str, Tensor]:
    """One concept for every category of an array of integers.

    Args:
        values: integers of any shape: classes, or the class of every pixel.
        names: what each integer is called; integers without a name make no concept.

    Raises:
        TypeError: for what are no integers, or no names.

    Example:
        >>> categories([0, 2, 1, 2], {1: "cat", 2: "dog"})["dog"]
        tensor([False,  True, False,  True])
    """
    given = array_of("values", values, "integers: the class of every example or pixel")
    if given.dtype.kind not in "iub":
        raise TypeError(f"values={described(values)}: give integers, the class of each")
    instance("names", names, (list, tuple, Mapping), "a list of names, or a dict from integers")
    codes = torch.from_numpy(given.astype(np.int64))
    items = names.items() if isinstance(names, Mapping) else enumerate(names)
    return {str(name): codes == code for code, name in items}


def _flags(name: str, values: Any, *, categories: bool) -> dict[str, Any]:
    if isinstance(values, list | tuple) and len(values) and np.ndim(values[0]) == 1:
        # One sequence for every example, as long as its tokens are many.
        rows = [np.asarray(row) for row in values]
        whole = _flags(name, np.concatenate(rows), categories=categories)
        cuts = np.cumsum([len(row) for row in rows])[:-1].tolist()
        return {key: list(flags.tensor_split(cuts)) for key, flags in whole.items()}
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim == 0:
        raise DataError(f"the labels of {name!r} are one {type(values).__name__}: give an array")
    if array.dtype == np.bool_:
        return {name: torch.from_numpy(array.copy())}
    if array.dtype.kind == "f":
        bad = int(np.isnan(array).sum())
        if bad:
            raise DataError(
                f"{bad} labels of {name!r} are NaN: say true or false of every sample, or leave "
                "those samples out of the data"
            )
    if array.dtype.kind in "fiu" and bool(((array == 0) | (array == 1)).all()):
        return {name: torch.from_numpy(array == 1)}
    if array.dtype.kind in "iuUSO" and categories:
        return {
            f"{name}={value}": torch.from_numpy(np.asarray(array == value))
            for value in np.unique(array[array == array]).tolist()
        }
    if array.dtype.kind in "iuUSO":
        raise DataError(
            f"the labels of {name!r} are neither true nor false: a function of a batch returns 0 "
            "and 1 for every concept, for it cannot know all categories (see `categories`)"
        )
    raise DataError(
        f"the labels of {name!r} hold {array.dtype} values that are neither 0 nor 1: give true or "
        "false, or integers or strings for categories"
    )


class Sources:
    """The labels of one batch after another, from everything the user gave.

    Args:
        concepts: one source of labels, or several.
    """

    def __init__(self, concepts: Concepts) -> None:
        several: Any = concepts if isinstance(concepts, list | tuple) else [concepts]
        if not several:
            raise DataError("concepts is empty: give a dict from names to labels, or several")
        self.each = [Source(one) for one in several]

    @property
    def examples(self) -> int | None:
        """How many examples are labelled; None if only a function knows."""
        sizes = [len(next(iter(one.whole.values()))) for one in self.each if one.whole is not None]
        return min(sizes, default=None)

    def of(self, raw: object, ids: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Name -> labels of the next batch, whatever source they come from.

        Args:
            raw: the batch as the user's iterable gave it.
            ids: what the examples consist of, [batch, ...]: token ids, images.
            mask: [batch, positions], where a token counts.

        Raises:
            DataError: as `Source.of`, or if two sources have a concept of one name.
        """
        found: dict[str, Tensor] = {}
        for source in self.each:
            for name, flags in source.of(raw, ids, mask).items():
                if name in found:
                    raise DataError(f"two sources have a concept {name!r}: rename one of them")
                found[name] = flags
        return found

    def finish(self) -> None:
        """Everything labelled was seen.

        Raises:
            DataError: if labels are left over.
        """
        for source in self.each:
            source.finish()


@dataclasses.dataclass
class Source:
    """The labels of one batch after another.

    Args:
        concepts: as the user gave them.
    """

    concepts: Mapping[str, Any] | Callable[[Any], Mapping[str, Any]] | TokenConcepts

    def __post_init__(self) -> None:
        self.seen = 0
        self.names: tuple[str, ...] = ()
        self.whole: dict[str, Any] | None = None
        if isinstance(self.concepts, Mapping):
            self.whole = expanded(self.concepts)
            self.names = tuple(self.whole)
            sizes = {name: len(flags) for name, flags in self.whole.items()}
            if len(set(sizes.values())) > 1:
                short, long = min(sizes, key=lambda n: sizes[n]), max(sizes, key=lambda n: sizes[n])
                raise DataError(
                    f"{long!r} labels {sizes[long]} examples and {short!r} {sizes[short]}: label "
                    "every example for every concept"
                )
        elif not callable(self.concepts):
            raise TypeError(
                f"concepts is a {type(self.concepts).__name__}: give a dict from names to labels, "
                "or a function from a batch to one"
            )

    def of(self, raw: object, ids: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Name -> labels of the next batch: [size], [size, positions] or [size, height, width].

        Args:
            raw: the batch as the user's iterable gave it.
            ids: what the examples consist of, [size, ...].
            mask: [size, positions], where a token counts.

        Raises:
            DataError: if there are not as many labels as samples, or other concepts than before.
        """
        size = len(ids)
        if self.whole is not None:
            found = {
                name: flags[self.seen : self.seen + size] for name, flags in self.whole.items()
            }
        elif isinstance(self.concepts, TokenConcepts):
            if ids.is_floating_point() or ids.ndim != 2:
                raise DataError(
                    f"token concepts need token ids [batch, positions], and the batch holds "
                    f"{str(ids.dtype).removeprefix('torch.')} of shape {list(ids.shape)}"
                )
            found = expanded(self.concepts(ids, mask))
        else:
            function: Any = self.concepts
            found = expanded(function(raw), categories=False)
        for name, flags in found.items():
            if len(flags) != size:
                place = f"examples {self.seen} to {self.seen + size - 1}"
                raise DataError(
                    f"{name!r} has labels for {len(flags)} of {place}: label every example, in the "
                    "order of the data"
                )
        if not self.names:
            self.names = tuple(found)
        if tuple(found) != self.names:
            different = sorted(set(found) ^ set(self.names)) or ["their order"]
            raise DataError(
                f"the concepts of one batch are not those of the first: {', '.join(different)}; "
                "return the same names for every batch, with labels that are all false if need be"
            )
        self.seen += size
        return {name: _filled(name, flags, mask) for name, flags in found.items()}

    def finish(self) -> None:
        """Everything was labelled and everything labelled was seen.

        Raises:
            DataError: if labels are left over.
        """
        if self.whole is None:
            return
        name, flags = next(iter(self.whole.items()))
        if len(flags) != self.seen:
            raise DataError(
                f"{name!r} has labels for {len(flags)} examples and the data hold {self.seen}: "
                "label every example, in the order of the data"
            )


def _filled(name: str, flags: Any, mask: Tensor | None) -> Tensor:
    """Labels of sequences of many lengths, put where the tokens are that count."""
    if isinstance(flags, Tensor):
        width = None if mask is None else mask.shape[1]
        if flags.ndim == 2 and width is not None and flags.shape[1] > width:
            # Labels padded further than this batch.
            beyond = int(flags[:, width:].sum())
            if beyond:
                raise DataError(
                    f"{beyond} labels of {name!r} lie beyond the {width} positions of their batch"
                )
            return flags[:, :width]
        return flags
    lengths = [len(row) for row in flags]
    if mask is None:
        if len(set(lengths)) > 1:
            raise DataError(
                f"{name!r} has sequences of {min(lengths)} to {max(lengths)} labels in a batch "
                "without an attention mask: give one label for every position"
            )
        return torch.stack(list(flags))
    counts = mask.sum(1).tolist()
    if counts != lengths:
        row = next(i for i, (a, b) in enumerate(zip(counts, lengths, strict=True)) if a != b)
        raise DataError(
            f"{name!r} labels {lengths[row]} tokens of an example with {counts[row]}: label every "
            "token that the attention mask keeps, special ones included"
        )
    filled = torch.zeros(mask.shape, dtype=torch.bool)
    filled[mask.cpu()] = torch.cat(list(flags))
    return filled


def rows_of(name: str, flags: Tensor, lead: Sequence[int]) -> Bool[Tensor, " rows"]:
    """One label for every row of a site whose axes before the features are `lead`.

    Labels of an example hold for all its rows. Labels of pixels are reduced to the site's
    resolution: true where half of a cell or more is.

    Raises:
        DataError: if the labels fit no way.
    """
    shape, lead = tuple(flags.shape), tuple(lead)
    rows = int(np.prod(lead))
    if shape == lead or (len(shape) > 1 and int(np.prod(shape)) == rows and len(lead) == 1):
        return flags.flatten()
    if len(shape) == 1 and rows % shape[0] == 0:
        return flags.repeat_interleave(rows // shape[0])
    if len(shape) == 3 and len(lead) == 3 and shape[0] == lead[0]:
        cells = torch.nn.functional.adaptive_avg_pool2d(flags.float(), (lead[1], lead[2]))
        return (cells >= 0.5).flatten()
    raise DataError(
        f"the labels of {name!r} have shape {list(shape)} and the site's samples {list(lead)}: "
        "give one label for every example [batch], token [batch, positions] or pixel [batch, "
        "height, width]"
    )
