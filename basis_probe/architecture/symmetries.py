"""The architecture's side of the question, and its proof: symmetries, certificates, twins."""

import contextlib
import copy
import dataclasses
import functools
import os
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from basis_probe.algebra.elements import Element
from basis_probe.algebra.groups import Blocks, Trivial, Unknown
from basis_probe.architecture.act import Action
from basis_probe.architecture.completeness import LARGEST, Counter, too_large
from basis_probe.architecture.derive import Derivation
from basis_probe.architecture.prove import Prover, Unproved, largest_change
from basis_probe.architecture.prove_copied import CopyProver
from basis_probe.architecture.prove_local import LocalProver
from basis_probe.arguments import flag, instance, seed_of, whole
from basis_probe.devices import on_own_device
from basis_probe.model.batches import Batch, batch_of
from basis_probe.model.example_input import example_for
from basis_probe.model.facts import Facts, facts_of
from basis_probe.model.from_config import from_config, is_config, is_empty, with_weights
from basis_probe.model.network import Subject, prepared, recognise
from basis_probe.model.offloaded import at_hand
from basis_probe.model.places import Site
from basis_probe.model.quantised import holders
from basis_probe.model.sites import asked
from basis_probe.model.trace import fixed_in, tensors_in
from basis_probe.model.weights import ContradictionError, CopiedWeights, Slots, WeightError
from basis_probe.model.windows import window_products
from basis_probe.parallel import one_thread
from basis_probe.results.symmetry import (
    Certificate,
    CompleteCertificate,
    Completeness,
    Symmetries,
    Symmetry,
)

SMALL = 150_000_000
"""Models of at most this many parameters are copied where the record of them proves nothing."""

TIMES = 8
"""So often the examples are given to routers, whose experts may hold a number of rows."""

_SMALL = 2_000_000
"""Below this many parameters a second thread costs more than it brings."""


@on_own_device
def symmetries(
    model: nn.Module | Any, example_input: Any = None, *, certificates: bool | None = None
) -> Symmetries:
    """The architecture's answer at every place of the model that ran, in forward order.

    Every claim carries a certificate: in float64 random elements of the group acted on the weights
    and the outputs stayed the same, and strangers to the group changed them. A claim that fails is
    shown as unknown, with both numbers. The model is not copied, and is left as it was.

    Of a model whose weights are not at hand weights are drawn that take no memory, with generic
    gains and biases: sites, groups and proofs are those of the architecture, at its full size.

    Args:
        model: as for `probe`; or a model whose weights are on the meta device; or a configuration
            of Hugging Face, its dictionary, the name of a repository on the hub, or a folder with
            config.json, of which the weights are not read.
        example_input: one batch, as for `probe`; None for random tokens or numbers, where the model
            tells what it takes.
        certificates: whether to prove the claims; None to do so.

    Returns:
        Site name -> symmetry; a dict that shows itself as a table in a notebook.

    Raises:
        DataError: if the batch cannot be used, or is needed.
        ValueError: if no model can be built from the configuration.

    Example:
        >>> import torch, basis_probe as bp
        >>> layers = torch.nn.Linear(4, 6), torch.nn.GELU(), torch.nn.Linear(6, 2)
        >>> found = bp.symmetries(torch.nn.Sequential(*layers), torch.randn(2, 4))
        >>> found["1"].group, found["1"].certificate.holds
        (Permutation(dim=6), True)
    """
    certificates = flag("certificates", certificates, unknown=True)
    drawn = _drawn(model)
    subject = recognise(model if drawn is None else drawn)
    products = contextlib.nullcontext() if drawn is None else window_products()
    with prepared(subject.model, None), products:
        batch = example_for(subject) if example_input is None else _batch(subject, example_input)
        derivation = Derivation(facts_of(subject, batch))
        facts = derivation.facts
        seen: set[tuple[object, int]] = set()
        sites: dict[str, Site] = {}
        for name, site in facts.sites.items():
            key = (site.address, site.node)
            if key not in seen:
                seen.add(key)
                sites[name] = site
        claims = {name: derivation.symmetry(site) for name, site in sites.items()}
        found = Symmetries(proved(subject, batch, derivation, sites, claims, certificates))
    size = sum(parameter.numel() for parameter in subject.model.parameters())
    seen_on = batch if example_input is None else example_input
    # A model that is too large for the count is not kept alive for it.
    return found.counting(
        functools.partial(_too_large, size)
        if size > LARGEST
        else functools.partial(_counted, subject.model, seen_on)
    )


