"""Collecting from whatever the user runs, in place of running the model oneself."""

from __future__ import annotations

import collections
import contextvars
import dataclasses
import functools
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from basis_probe.arguments import whole
from basis_probe.brief import brief
from basis_probe.devices import on_own_device, own_device, users_device
from basis_probe.errors import DataError, SiteError
from basis_probe.interrupts import guarded
from basis_probe.model.batches import Batch, batch_of
from basis_probe.model.calls import batch_of_call, example_of_call
from basis_probe.model.network import Subject, eagerly, prepared, recognise
from basis_probe.model.state import beside, kept, none_running
from basis_probe.results.history import History
from basis_probe.results.report import Report
from basis_probe.run.looks import Looking
from basis_probe.run.optimizers import OptimizerMoments
from basis_probe.run.origins import require_another
from basis_probe.run.report import Session
from basis_probe.run.watch import Choices, Groups
from basis_probe.statistics.nulls import Null
from basis_probe.statistics.scores import Score

_resting: contextvars.ContextVar[bool] = contextvars.ContextVar("resting", default=False)
"""True while a model runs for the sake of an attachment, which none of them is to see."""

_watched: contextvars.ContextVar[bool] = contextvars.ContextVar("watched", default=False)
"""True while a forward pass runs that an attachment sees."""

_LIBRARIES = frozenset({"torch", "accelerate", "deepspeed", "peft", "transformer_lens"})
"""Their hooks are part of how a model computes."""


