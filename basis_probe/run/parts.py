"""What was seen in a part of the data: values that add, in a file that any machine can read.

A partial holds numbers only: sums over all samples, the rows kept for the nulls, and the examples
that the model was watched on. What the nulls need of the model, its weights and the functions
between them, it takes from the model itself when the report is made: they are as large as the
model, they are the same for every part, and a function can be saved only as code to be run.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from basis_probe.arguments import instance
from basis_probe.brief import brief
from basis_probe.devices import on_own_device
from basis_probe.errors import DataError
from basis_probe.files import no_file, replacing
from basis_probe.model.batches import Batch
from basis_probe.model.positions import digest_of_batch
from basis_probe.results.codec import decode
from basis_probe.run.stream import Seen
from basis_probe.statistics.moments import Moments, SampleKurtosis
from basis_probe.statistics.sampling import Reservoir

if TYPE_CHECKING:
    from basis_probe.results.report import Report

FORMAT = "basis_probe partial 2"
"""What a file says that it is; the number grows when older versions could not read it."""

BARE = "basis_probe partial 1"
"""The form before, which holds no digest."""

UNCHECKED = (
    "What was seen was written by an older version of basis_probe, without a digest of its content "
    "and of how the data begin: that it is undamaged, and of these data, was not checked."
)

_NAMED = 10
"""So many shards that are missing are named, and the others counted."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Which part of the data was seen.

    Attributes:
        index, of: the shard, and how many there are: batch k belongs to shard k modulo `of`.
        reached: batches of the data before this one are dealt with, by this shard or another.
        batches, examples: how many were seen here.
        digest: a number that depends on all examples seen, wrapping at 64 bits.
        whole: False if batches of the part are still to come.
    """

    index: int = 0
    of: int = 1
    reached: int = 0
    batches: int = 0
    examples: int = 0
    digest: int = 0
    whole: bool = False


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Partial:
    """What was seen of a model on a part of the data; `a + b` is what was seen on both.

    Parts may be seen by different processes, on different machines, at different times; added in
    any order they give the numbers of one process, to rounding, and the same kept rows.

    Attributes:
        seen: site -> what was seen there.
        first: the examples that the model is watched on.
        plan: everything that must agree for partials to be added, in words.
        parts: which parts of the data were seen.
        source: where the model was loaded from, if that is known.
        notes: what a reader of the report must know.
        passing: True for what `probe` writes only to go on from it, and takes away at its end.
    """

    seen: Mapping[str, Seen]
    first: Batch
    plan: Mapping[str, str]
    parts: tuple[Part, ...]
    source: str = ""
    notes: tuple[str, ...] = ()
    passing: bool = False

    @property
    def batches(self) -> int:
        """How many batches were seen."""
        return sum(part.batches for part in self.parts)

    @property
    def examples(self) -> int:
        """How many examples were seen."""
        return sum(part.examples for part in self.parts)

    @property
    def missing(self) -> str:
        """What is missing of the data, in words; empty if nothing is."""
        of = self.parts[0].of
        present = {part.index for part in self.parts}
        absent = (f"{index}/{of}" for index in range(of) if index not in present)
        named = [*itertools.islice(absent, _NAMED)]
        more = of - len(present) - len(named)
        if more > 0:
            named.append(f"and {more:,} more")
        unfinished = [f"{part.index}/{part.of}" for part in self.parts if not part.whole]
        said: list[str] = []
        if named:
            said.append(f"Shards of the data are missing: {', '.join(named)}.")
        if unfinished and of > 1:
            said.append(f"Shards of the data were not seen to their end: {', '.join(unfinished)}.")
        elif unfinished:
            said.append(f"The run was interrupted after {self.batches} batches.")
        return " ".join(said)

    def __add__(self, other: "Partial") -> "Partial":
        """What was seen on both parts.

        Raises:
            ValueError: if they are not of the same model, data, sites and settings, or overlap.
        """
        instance("the other partial", other, Partial, "a Partial, such as `observe` returns")
        found = differing(self.plan, other.plan)
        if found:
            said = "; ".join(f"{name} ({was} and {now})" for name, was, now in found)
            raise ValueError(
                f"partials that differ in {said} cannot be added: make all parts with the same "
                "model, data and settings"
            )
        if self.parts[0].of != other.parts[0].of:
            raise ValueError(
                f"parts of {self.parts[0].of} and of {other.parts[0].of} shards cannot be added: "
                "cut the data into as many shards everywhere"
            )
        for part in other.parts:
            for mine in self.parts:
                twice = part.index == mine.index and (part.of > 1 or part.digest == mine.digest)
                if twice and part.batches and mine.batches:
                    raise ValueError(
                        f"shard {part.index}/{part.of} is in both partials: add every part once"
                    )
        if self.seen and other.seen:
            seen = {name: own + other.seen[name] for name, own in self.seen.items()}
        else:
            # A shard that met no batch has seen nothing.
            seen = self.seen or other.seen
        return Partial(
            seen=seen,
            first=self.first or other.first,
            plan={**other.plan, **self.plan},
            parts=tuple(sorted((*self.parts, *other.parts), key=lambda part: part.index)),
            source=self.source or other.source,
            notes=tuple(dict.fromkeys((*self.notes, *other.notes))),
        )

    @on_own_device
    def report(self, model: nn.Module, **settings: Any) -> "Report":
        """The report of what was seen, as `probe` makes it.

        Args:
            model: the model that it was seen of.
            settings: `scores`, `null`, `groups`, `device`, `progress`, `certificates`,
                `initialisation`, as for `probe`; null and groups as they were when the data were
                seen. With an initialisation, `data` too: batches that the model and the untrained
                network read, since a partial holds the first two examples only.

        Raises:
            ValueError: if it is another model, or null or groups are others; for an initialisation
                without data.
        """
        from basis_probe.run.report import conclude

        return conclude(self, model, **settings)

    def save(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes the partial, numbers and words only; a reader sees the old file or the new one.

        Raises:
            DataError: if batches hold something that is neither a tensor, a number nor a word.
        """
        data = self.to_bytes()
        with replacing(path) as file:
            file.write(data)
        return pathlib.Path(path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Partial":
        """The partial that was saved there.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is no partial, or not the one that was written.
        """
        from safetensors import SafetensorError, safe_open

        if not os.path.isfile(path):
            raise FileNotFoundError(no_file(path))
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, ValueError, RuntimeError, OverflowError, TypeError) as error:
            raise ValueError(f"{path} is no partial: {error}; {_AGAIN}") from error
        return _checked(tensors, metadata, str(path))

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        from safetensors.torch import save

        return save(*self._flat())

    @staticmethod
    def from_bytes(data: bytes) -> "Partial":
        """The partial that `to_bytes` was called of.

        Raises:
            ValueError: if they are no partial, or not the one that was written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors = load(data)
            length = int.from_bytes(data[:8], "little")
            metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
        except (*_DAMAGE, SafetensorError) as error:
            raise ValueError(f"these bytes are no partial: {error}; {_AGAIN}") from error
        return _checked(tensors, metadata, "what these bytes hold")

    def _flat(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        tensors: dict[str, Tensor] = {}
        sites: dict[str, Any] = {}
        for number, (name, seen) in enumerate(self.seen.items()):
            sites[name] = {
                "moments": _fields(seen.moments, f"{number}/moments", tensors),
                "kurtosis": _fields(seen.kurtosis, f"{number}/kurtosis", tensors),
                "kept": _reservoir(seen.kept, f"{number}/kept", tensors),
                "proof": _reservoir(seen.proof, f"{number}/proof", tensors),
                "bad": seen.bad,
                "missed": seen.missed,
                "given": seen.given,
            }
        words = {
            "sites": sites,
            "first": _words(self.first, tensors),
            "plan": dict(self.plan),
            "parts": [dataclasses.asdict(part) for part in self.parts],
            "source": self.source,
            "notes": self.notes,
            "passing": self.passing,
        }
        text = json.dumps(words)
        digest = _digest_of(tensors, text)
        return tensors, {"format": FORMAT, "words": text, "digest": digest}

    @staticmethod
    def _from_flat(tensors: Mapping[str, Tensor], words: Mapping[str, Any]) -> "Partial":
        seen = {
            name: Seen(
                moments=Moments(**(site["moments"] | _below(tensors, f"{number}/moments/"))),
                kurtosis=SampleKurtosis(
                    **(site["kurtosis"] | _below(tensors, f"{number}/kurtosis/"))
                ),
                kept=_kept(site["kept"], tensors, f"{number}/kept/"),
                bad=tuple((batch, count) for batch, count in site["bad"]),
                missed=site["missed"],
                given=site.get("given", 0),
                proof=_kept(site["proof"], tensors, f"{number}/proof/"),
            )
            for number, (name, site) in enumerate(words["sites"].items())
        }
        return Partial(
            seen=seen,
            first=_batch(words["first"], tensors),
            plan=decode(Mapping[str, str], words["plan"]),
            parts=decode(tuple[Part, ...], words["parts"]),
            source=decode(str, words["source"]),
            notes=decode(tuple[str, ...], words["notes"]),
            passing=decode(bool, words.get("passing", False)),
        )


_AGAIN = "give a file that `basis-probe report --shard`, a checkpoint or `Partial.save` wrote"

_DAMAGE = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, OverflowError,
)  # fmt: skip
"""What reading raises of a file that holds something else than it says."""


def _checked(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], what: str) -> Partial:
    """The partial of a file, if it is one, and the one that was written.

    Raises:
        ValueError: if it is not.
    """
    form, text = metadata.get("format"), metadata.get("words", "")
    if form not in (FORMAT, BARE):
        raise ValueError(
            f"{what} is no partial that this version can read (it says {form!r}, and {FORMAT!r} is "
            f"needed): {_AGAIN}"
        )
    if form == FORMAT and metadata.get("digest") != _digest_of(tensors, text):
        raise ValueError(
            f"{what} is damaged: its content is not what its digest was taken of; copy it again "
            "from where it was written, or make it anew"
        )
    try:
        found = Partial._from_flat(tensors, json.loads(text))  # pyright: ignore[reportPrivateUsage]
        _require_sound(found)
    except _DAMAGE as error:
        # A name out of a damaged file may be of any length.
        said = textwrap.shorten(str(error)[:2000], 200, placeholder=" ...")[:200]
        raise ValueError(
            f"{what} is damaged ({type(error).__name__}: {said}): copy it again from where it was "
            "written, or make it anew"
        ) from error
    if form == BARE and UNCHECKED not in found.notes:
        found = dataclasses.replace(found, notes=(*found.notes, UNCHECKED))
    return found


def _digest_of(tensors: Mapping[str, Tensor], words: str) -> str:
    """A number of everything that a file holds."""
    found = hashlib.sha256(words.encode("utf-8", "surrogatepass"))
    for name, tensor in sorted(tensors.items()):
        found.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _require_sound(partial: Partial) -> None:
    """Raises ValueError or KeyError where the numbers of a partial do not fit each other."""
    if not partial.parts or not partial.seen:
        raise ValueError("it holds no part, or no site")
    for part in partial.parts:
        counts = (part.reached, part.batches, part.examples, part.digest)
        if not 0 <= part.index < part.of or min(counts) < 0 or part.of != partial.parts[0].of:
            raise ValueError(f"shard {part.index} of {part.of}, {part.batches} batches")
    names, most = json.loads(partial.plan["names"]), partial.plan["max_samples"]
    decode(tuple[str, ...], names)
    decode(str, partial.plan["sites"])
    int(partial.plan["seed"])
    if most != "all":
        int(most)
    for name, seen in partial.seen.items():
        moments, kurtosis = seen.moments, seen.kurtosis
        dim = moments.mean.numel()
        for field in (moments.mean, moments.m2, moments.m3, moments.m4, kurtosis.share):
            if field.shape != (dim,) or field.dtype != torch.float64:
                raise ValueError(f"the sums of site {name}")
        if min(moments.count, kurtosis.count, kurtosis.zeros, seen.missed, seen.given) < 0:
            raise ValueError(f"the counts of site {name}")
        for kept in (seen.kept, seen.proof):
            rows = len(kept.priorities)
            fits = kept.priorities.ndim == 1 and kept.priorities.dtype == torch.float64
            if not fits or not rows <= min(kept.capacity, kept.seen):
                raise ValueError(f"the rows of site {name}")
            if any(entry.ndim < 1 or len(entry) != rows for entry in kept.rows.values()):
                raise ValueError(f"the rows of site {name}")


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(name, here, there) of everything in which two plans differ.

    How the data begin is not said by older files, and asked only where both say it.
    """
    known = [
        name for name in sorted({*one, *other}) if name != DATA or (name in one and name in other)
    ]
    return [
        (name, one.get(name, "nothing"), other.get(name, "nothing"))
        for name in known
        if one.get(name) != other.get(name)
    ]