def _drawn(model: Any) -> nn.Module | None:
    """The model with drawn weights, if its own are not at hand."""
    if isinstance(model, str | os.PathLike | dict) or is_config(model):
        return from_config(os.fspath(model) if isinstance(model, os.PathLike) else model)
    if isinstance(model, nn.Module) and is_empty(model):
        return with_weights(copy.deepcopy(model))
    return None


def _too_large(size: int) -> Completeness:
    raise ValueError(f"completeness cannot be counted: {too_large(size)}")


def _counted(model: nn.Module, example_input: Any) -> Completeness:
    subject = recognise(model)
    with prepared(subject.model, None):
        given = isinstance(example_input, Batch)
        batch = example_input if given else _batch(subject, example_input)
        derivation = Derivation(facts_of(subject, batch))
        return _completeness(subject, batch, derivation.facts, derivation, 0)


def _completeness(
    subject: Subject, batch: Batch, facts: Facts, derivation: Derivation, seed: int
) -> Completeness:
    """Whether all claims hold every continuous symmetry.

    Raises:
        ValueError: if it cannot be counted: why, and what to do.
    """
    try:
        prover = CopyProver(subject.model, _same(batch, facts), facts, derivation, seed=seed)
        return Counter(prover).completeness(facts.sites)
    except Unproved as error:
        raise ValueError(f"completeness cannot be counted: {error}") from error


@on_own_device
def certify(
    model: nn.Module,
    site: str,
    example_input: Any,
    *,
    elements: int = 3,
    seed: int = 0,
    complete: bool = False,
) -> Certificate:
    """The numerical proof of what `symmetries` claims of one site, on this very model.

    In float64, elements of the group act on the weights one after the other:
    the outputs must stay the same and the activations at the site must change by exactly the
    element. Then strangers to the group act, and the outputs must change a thousand times more.

    Args:
        model: as for `probe`.
        site: its name.
        example_input: one batch, as for `probe`; a few examples are used.
        elements: how many elements to draw.
        seed: seeds them.
        complete: whether to count, too, if the claims about all sites hold every continuous
            symmetry of the model; the answer has `completeness` then. Only for small models (6,000
            numbers in all parameters): give a small one of the same architecture.

    Raises:
        SiteError: if the name stands for no site, or for several.
        ValueError: if nothing is claimed of the site, or it cannot be tried on this model: the
            message says what stands in the way.
        DataError: if the batch cannot be used.

    Example:
        >>> import torch, basis_probe as bp
        >>> layers = torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)
        >>> proof = bp.certify(torch.nn.Sequential(*layers), "1", torch.randn(2, 4))
        >>> proof.holds, proof.max_error < 1e-9, proof.violation > 1e-6
        (True, True, True)
    """
    instance("site", site, str, "the name of one site, such as 'blocks.0.mlp'")
    elements, seed = whole("elements", elements, least=1, most=1000), seed_of(seed)
    complete = bool(flag("complete", complete))
    subject = recognise(model)
    with prepared(subject.model, None):
        batch = _batch(subject, example_input)
        derivation = Derivation(facts_of(subject, batch))
        facts = derivation.facts
        name, place = _one(site, facts, subject)
        symmetry = derivation.symmetry(place)
        _require_claim(name, symmetry)
        with _threads(subject):
            try:
                if derivation.router(facts.stream_of[_vertex(facts, place)]) is None:
                    prover = _prover(subject, batch, facts, derivation, seed)
                else:
                    prover = _on_many_rows(subject, batch, facts, derivation, seed)
                proof = prover.certify(place, symmetry.group, elements=elements)
                # What `symmetries` says of it is what is proved here.
                smaller = None if proof.holds else _in_place(prover, place, symmetry, elements)
                proof = proof if smaller is None else smaller[1]
            except Unproved as error:
                raise ValueError(f"{name} cannot be certified: {error}") from error
            if not complete:
                return proof
            count = _completeness(subject, batch, facts, derivation, seed)
            given = {f.name: getattr(proof, f.name) for f in dataclasses.fields(Certificate)}
            return CompleteCertificate(**given, completeness=count)