def attach(
    model: nn.Module,
    *,
    sites: str | Iterable[str] | None = None,
    scores: Iterable[str | Score] | None = None,
    null: str | Null | None = None,
    groups: Groups | None = None,
    seed: int = 0,
    max_samples: int | None = None,
    progress: bool = False,
    certificates: bool | None = None,
    initialisation: bool | nn.Module | None = None,
    example_input: Any = None,
    every: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Attachment:
    """A context in which every forward pass of the model is collected from, whoever makes it.

    Generation, evaluation, a training loop, `run_with_hooks`, `run_with_cache`: what they compute
    is what they would compute without it, gradients and random numbers included, and everything is
    as it was at the end, however it comes. Modes are left as they are, so that dropout and the
    statistics of batches belong to the activations in training mode. Masks drop padding as
    in `probe`. What goes wrong on this side is a note of the report, or an error of `report()`,
    and never one of the user's run.

    A pass that ends with an exception does not count. While the model trains, a report mixes what
    its weights were at different steps; one attachment after another follows it over time.

    Args:
        model: as for `probe`; of a compiled model, what it was compiled from.
        sites: as for `probe`.
        scores: as for `probe`.
        null: as for `probe`.
        groups: as for `probe`.
        seed: as for `probe`.
        max_samples: as for `probe`.
        progress: whether `report` shows progress bars.
        certificates: as for `probe`.
        initialisation: as for `probe`, on the batch on which the model was watched, by passes of
            the report's own; None for nowhere.
        example_input: one batch, as for `probe`, on which the model is watched before the block
            starts. None: a copy with the same weights is watched on what the first forward pass
            is called with; hooks of the user's do not see that.
        every: look at one forward pass in so many, the first one among them, while the block
            runs: `history` then holds for every site the scores of that batch alone, with the
            weights of that moment, and an e-value that may be watched and stopped at will. A look
            is a pass of its own in evaluation mode, because dropout marks axes, and compares at
            most 1,024 samples with 99 alternatives. None for no looks.
        optimizer: what trains the model: looks then have one more score, "optimizer", where the
            group of a site holds rotations: how uneven the second moments of the gradients of the
            weights around it are on its axes, against turned axes. They are kept from the first
            step in the block on, as Adam keeps them. None to leave it out.

    Raises:
        TypeError: if it is no torch module, or one that runs as a script; for an initialisation
            that is no network.
        ValueError: for a score, null, group or number that makes no sense; for an optimizer that
            trains nothing of the model, or is given without `every`.

    Example:
        >>> import torch, basis_probe as bp
        >>> layers = torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
        >>> model = torch.nn.Sequential(*layers)
        >>> with bp.attach(model, sites="1") as probe:
        ...     for _ in range(3):
        ...         loss = model(torch.randn(100, 8)).square().mean()
        >>> probe.report()["1"].n_samples
        300
    """
    choices = Choices.of(
        sites=sites,
        scores=scores,
        null=null,
        groups=groups,
        seed=seed,
        max_samples=max_samples,
        certificates=certificates,
        progress=progress,
        initialisation=initialisation,
    )
    if every is not None:
        every = whole("every", every, least=1, else_=": how many passes lie between looks, or None")
    moments = None if optimizer is None else OptimizerMoments(optimizer, model)
    if moments is not None and every is None:
        raise ValueError("an optimizer is given, and nothing looks at it: give every=, too")
    subject = recognise(model)
    require_another(initialisation, subject)
    return Attachment(subject, choices, example_input, every, moments)


@brief
class Attachment:
    """What is collected from the forward passes of a model while a block runs; see `attach`.

    Args:
        subject: the model.
        choices: what the user asked for.
        example: a batch on which the model is watched before the block, or None.
        every: how many passes lie between looks; None for none.
        moments: what an optimiser is given; None where none is read.
    """

    def __init__(
        self,
        subject: Subject,
        choices: Choices,
        example: Any,
        every: int | None = None,
        moments: OptimizerMoments | None = None,
    ) -> None:
        self._looking = None if every is None else Looking(every, moments)
        self._moments = moments
        self._unlooked: tuple[int, str] = (0, "")
        self.live = False
        self._subject, self._choices, self._example = subject, choices, example
        self._session: Session | None = None
        self._calls = self._failed = self._training = self._beside = self._slow = 0
        self._interrupted = False
        self._thread: int | None = None
        self._door = threading.Lock()
        self._trouble: Exception | None = None
        self._opening, self._attempts = False, 0
        self._unread: tuple[int, str] = (0, "")

    @property
    def passes(self) -> int:
        """The number of forward passes collected from so far."""
        return 0 if self._session is None else self._session.stream.batches

    @property
    def history(self) -> History:
        """The looks so far, also while the block runs; without any if `every` was not given."""
        return History((), 0) if self._looking is None else self._looking.history

    def _brief(self) -> Mapping[str, object]:
        return {"model": self._subject.model, "passes": self.passes, "live": self.live}

    @on_own_device
    def __enter__(self) -> Attachment:
        if self.live:
            raise RuntimeError("this attachment is in use: leave its block first")
        if self._example is not None and self._session is None:
            example = batch_of(
                self._example,
                number=0,
                tokenizer=self._subject.tokenizer,
                device=self._subject.device,
            )
            self._open(example)
        model = self._subject.model
        self.live = True
        # Not setattr: some models hand on what is set on them.
        model.__dict__["forward"] = _Forward(self, model)
        if self._moments is not None:
            self._moments.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.live = False
        self._interrupted = kind is not None
        if self._moments is not None:
            self._moments.end()
        _clear(self._subject.model)

    @on_own_device
    def report(self) -> Report:
        """The verdicts on what has been collected so far, in the block or after it.

        Raises:
            DataError: if no forward pass was made.
        """
        session = self._session
        if session is None and self._trouble is not None:
            raise self._trouble
        if session is None or not self.passes:
            raise DataError(
                "no forward pass of the model has been seen: run it inside the block, and the "
                "very module that was attached to (a copy, a part or a compiled form of it is "
                "another)"
            )
        with _at_rest(), prepared(self._subject.model, None), _unhooked(self._subject):
            report = session.report(partial=self._interrupted, more=self._notes())
        stream = session.stream
        data = f"{stream.batches} forward passes that the user made, {stream.examples} examples"
        return dataclasses.replace(
            report, provenance=dataclasses.replace(report.provenance, data=data)
        )

    def _notes(self) -> tuple[str, ...]:
        notes: list[str] = []
        if self._training:
            notes.append(
                f"The model was in training mode in {self._training} of {self.passes} forward "
                "passes: what is random or changes in that mode, and weights of different steps, "
                "are in the numbers."
            )
        if self._failed:
            notes.append(
                f"{self._failed} forward passes ended with an exception and are not counted."
            )
        if self._beside:
            notes.append(
                f"{self._beside} forward passes were made in one thread while another ran the "
                "model, and are not counted."
            )
        if self._unread[0]:
            notes.append(
                f"{self._unread[0]} forward passes could not be read and are not counted: "
                f"{self._unread[1]}"
            )
        if self._moments is not None and self._moments.trouble:
            notes.append(f"The optimizer could not be read: {self._moments.trouble}.")
        if self._unlooked[0]:
            notes.append(f"{self._unlooked[0]} looks failed: {self._unlooked[1]}")
        if self._slow:
            notes.append(
                "torch leaves the fast path of nn.TransformerEncoder while a model is watched "
                f"({self._slow} forward passes): at padded positions it returns what the layers "
                "compute there, and not zeros."
            )
        if self._interrupted:
            notes.append("The block was left by an exception; what came before it is counted.")
        return tuple(notes)

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Watches the model on what it is called with, unless it has been watched before."""
        if self._session is not None or not self.live:
            return
        if _watched.get():
            if self._trouble is None:
                self._say(
                    ValueError(
                        "the model runs inside another one that is attached to, so it cannot be "
                        "watched on its first forward pass: give example_input"
                    )
                )
            return
        with self._door:
            if self._opening:
                return  # Another thread watches the model now.
            self._opening = True
        subject = self._subject
        call = functools.partial(example_of_call, subject.model, subject.signature, args, kwargs)
        try:
            try:
                self._open(call())
            except DataError:
                # Some models run only with what they have computed before.
                self._open(call(past=True))
        except Exception as error:
            self._attempts += 1
            self._opening = isinstance(error, SiteError) or self._attempts == _ATTEMPTS
            self._say(error)
        except BaseException:
            self._opening = False
            raise

    def _say(self, error: Exception) -> None:
        """The user's run goes on; the report says what was wrong."""
        self._trouble = error
        warnings.warn(
            f"nothing is collected from this forward pass: {type(error).__name__}: {error}",
            stacklevel=5,
        )

    def call(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What `forward` returns for the arguments, seen on the way."""
        session = self._session
        here = threading.get_ident()
        ended = session is not None and session.stream.full and self._looking is None
        if session is None or self._thread == here or ended:
            self._beside += session is None and self._trouble is None
            return forward(*args, **kwargs)
        with self._door:
            taken = self._thread is not None
            if not taken:
                self._thread = here
            self._beside += taken
        if taken:
            return forward(*args, **kwargs)
        with guarded():
            before = _watched.set(True)
            try:
                return self._see(session, forward, args, kwargs)
            finally:
                self._thread = None
                _watched.reset(before)

    def _see(
        self,
        session: Session,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        self._calls += 1
        try:
            batch = self._batch(args, kwargs)
        except Exception as error:
            self._note(error)
            return forward(*args, **kwargs)
        training = self._subject.model.training
        gradients = torch.is_grad_enabled()
        returned: list[Any] = []
        failed: list[BaseException] = []

        def run() -> None:
            # Statistics need no gradients; the user may.
            with torch.set_grad_enabled(gradients):
                try:
                    returned.append(forward(*args, **kwargs))
                except BaseException as error:
                    failed.append(error)
                    raise

        self._look(session, batch)
        try:
            session.stream.see(self._subject.model, batch, run)
        except BaseException as error:
            self._failed += bool(failed)
            if failed or not isinstance(error, Exception):
                raise
            # What is wrong on our side is no matter of the user's run.
            self._note(error)
            return returned[0] if returned else forward(*args, **kwargs)
        self._training += training
        self._slow += not training and not gradients and self._has_fast_path
        return returned[0]

    def _look(self, session: Session, batch: Batch) -> None:
        """Looks at the model on a batch before the user's pass, as if there had been no look."""
        looking, step = self._looking, session.stream.batches
        if looking is None or not looking.is_due(step):
            return
        try:
            with (
                torch.inference_mode(False),
                torch.no_grad(),
                _at_rest(),
                prepared(self._subject.model, None),
                _unhooked(self._subject),
            ):
                looking.look(session, batch, step)
        except Exception as error:
            # What goes wrong in it is no matter of the user's run.
            often, said = self._unlooked
            self._unlooked = often + 1, said or f"{type(error).__name__}: {error}"

    def _note(self, error: Exception) -> None:
        often, said = self._unread
        self._unread = often + 1, said or f"{type(error).__name__}: {error}"

    @functools.cached_property
    def _has_fast_path(self) -> bool:
        return any(isinstance(m, nn.TransformerEncoderLayer) for m in self._subject.model.modules())

    def _batch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Batch:
        return batch_of_call(
            self._subject.model, self._subject.signature, args, kwargs, number=self._calls
        )

    def _open(self, example: Batch) -> None:
        # What is made here is written to in passes of any mode.
        with (
            torch.inference_mode(False),
            _at_rest(),
            prepared(self._subject.model, None),
            _unhooked(self._subject),
        ):
            self._session = _opened(self._subject, example, self._choices)
            if self._moments is not None:
                self._moments.place(self._session.watching)


_ATTEMPTS = 3
"""On so many forward passes it is tried to watch a model."""


def _opened(subject: Subject, example: Batch, choices: Choices) -> Session:
    """A session of a model that was watched beside it, so that it makes no pass of its own.

    Where a copy cannot be made, or functions of the user's call the model's own parts, the model
    itself is watched, and what it remembers is put back.
    """
    model = subject.model
    with kept(model):
        try:
            twin = recognise(beside(model))
            twin.own_tokenizer = subject.own_tokenizer
            with none_running(model) as ran:
                session = Session.open(twin, example, choices)
        except SiteError:
            raise
        except Exception:
            return Session.open(subject, example, choices)
        if ran:
            return Session.open(subject, example, choices)
    watching = dataclasses.replace(session.watching, subject=subject)
    return dataclasses.replace(session, watching=watching)


_COMPILED = "_compiled_call_impl"


class _Forward:
    """A model's `forward`, every call of which an attachment sees."""

    def __init__(self, attachment: Attachment, model: nn.Module) -> None:
        self.model, self.attachment = model, attachment
        self.replaced: Any = model.__dict__.get("forward")
        self.inner: Callable[..., Any] = model.forward
        # A model that was compiled in place would compile what watches it, hooks and all.
        self.compiled: Any = model.__dict__.pop(_COMPILED, None)
        functools.update_wrapper(self, self.inner, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" in sys.modules:
            # Of a model that was compiled only what the user calls is compiled, and not our part.
            return torch.compiler.disable(self._run)(*args, **kwargs)
        return self._run(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if _resting.get() or not self.attachment.live:
            return self.inner(*args, **kwargs)
        # All are prepared before any of them watches, so that none sees another's preparation.
        layer: Any = self
        with eagerly(), own_device():
            while isinstance(layer, _Forward):
                layer.attachment.prepare(args, kwargs)
                layer = layer.inner
            return self.attachment.call(_where_users_are(self.inner), args, kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the model, or a saved one, has the forward that the model had.
        if self.replaced is None:
            return getattr, (self.model, "forward")
        return _itself, (self.replaced,)


def _where_users_are(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The function, inside of which tensors are made where its user makes them."""

    @functools.wraps(forward)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with users_device():
            return forward(*args, **kwargs)

    return inside


# What the compiler looks for, which is too large to be loaded for those who compile nothing.
_Forward.__call__.__dict__["_torchdynamo_disable"] = True


def _itself(value: Any) -> Any:
    return value


def _clear(model: nn.Module) -> None:
    """Takes away every `forward` whose attachment is over and that nothing lies upon."""
    top: Any = model.__dict__.get("forward")
    while isinstance(top, _Forward) and not top.attachment.live:
        if top.compiled is not None:
            model.__dict__.setdefault(_COMPILED, top.compiled)
        top = top.replaced
        if top is None:
            del model.__dict__["forward"]
        else:
            model.__dict__["forward"] = top


@contextmanager
def _at_rest() -> Generator[None]:
    """Within the context no attachment sees anything."""
    before = _resting.set(True)
    try:
        yield
    finally:
        _resting.reset(before)


@contextmanager
def _unhooked(subject: Subject) -> Generator[None]:
    """Within the context the model runs without hooks of the user's."""
    model = subject.model
    points = {id(point) for point in getattr(model, "hook_dict", {}).values()}
    whole: list[tuple[nn.Module, str, Any]] = []
    try:
        for module in model.modules():
            for kind in ("_forward_hooks", "_forward_pre_hooks"):
                hooks = getattr(module, kind)
                if hooks:
                    whole.append((module, kind, hooks))
                    kept = collections.OrderedDict(
                        (key, hook)
                        for key, hook in hooks.items()
                        if id(module) not in points and _of_a_library(hook)
                    )
                    module.__dict__[kind] = kept
        yield
    finally:
        for module, kind, hooks in whole:
            module.__dict__[kind] = hooks


def _of_a_library(hook: object) -> bool:
    module = str(getattr(getattr(hook, "func", hook), "__module__", ""))
    return module.split(".")[0] in _LIBRARIES