DATA = "data"
"""Under this name a plan says how the data begin."""


def beginning(first: Batch) -> str:
    """How the data begin, as a plan says it: a number of the first two examples."""
    return f"beginning with {digest_of_batch(first.first(2)):016x}"


def _fields(value: Moments | SampleKurtosis, stem: str, tensors: dict[str, Tensor]) -> Any:
    """The numbers of a value that are no tensors; those that are go among the tensors."""
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        held = getattr(value, field.name)
        if isinstance(held, Tensor):
            # Tensors that share memory cannot be saved, and those of nothing do.
            tensors[f"{stem}/{field.name}"] = held.clone().contiguous()
        else:
            plain[field.name] = held
    return plain


def _reservoir(value: Reservoir, stem: str, tensors: dict[str, Tensor]) -> Any:
    tensors[f"{stem}/priorities"] = value.priorities.contiguous()
    for name, rows in value.rows.items():
        tensors[f"{stem}/rows/{name}"] = rows.contiguous()
    return {"capacity": value.capacity, "seen": value.seen}


def _kept(plain: Mapping[str, int], tensors: Mapping[str, Tensor], stem: str) -> Reservoir:
    rows = _below(tensors, f"{stem}rows/")
    return Reservoir(plain["capacity"], plain["seen"], tensors[f"{stem}priorities"], rows)