@on_own_device
def reparametrize(
    model: nn.Module, site: str, element: object, *, example_input: Any = None
) -> nn.Module:
    """A new model of the same architecture and function, its activations changed at one site.

    The activations x at the site become `element` times x, and whatever else must change with them
    does. Gains of norms are folded into the linear maps behind them where that is needed, tied
    weights are untied where they must differ. The model itself is untouched. Of a model that is
    off-loaded the new one is in memory.

    Args:
        model: as for `probe`.
        site: the name of the site.
        element: an invertible matrix [dim, dim], or an element, of the site's group.
        example_input: one batch, as for `probe`, from which the architecture is read; None for
            random tokens or numbers, where the model tells what it takes.

    Raises:
        SiteError: if the name stands for no site, or for several.
        ValueError: if the element is not in the site's group (the message says by how much), or
            nothing is claimed of the site, or a weight that must change cannot: which, and why.
        DataError: if the batch cannot be used, or is needed.

    Example:
        >>> import torch, basis_probe as bp
        >>> layers = torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)
        >>> model = torch.nn.Sequential(*layers).double()
        >>> x = torch.randn(5, 4, dtype=torch.float64)
        >>> twin = bp.reparametrize(model, "1", torch.diag(torch.tensor([2.0, 1.0, 0.5])))
        >>> torch.allclose(twin(x), model(x)), torch.allclose(twin[0](x), model[0](x))
        (True, False)
    """
    instance("site", site, str, "the name of one site, such as 'blocks.0.mlp'")
    return reparametrize_all(model, {site: element}, example_input=example_input)


def reparametrize_all(
    model: nn.Module, elements: Mapping[str, object], *, example_input: Any = None
) -> nn.Module:
    """The same with elements at several sites, one after the other; the function is looked at once.

    Args:
        model: as for `probe`.
        elements: site -> its element, of which none folds what another reads: those that move and
            rescale axes.
        example_input: as above.

    Raises:
        SiteError, ValueError, DataError: as above.

    Example:
        >>> import torch
        >>> layers = torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 3), torch.nn.ReLU()
        >>> model = torch.nn.Sequential(*layers, torch.nn.Linear(3, 2)).double()
        >>> x = torch.randn(5, 4, dtype=torch.float64)
        >>> order = torch.eye(3)[[2, 0, 1]]
        >>> twin = reparametrize_all(model, {"1": order, "3": order}, example_input=x)
        >>> torch.allclose(twin(x), model(x)), torch.allclose(twin[2].weight, model[2].weight)
        (True, False)
    """
    subject = recognise(model)
    with at_hand(subject.model):
        return _reparametrized(subject, elements, example_input)


