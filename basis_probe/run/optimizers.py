"""What an optimiser is given, step by step, at the sites whose axes may be turned."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from basis_probe.algebra.groups import Privileged
from basis_probe.arguments import instance
from basis_probe.model.around import Touching, touching
from basis_probe.results.history import Glance
from basis_probe.run.watch import Placed, Watched
from basis_probe.statistics.gradient_moments import Moment, unevenness
from basis_probe.statistics.nulls import Geometry, geometry_of

NAME = "optimizer"
_FEWEST_AXES = 4
_BETA = 0.999
"""Where an optimiser keeps no second moment: Adam's."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Followed:
    """The weights around a site that an optimiser trains, and their moment.

    Attributes:
        weights: each with how its axes lie, and the gain of the norm in front.
        beta: how much of the moment is kept in a step.
        line: True if turns leave the all-ones direction fixed.
        moment: of all of them together.
    """

    weights: tuple[tuple[nn.Parameter, Touching, nn.Parameter | None], ...]
    beta: float
    line: bool
    moment: Moment


class OptimizerMoments:
    """Second moments of gradients as an optimiser sees them, by site.

    Args:
        optimizer: the optimiser.
        model: what it trains.

    Raises:
        ValueError: if it is none, or trains nothing of the model.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        wanted = "the torch optimiser of the model"
        self.optimizer = instance("optimizer", optimizer, torch.optim.Optimizer, wanted)
        while isinstance(
            inner := getattr(self.optimizer, "optimizer", None), torch.optim.Optimizer
        ):
            # Trainers wrap one, and what they wrap makes the steps.
            self.optimizer = inner
        known = {id(parameter) for parameter in model.parameters()}
        if not any(id(parameter) in known for parameter, _ in self._trained()):
            raise ValueError(
                "the optimizer holds none of the model's parameters: give the one that trains it"
            )
        self.model = model
        self.trouble = ""
        self._sites: dict[str, _Followed] | None = None
        self._handle: Any = None

    def _trained(self) -> Iterator[tuple[nn.Parameter, float]]:
        """Every parameter of the optimiser, with how much of its second moment is kept."""
        for group in self.optimizer.param_groups:
            betas = group.get("betas")
            beta = float(betas[1]) if isinstance(betas, tuple | list) and len(betas) > 1 else _BETA
            for parameter in group["params"]:
                yield parameter, beta if 0 <= beta < 1 else _BETA

    def place(self, watching: Watched) -> None:
        """Follows the sites of a model that was watched, if it did not do so before."""
        if self._sites is not None:
            return
        trained = {id(parameter): beta for parameter, beta in self._trained()}
        named = dict(self.model.named_parameters(remove_duplicate=False))
        facts = watching.derivation.seen
        self._sites = {}
        for name in watching.plans:
            place = watching.places[name]
            if not is_turned(place):
                continue
            found = [
                (named[one.name], one, None if one.gain is None else named[one.gain])
                for one in touching(facts, place.site, place.dim)
                if one.name in named and id(named[one.name]) in trained
            ]
            if found:
                self._sites[name] = _Followed(
                    weights=tuple(found),
                    beta=trained[id(found[0][0])],
                    line=geometry_of(place.symmetry.group) is Geometry.LINE,
                    moment=Moment(place.dim),
                )

    def begin(self) -> None:
        """Sees every step of the optimiser from now on."""
        self._handle = self.optimizer.register_step_pre_hook(self._see)

    def end(self) -> None:
        """Sees no more."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _see(self, *_: Any) -> None:
        try:
            with torch.no_grad():
                for followed in (self._sites or {}).values():
                    _add(followed)
        except Exception as error:
            # What goes wrong here is no matter of the user's run.
            self.trouble = self.trouble or f"{type(error).__name__}: {error}"

    def glance(self, name: str, seed: int) -> Glance | None:
        """The moments of a site on its axes, against turned axes; None where there are none."""
        followed = (self._sites or {}).get(name)
        if followed is None or not followed.moment.steps:
            return None
        found = unevenness(followed.moment.total, line=followed.line, seed=seed)
        observed, mean, std, p = found
        return None if math.isnan(p) else Glance(observed, mean, std, (observed - mean) / std, p)

    def said_of(self, name: str, places: Mapping[str, Placed]) -> str:
        """Why a site has no moments, or an empty string."""
        if not is_turned(places[name]):
            return "the optimizer is not read here: the group of the site holds no rotations"
        if name not in (self._sites or {}):
            return "the optimizer is not read here: it trains no matrix that writes or reads it"
        if not (self._sites or {})[name].moment.steps:
            return "the optimizer is not read here: it made no step with gradients in the block"
        return ""


def is_turned(place: Placed) -> bool:
    """True where the group of a site holds rotations, so that its axes may be turned."""
    inside = geometry_of(place.symmetry.group) in (Geometry.EUCLIDEAN, Geometry.LINE)
    known = place.symmetry.privileged in (Privileged.NONE, Privileged.LINE)
    return inside and known and not place.symmetry.group.rescales and place.dim >= _FEWEST_AXES


def _add(followed: _Followed) -> None:
    """Takes in the gradients of a step, unless some are missing or not finite."""
    total: Tensor | None = None
    for parameter, one, gain in followed.weights:
        gradient = parameter.grad
        if gradient is None:
            continue
        rows = _along(gradient, one)
        if gain is not None:
            # Of the weight with the gain folded in, which the group turns.
            rows = rows / (gain.to(rows) + one.more)
        products = (rows.T @ rows).cpu().double()
        total = products if total is None else total + products
    if total is not None and bool(total.isfinite().all()):
        followed.moment.add(total, followed.beta)


def _along(gradient: Tensor, one: Touching) -> Tensor:
    """[rows, dim]: a gradient with the axes of the site along its columns."""
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    wide = gradient.double() if gradient.device.type == "cpu" else gradient.float()
    return wide if one.axis == 1 else wide.T
