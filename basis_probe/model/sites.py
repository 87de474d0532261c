"""Which places of a model are probed: the ones asked for, or the sensible ones."""

import fnmatch
import re
from collections.abc import Iterable, Mapping

from basis_probe.errors import SiteError, nearest
from basis_probe.model.experts import Expert
from basis_probe.model.facts import Facts
from basis_probe.model.graph import Kind
from basis_probe.model.places import Site
from basis_probe.model.roles import Role, role
from basis_probe.model.rows import PUTS
from basis_probe.results.aliases import of_bridge

_BEHIND = ("neurons behind", "neurons (gated product)")
_NEURONS = (*_BEHIND, *(f"experts' {kind}" for kind in _BEHIND))


def asked(
    patterns: str | Iterable[str], names: Mapping[str, Site], *, silent: frozenset[str]
) -> dict[str, Site]:
    """The sites that names and globs stand for, in forward order, each place once.

    Args:
        patterns: names or globs such as "blocks.*.mlp.hook_post"; these names of TransformerLens
            also stand for the same places of a Hugging Face model.
        names: every name that ran.
        silent: names that the model knows, whether or not they ran.

    Raises:
        SiteError: if one of them stands for nothing; the message lists the nearest names.
    """
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    if not wanted:
        raise SiteError("sites is empty: give names or globs, or None for the sensible ones")
    chosen: dict[str, Site] = {}
    for pattern in wanted:
        if not isinstance(pattern, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SiteError(f"a site is asked for by its name, got {type(pattern).__name__}")
        found = [pattern] if pattern in names else fnmatch.filter(names, pattern)
        if not found:
            found = of_bridge(pattern, names)
        if not found:
            raise SiteError(_nothing(pattern, names, silent))
        # Of several names of one place the one that says what makes it comes first.
        found.sort(key=lambda name: name.endswith(":in"))
        chosen |= {name: names[name] for name in found}
    places: set[object] = set()
    unique: dict[str, Site] = {}
    # A place that was asked for by its name is not repeated under another one by a glob.
    for name, site in sorted(chosen.items(), key=lambda entry: entry[0] not in wanted):
        place = site.address if isinstance(site.address, Expert) else site.node
        if name in wanted or place not in places:
            unique[name] = site
            places.add(place)
    return {name: site for name, site in names.items() if name in unique}


def _nothing(pattern: str, names: Mapping[str, Site], silent: frozenset[str]) -> str:
    like = nearest(pattern, names, 5)
    within = fnmatch.filter(names, f"*{pattern}*")
    if within:
        some = ", ".join(within[:3]) + ("…" if len(within) > 3 else "")
        there = f"sites='*{pattern}*' would match {len(within)}: {some}"
    elif like:
        there = f"nearest: {like}"
    else:
        there = f"the model has {', '.join([*names][:5])}…"
    if fnmatch.filter(silent, pattern):
        return (
            f"site {pattern!r} exists, but did not run in the first batch, or what it holds there "
            f"is no floating-point tensor of shape [batch, ...]; {there}"
        )
    return f"no site matches {pattern!r}; {there}"


def sensible(facts: Facts, names: Mapping[str, Site], usual: tuple[str, ...]) -> dict[str, Site]:
    """The sites that people read: residual streams, attention outputs, neurons.

    Args:
        facts: what was seen of the model.
        names: every name that ran.
        usual: patterns of the names that users of such a model mean; empty to go by the facts.

    Raises:
        SiteError: if the model has no such place.
    """
    if usual:
        chosen = {
            name: site
            for name, site in names.items()
            if any(re.fullmatch(pattern, name) for pattern in usual)
        }
        last = [name for name in names if re.fullmatch(r"blocks\.\d+\.hook_resid_post", name)]
        chosen |= {name: names[name] for name in last[-1:]}
        if chosen:
            routed = some_experts(names)
            # Where experts have sites of their own, the block's "hook_post" is what it writes.
            stream = {
                name
                for name, site in chosen.items()
                if routed and name.endswith("mlp.hook_post") and not _is_bent(facts, site)
            }
            chosen = {name: site for name, site in chosen.items() if name not in stream} | routed
            return {name: site for name, site in names.items() if name in chosen}
    best: dict[int, str] = {}
    for name, site in names.items():
        vertex = facts.graph.same.get(site.node)
        if vertex is None or vertex in facts.pooled or isinstance(site.address, Expert):
            continue
        if not _readable(facts, site, role(facts, site)):
            continue
        if vertex not in best or _rank(name) < _rank(best[vertex]):
            best[vertex] = name
    routed = some_experts(names)
    if not best and not routed:
        raise SiteError(
            "no residual stream, attention output or neurons were recognised in this model; "
            f"{_instead(facts, names)}"
        )
    kept = {*best.values(), *routed}
    return {name: site for name, site in names.items() if name in kept}


def _instead(facts: Facts, names: Mapping[str, Site]) -> str:
    """What to do where no usual site was found."""
    if names:
        return f"name the sites, for example {', '.join([*names][:5])}"
    shapes = dict.fromkeys(str([*node.shape]) for node in facts.graph.trace.nodes)
    return (
        "a site is a real floating-point tensor of shape [example, ..., feature] that a module "
        "inside the model takes or returns, and on the first batch there was none among tensors "
        f"of shapes {', '.join([*shapes][:4])}: give batches of examples, and a model of which the "
        "layers are modules"
    )


def _is_bent(facts: Facts, site: Site) -> bool:
    return role(facts, site).kind.startswith(_NEURONS)


MOST_EXPERTS = 256
"""So many experts' neurons are probed at most where nobody names them."""


def some_experts(names: Mapping[str, Site]) -> dict[str, Site]:
    """The neurons of experts, of every stack as many as let all of them be few enough.

    Where they are too many, the experts of each stack are taken at equal distances.
    """
    stacks: dict[str, list[str]] = {}
    for name, site in names.items():
        if isinstance(site.address, Expert):
            stacks.setdefault(site.address.path, []).append(name)
    room = max(1, MOST_EXPERTS // max(1, len(stacks)))
    chosen: dict[str, Site] = {}
    for several in stacks.values():
        step = max(1, -(-len(several) // room))
        chosen |= {name: names[name] for name in several[::step]}
    return chosen


def _rank(name: str) -> tuple[bool, int]:
    """Outputs before inputs, outer modules before inner ones."""
    return (name.endswith(":in"), name.count("."))


def _readable(facts: Facts, site: Site, found: Role) -> bool:
    vertex = facts.vertex(site)
    if vertex is None:
        return False
    stream = facts.streams[facts.stream_of[vertex.node]]
    if found.kind.startswith(_NEURONS):
        # A branch that is only multiplied into another one is read as part of the product.
        products = [
            reader
            for reader in stream.readers
            if facts.graph.vertices[reader].kind is Kind.REGION
            and len(facts.graph.vertices[reader].carried) == 2
        ]
        # What only chooses rows, or weighs them, is no layer of neurons but a router.
        kinds = {facts.graph.vertices[reader].kind for reader in stream.readers}
        chooses = bool(kinds) and kinds <= {Kind.OTHER, Kind.CARRIER}
        return not chooses and (len(products) < len(stream.readers) or not stream.readers)
    if found.kind == "residual stream":
        # Rows that are put together one expert after the other are none until all are there.
        return vertex.kind in (Kind.SUM, Kind.EMBEDDING) and vertex.op not in PUTS
    return found.kind == "attention output z"