def _reparametrized(
    subject: Subject, elements: Mapping[str, object], example_input: Any
) -> nn.Module:
    acting: dict[str, tuple[Site, Element]] = {}
    with prepared(subject.model, None):
        batch = example_for(subject) if example_input is None else _batch(subject, example_input)
        derivation = Derivation(facts_of(subject, batch))
        facts = derivation.facts
        for site, element in elements.items():
            name, place = _one(site, facts, subject)
            symmetry = derivation.symmetry(place)
            _require_claim(name, symmetry)
            try:
                acting[name] = place, symmetry.group.element(element)
            except ValueError as error:
                raise ValueError(
                    f"the element cannot act at {name}, whose group is {symmetry.group!r}: {error}"
                ) from error
        slots = Slots(subject.model, facts.graph.trace)
    weights = CopiedWeights(subject.model)
    for name, (place, element) in acting.items():
        try:
            _act(Action(derivation, slots, weights), place, element)
        except WeightError as error:
            raise ValueError(f"{name} cannot be changed: {error}") from error
    weights.tie_equal()
    name = ", ".join([*acting][:4]) + (f" and {len(acting) - 4} more" if len(acting) > 4 else "")
    routers = (derivation.router(facts.stream_of[_vertex(facts, p)]) for p, _ in acting.values())
    if any(router is not None for router in routers):
        batch = batch.repeated(TIMES)
    before = _outputs(subject, batch)
    allowed = _precision(facts, before)
    change = largest_change(before, _outputs(recognise(weights.model), batch))
    if not change <= allowed:
        raise ValueError(
            f"the model that was changed at {name} does not compute the same: its outputs differ "
            f"by {change:.1e} of the largest. Either the forward of the model is bound to the "
            "original's weights, or the claim is not true of it: ask certify"
        )
    _say_idle(subject.model, facts, weights.changed, name)
    config = getattr(weights.model, "config", None)
    if getattr(config, "tie_word_embeddings", False) and weights.untied(subject.model):
        # Saved and loaded again, the two must stay what they are now.
        config.tie_word_embeddings = False  # pyright: ignore[reportOptionalMemberAccess]
        if not largest_change(before, _outputs(recognise(weights.model), batch)) <= allowed:
            config.tie_word_embeddings = True  # pyright: ignore[reportOptionalMemberAccess]
            warnings.warn(
                f"embeddings that {name} has untied have values of their own now, but the model's "
                "forward reads tie_word_embeddings, so that it stays True: saved and loaded "
                "again, they would be tied",
                stacklevel=3,
            )
    return weights.model


def _say_idle(model: nn.Module, facts: Facts, changed: Iterable[str], name: str) -> None:
    """Warns of parameters that the example did not use: where they are used the twin may differ."""
    used = {
        id(fixed.tensor)
        for node in facts.graph.trace.nodes
        for fixed in fixed_in((node.args, node.kwargs))
    }
    # Of a module whose weight was changed along, as of an idle expert, nothing is left behind.
    touched = {path.rpartition(".")[0] for path in changed}
    idle = [
        path
        for path, parameter in model.named_parameters()
        if id(parameter) not in used and path.rpartition(".")[0] not in touched
    ]
    if not idle:
        return
    more = f" and {len(idle) - 4} more" if len(idle) > 4 else ""
    warnings.warn(
        f"the example did not use {', '.join(idle[:4])}{more}, which stay as they are: on inputs "
        f"that use them the model that was changed at {name} may compute something else; give an "
        "example_input that does",
        stacklevel=4,
    )


def _same(batch: Batch, facts: Facts) -> Batch:
    """The examples of a batch on which the model was watched."""
    return batch.first(facts.graph.trace.example_batch)


def proved(
    subject: Subject,
    batch: Batch,
    derivation: Derivation,
    sites: Mapping[str, Site],
    claims: Mapping[str, Symmetry],
    wanted: bool | None,
) -> dict[str, Symmetry]:
    """The claims with their certificates; those that fail become unknown, with both numbers.

    Args:
        subject: the model, in evaluation mode.
        batch: what it was watched on.
        derivation: what was derived.
        sites: name -> site.
        claims: name -> what was derived there.
        wanted: whether to prove; None to do so.
    """
    found = _proved(subject, batch, derivation, sites, claims, wanted)
    packed = holders(subject.model)
    if not packed and not derivation.facts.graph.trace.quantised:
        return found
    return _with_integers(found, sites, derivation.facts, packed)