def _below(tensors: Mapping[str, Tensor], stem: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(stem): tensor for name, tensor in tensors.items() if name.startswith(stem)
    }


def _words(batch: Batch, tensors: dict[str, Tensor]) -> Any:
    """How a model was called, tensors put among the tensors."""

    def said(name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors[f"first/{name}"] = value.detach().cpu().clone().contiguous()
            return {"tensor": f"first/{name}", "main": value is batch.inputs}
        if value is None or isinstance(value, bool | int | float | str):
            return {"value": value}
        raise DataError(
            f"a partial cannot be saved: batches hold a {type(value).__name__} under {name!r}, and "
            "only tensors, numbers and words can be written"
        )

    if batch.mask is not None:
        tensors["first/mask"] = batch.mask.cpu().clone().contiguous()
    return {
        "args": [said(str(place), value) for place, value in enumerate(batch.args)],
        "kwargs": {name: said(name, value) for name, value in batch.kwargs.items()},
        "form": batch.form,
    }


def _batch(words: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Batch:
    mains: list[Tensor] = []

    def meant(said: Mapping[str, Any]) -> Any:
        if "tensor" not in said:
            return said["value"]
        tensor = tensors[said["tensor"]]
        if said["main"]:
            mains.append(tensor)
        return tensor

    args = tuple(meant(said) for said in words["args"])
    kwargs = {name: meant(said) for name, said in words["kwargs"].items()}
    return Batch(args, kwargs, mains[0], tensors.get("first/mask"), words["form"])


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device."""
    return batch.to(device)