def _with_integers(
    claims: Mapping[str, Symmetry],
    sites: Mapping[str, Site],
    facts: Facts,
    packed: Mapping[str, str],
) -> dict[str, Symmetry]:
    """The claims, with what it means to them that weights around the site are integers.

    Args:
        claims: name -> what is claimed.
        sites: name -> site.
        facts: what was seen of the model.
        packed: path of a module that keeps integers -> how.
    """
    found = dict(claims)
    for name, claim in claims.items():
        vertex = facts.vertex(sites[name])
        if vertex is None or isinstance(claim.group, Trivial):
            continue
        stream = facts.streams[facts.stream_of[vertex.node]]
        nodes = (*sorted(stream.members), *stream.writers, *stream.readers)
        paths = dict.fromkeys(facts.graph.trace.node(index).module for index in nodes)
        # What is known to be followed is packed, in whatever form.
        followed = {
            path: packed.get(path, f"{leaf}, packed")
            for path, _, leaf in (name.rpartition(".") for name in facts.graph.trace.quantised)
        }
        counts = packed if isinstance(claim.group, Unknown) else followed
        said = [f"{path} ({counts[path]})" for path in paths if path in counts]
        if not said:
            continue
        several = f"{', '.join(said[:3])}{f' and {len(said) - 3} more' if said[3:] else ''}"
        note = (
            f"Weights beside it are quantised: {several}."
            if isinstance(claim.group, Unknown)
            else f"Weights beside it are quantised: {several}. What is said holds of the real "
            "numbers that they stand for; the integers could not hold the change exactly."
        )
        found[name] = dataclasses.replace(claim, because=f"{claim.because} {note}")
    return found


def _proved(
    subject: Subject,
    batch: Batch,
    derivation: Derivation,
    sites: Mapping[str, Site],
    claims: Mapping[str, Symmetry],
    wanted: bool | None,
) -> dict[str, Symmetry]:
    routed = _routers(subject, batch, derivation, sites, claims, wanted=wanted is not False)
    claims = {**claims, **routed}
    if wanted is False:
        return _without(claims, claims, "certificates were not asked for")
    names = [name for name, claim in claims.items() if not isinstance(claim.group, Unknown)]
    names = [name for name in names if derivation.facts.vertex(sites[name]) is not None]
    names = [name for name in names if name not in routed]
    if not names:
        return dict(claims)
    facts, result = derivation.facts, dict(claims)
    with _threads(subject):
        try:
            prover = _prover(subject, batch, facts, derivation)
        except Unproved as error:
            return _without(claims, names, str(error))
        given = {name: (sites[name], claims[name].group) for name in names}
        found = dict(zip(names, prover.survey([*given.values()]), strict=True))
        provers: dict[str, LocalProver | CopyProver] = dict.fromkeys(names, prover)
        doubtful = [name for name, proof in found.items() if not _is_proof(proof)]
        if doubtful and isinstance(prover, LocalProver) and _is_small(subject):
            # What could be the fault of the record is tried on the model itself.
            with contextlib.suppress(Unproved):
                copied = CopyProver(subject.model, _same(batch, facts), facts, derivation)
                again = copied.survey([given[name] for name in doubtful])
                for name, proof in zip(doubtful, again, strict=True):
                    # What the record refutes stands where a copy tells nothing.
                    if isinstance(proof, Certificate) or isinstance(found[name], Unproved):
                        found[name], provers[name] = proof, copied
        for name, proof in found.items():
            claim = claims[name]
            if isinstance(proof, Unproved) and isinstance(proof.__cause__, ContradictionError):
                result[name] = _impossible(claim, str(proof))
            elif isinstance(proof, Unproved):
                result[name] = dataclasses.replace(claim, unproved=str(proof))
            elif proof.holds:
                result[name] = dataclasses.replace(claim, certificate=proof)
            else:
                smaller = _in_place(provers[name], sites[name], claim)
                result[name] = refuted(claim, proof) if smaller is None else smaller[0]
    return {name: result[name] for name in claims}


def _routers(
    subject: Subject,
    batch: Batch,
    derivation: Derivation,
    sites: Mapping[str, Site],
    claims: Mapping[str, Symmetry],
    *,
    wanted: bool,
) -> dict[str, Symmetry]:
    """What is claimed of routers, which is claimed only where a copy of the model proves it.

    That experts do alike is seen only where each works in the place of every other, on all rows
    that were given, and on so many that those which hold a number of rows are full.
    """
    facts = derivation.facts
    found: dict[str, Symmetry] = {}
    made: dict[tuple[int, str], Certificate | str] = {}
    prover: CopyProver | None = None
    for name, claim in claims.items():
        vertex = facts.vertex(sites[name])
        stream = -1 if vertex is None else facts.stream_of[vertex.node]
        if isinstance(claim.group, Unknown) or derivation.router(stream) is None:
            continue
        key = stream, repr(claim.group)
        if not wanted:
            made[key] = "certificates were not asked for"
        elif not _is_small(subject):
            made[key] = f"no model of more than {SMALL:,} parameters is copied for it"
        elif key not in made:
            try:
                with _threads(subject):
                    if prover is None:
                        prover = _on_many_rows(subject, batch, facts, derivation)
                    made[key] = prover.certify(sites[name], claim.group)
            except Unproved as error:
                made[key] = str(error)
            except Exception as error:
                made[key] = f"no element could act on a copy: {type(error).__name__}: {error}"
        proof = made[key]
        if isinstance(proof, Certificate):
            held = dataclasses.replace(claim, certificate=proof)
            found[name] = held if proof.holds else refuted(claim, proof)
        else:
            group = Unknown(claim.group.dim)
            because = f"{claim.because} This is claimed only where it is proved: {proof}."
            found[name] = Symmetry(group, group.privileged, because, "none")
    return found


def _on_many_rows(
    subject: Subject, batch: Batch, facts: Facts, derivation: Derivation, seed: int = 0
) -> CopyProver:
    """A copy that runs on the examples several times, as experts may hold a number of rows."""
    try:
        return CopyProver(subject.model, batch.repeated(TIMES), facts, derivation, seed=seed)
    except Unproved:
        return CopyProver(subject.model, batch, facts, derivation, seed=seed)


def _is_proof(found: Certificate | Unproved) -> bool:
    return isinstance(found, Certificate) and found.holds


def _is_small(subject: Subject) -> bool:
    return sum(parameter.numel() for parameter in subject.model.parameters()) <= SMALL


def _prover(
    subject: Subject, batch: Batch, facts: Facts, derivation: Derivation, seed: int = 0
) -> LocalProver | CopyProver:
    """What proves claims about a model: its record, or where that does not do, a copy of it.

    Raises:
        Unproved: if neither does; for a large model, which is not copied, if its record does not.
    """
    few = _same(batch, facts)
    try:
        return LocalProver(subject.model, few, facts, derivation, seed=seed)
    except Unproved:
        if not _is_small(subject):
            raise
    return CopyProver(subject.model, few, facts, derivation, seed=seed)


def _in_place(
    prover: Prover[Any], site: Site, claim: Symmetry, elements: int = 2
) -> tuple[Symmetry, Certificate] | None:
    """A claim of blocks that change places, without that they do, if it is true without."""
    if not isinstance(claim.group, Blocks) or claim.group.order == "kept":
        return None
    group = dataclasses.replace(claim.group, order="kept")
    try:
        proof = prover.certify(site, group, elements=elements)
    except Unproved:
        return None
    if not proof.holds:
        return None
    because = f"{claim.because} Each keeps its place: elements that exchange them were refuted."
    return Symmetry(group, group.privileged, because, claim.reference, proof), proof


def refuted(claim: Symmetry, proof: Certificate) -> Symmetry:
    """What is left of a claim whose certificate failed: nothing is known, and why."""
    group = Unknown(claim.group.dim)
    if max(proof.max_error, proof.action_error) <= proof.tolerance:
        because = (
            f"{claim.group.name} was derived, and elements of it are absorbed; but a "
            f"{proof.stranger} outside it moved the outputs by {proof.violation:.1e} only, too "
            "little to tell: either more is absorbed, or what is here hardly reaches the outputs."
        )
        return Symmetry(group, group.privileged, because, claim.reference, proof)
    because = (
        f"{claim.group.name} was derived and is not true of this model: elements of it moved the "
        f"outputs by {proof.max_error:.1e} and missed the site by {proof.action_error:.1e} "
        f"(allowed: {proof.tolerance:.0e}), while strangers moved the outputs by "
        f"{proof.violation:.1e}."
    )
    return Symmetry(group, group.privileged, because, claim.reference, proof)


def _impossible(claim: Symmetry, why: str) -> Symmetry:
    """What is left of a claim whose elements cannot act on the model at all."""
    because = (
        f"{claim.group.name} was derived, and its elements cannot act on this model: {why}; the "
        "group is not guessed."
    )
    group = Unknown(claim.group.dim)
    return Symmetry(group, group.privileged, because, claim.reference)


def _without(claims: Mapping[str, Symmetry], names: Iterable[str], why: str) -> dict[str, Symmetry]:
    """The claims, with the reason why some of them have no certificate."""
    return dict(claims) | {
        name: dataclasses.replace(claims[name], unproved=why)
        for name in names
        if not isinstance(claims[name].group, Unknown)
    }


def _outputs(subject: Subject, batch: Batch) -> list[Tensor]:
    """The numbers that a model returns for a batch."""
    with prepared(subject.model, None), torch.no_grad():
        return [t for t in tensors_in(subject.call(batch)) if t.is_floating_point()]


_LOWER = {"float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16}


def _precision(facts: Facts, outputs: Sequence[Tensor]) -> float:
    """The change of outputs that is the model's own precision: of all types that it computes in."""
    given = [output.dtype for output in outputs]
    for node in facts.graph.trace.nodes:
        if node.live and node.floating and node.op == "to":
            values = (*node.args, *node.kwargs.values())
            asked = [value for value in values if isinstance(value, torch.dtype)]
            named = _LOWER.get(getattr(node.function, "__name__", ""))
            given += [kind for kind in (*asked, named) if kind is not None]
    kinds = [kind for kind in given if kind.is_floating_point]
    return max((torch.finfo(kind).eps for kind in kinds), default=1.0) ** 0.5


def _act(action: Action, place: Site, element: Element) -> None:
    with torch.no_grad():
        action.move(place, element)


def _batch(subject: Subject, example_input: Any) -> Batch:
    return batch_of(example_input, number=0, tokenizer=subject.tokenizer, device=subject.device)


def _one(name: str, facts: Facts, subject: Subject) -> tuple[str, Site]:
    found = asked([name], facts.sites, silent=subject.silent())
    if len(found) > 1:
        raise ValueError(f"{name!r} stands for {len(found)} sites: give the name of one")
    return next(iter(found.items()))


def _vertex(facts: Facts, place: Site) -> int:
    vertex = facts.vertex(place)
    assert vertex is not None
    return vertex.node


def _require_claim(name: str, symmetry: Symmetry) -> None:
    if isinstance(symmetry.group, Unknown):
        raise ValueError(f"nothing is claimed of {name}: {symmetry.because}")


@contextlib.contextmanager
def _threads(subject: Subject) -> Generator[None]:
    """Within the context torch uses one thread for a small model, as many as before for others."""
    small = sum(parameter.numel() for parameter in subject.model.parameters()) < _SMALL
    with one_thread(if_=small):
        yield
