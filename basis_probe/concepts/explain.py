"""Explanations by a language model, and how well they tell held-out contexts from others.

The library asks no model by itself: an explainer and a judge are whatever the user hands over. Axes
and directions of a rotation are explained and judged alike, and no failure is dropped.
"""

import dataclasses
import json
import math
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from basis_probe.arguments import function, instance, number, seed_of, texts, whole
from basis_probe.brief import brief
from basis_probe.devices import on_own_device
from basis_probe.errors import clean
from basis_probe.interrupts import guarded, hold, stoppable, unstoppable
from basis_probe.results.envelope import read, written
from basis_probe.results.examples import Context, Examples, TopContexts

Explainer = Callable[[Sequence[Context]], str]
"""From contexts that activate a direction to one sentence that says what they have in common."""

Judge = Callable[[str, Sequence[Context]], Sequence[bool]]
"""From an explanation and contexts to whether each of them fits it."""


@brief
@dataclasses.dataclass(frozen=True)
class Budget:
    """How much may be asked.

    Attributes:
        calls: of explainer and judge together, retries included.
        retries: after a call that failed.
        wait: seconds before the first retry; each further one waits twice as long.
        shown: so many of the top contexts are shown to the explainer; the others are held out.

    Raises:
        ValueError: for numbers that make no sense.
    """

    calls: int = 1000
    retries: int = 2
    wait: float = 1.0
    shown: int = 5

    def __post_init__(self) -> None:
        for name, least in (("calls", 1), ("retries", 0), ("shown", 1)):
            object.__setattr__(self, name, whole(name, getattr(self, name), least=least))
        object.__setattr__(self, "wait", number("wait", self.wait, least=0.0, most=3600.0))


@brief
@dataclasses.dataclass(frozen=True)
class Explained:
    """One direction's explanation and its score.

    Attributes:
        label: the direction.
        axis: which axis it is; None for a direction of the null.
        explanation: an empty string where none was had.
        score: balanced accuracy of the judge on held-out top contexts against contexts of other
            directions; 0.5 is chance, and what a failure counts as.
        failures: what went wrong, one entry for every call that failed.
        scored: True if the judge's answer could be used.
    """

    label: str
    axis: int | None
    explanation: str
    score: float
    failures: tuple[str, ...]
    scored: bool


@brief
@dataclasses.dataclass(frozen=True)
class Explanations:
    """Explanations of axes and of rotated directions at one site.

    Attributes:
        site: its name.
        axes, rotated: one for every direction, whether or not it could be explained.
        calls: how many calls were made.
    """

    site: str
    axes: tuple[Explained, ...]
    rotated: tuple[Explained, ...]
    calls: int

    @property
    def means(self) -> tuple[float, float]:
        """Mean score of axes and of rotated directions, failures at chance."""
        return _mean(self.axes), _mean(self.rotated)

    @property
    def failed(self) -> tuple[int, int]:
        """How many axes, and how many rotated directions, could not be scored."""
        return (
            sum(not found.scored for found in self.axes),
            sum(not found.scored for found in self.rotated),
        )

    def to_json(self) -> str:
        """A text from which `Explanations.from_json` makes an equal value."""
        return written("explanations", self)

    @classmethod
    def from_json(cls, text: str) -> "Explanations":
        """The value that `to_json` wrote.

        Raises:
            ValueError: if the text is no such value.
        """
        return read("explanations", cls, text)

    def __str__(self) -> str:
        axes, rotated = self.means
        failed = self.failed
        return clean(
            f"{self.site}: detection {axes:.3f} on axes, {rotated:.3f} on rotated directions "
            f"({failed[0]} of {len(self.axes)} and {failed[1]} of {len(self.rotated)} failed, at "
            f"chance; {self.calls} calls)"
        )


def _mean(several: Sequence[Explained]) -> float:
    return sum(found.score for found in several) / len(several) if several else math.nan


@on_own_device
def explain(
    examples: Examples,
    explainer: Explainer,
    judge: Judge,
    *,
    budget: Budget | None = None,
    seed: int = 0,
) -> Explanations:
    """Every direction explained from some of its top contexts, and judged on the others.

    Axes and rotated directions are asked for in one random order, so that a budget that runs out,
    a model that changes its mind on the way, or an interruption does not favour either. After
    Ctrl-C nothing more is asked: what was answered is returned, the rest as failures that say so.

    Args:
        examples: top contexts, from `top_examples`.
        explainer: contexts -> explanation.
        judge: (explanation, contexts) -> which of them fit.
        budget: how much may be asked.
        seed: draws the order, and the contexts that are held against the top ones.

    Raises:
        TypeError: for examples, functions or a budget that are none.
        ValueError: for a seed that is none.
    """
    examples = instance("examples", examples, Examples, "what `top_examples` returned")
    function("explainer", explainer, "a function from contexts to a sentence")
    function("judge", judge, "a function from a sentence and contexts to answers")
    seed = seed_of(seed)
    budget = instance("budget", Budget() if budget is None else budget, Budget, "a Budget, or None")
    meter = _Meter(budget)
    everything = [*examples.axes, *examples.rotated]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(everything), generator=generator).tolist()
    found: dict[int, Explained] = {}
    with guarded():
        for place in order:
            others = [c for n, other in enumerate(everything) if n != place for c in other.contexts]
            found[place] = _explained(everything[place], others, explainer, judge, meter, generator)
        count = len(examples.axes)
        return Explanations(
            site=examples.site,
            axes=tuple(found[place] for place in range(count)),
            rotated=tuple(found[place] for place in range(count, len(everything))),
            calls=meter.calls,
        )


def _explained(
    top: TopContexts,
    others: Sequence[Context],
    explainer: Explainer,
    judge: Judge,
    meter: "_Meter",
    generator: torch.Generator,
) -> Explained:
    shown, held = top.contexts[: meter.budget.shown], top.contexts[meter.budget.shown :]
    failures: list[str] = []

    def failed(explanation: str = "", reason: str = "") -> Explained:
        if reason:
            failures.append(reason)
        return Explained(top.label, top.axis, explanation, 0.5, tuple(failures), False)

    if not held or not others:
        return failed(reason="there are no contexts to hold out; keep more of them")
    explanation = meter.ask(lambda: _sentence(explainer(shown)), failures)
    if explanation is None:
        return failed()
    chosen = torch.randperm(len(others), generator=generator)[: len(held)].tolist()
    mixed = [*held, *(others[place] for place in chosen)]
    order = torch.randperm(len(mixed), generator=generator).tolist()
    asked = [mixed[place] for place in order]
    answers = meter.ask(lambda: _answers(judge(explanation, asked), len(asked)), failures)
    if answers is None:
        return failed(explanation)
    true = [place < len(held) for place in order]
    hits = sum(a and t for a, t in zip(answers, true, strict=True)) / len(held)
    rejections = sum(not a and not t for a, t in zip(answers, true, strict=True)) / len(chosen)
    score = (hits + rejections) / 2
    return Explained(top.label, top.axis, explanation, score, tuple(failures), True)


def _sentence(answer: object) -> str:
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"the explainer returned {answer!r} in place of a sentence")
    return answer.strip()


def _answers(answer: object, count: int) -> list[bool]:
    try:
        flags = [bool(entry) for entry in answer]  # type: ignore[union-attr]
    except TypeError as error:
        raise ValueError(f"the judge returned {answer!r} in place of {count} answers") from error
    if isinstance(answer, str) or len(flags) != count:
        raise ValueError(f"the judge gave {len(flags)} answers to {count} contexts")
    return flags


class _Meter:
    """Counts calls, tries again, and writes down every failure."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.calls = self.answers = 0
        self.interrupted = False

    def ask(self, call: Callable[[], Any], failures: list[str]) -> Any:
        """What the call returns; None if it failed too often, or no more may be asked.

        Raises:
            KeyboardInterrupt: if nothing has been answered yet; else nothing more is asked.
        """
        for attempt in range(self.budget.retries + 1):
            if self.interrupted:
                failures.append("it was interrupted before it was asked")
                return None
            if self.calls >= self.budget.calls:
                failures.append(f"the budget of {self.budget.calls} calls is spent")
                return None
            try:
                with unstoppable():
                    answer = self._once(call, attempt)
                    self.answers += 1
                    # What is answered is paid for.
                    hold()
                return answer
            except KeyboardInterrupt:
                if not self.answers:
                    raise
                self.interrupted = True
                failures.append("it was interrupted before it was answered")
                return None
            except Exception as error:
                failures.append(f"{type(error).__name__}: {error}")
        return None

    def _once(self, call: Callable[[], Any], attempt: int) -> Any:
        with stoppable():
            if attempt and self.budget.wait:
                time.sleep(self.budget.wait * 2 ** (attempt - 1))
            self.calls += 1
            return call()


# --- an endpoint that speaks the protocol of OpenAI -----------------------------------------------

_EXPLAIN = (
    "Each line is a piece of text in which one token, between << and >>, activates the same "
    "direction of a neural network. Say in one short sentence what these tokens or their contexts "
    "have in common.\n\n"
)
_JUDGE = (
    "A direction of a neural network is said to activate on: {explanation}\nFor each numbered "
    "line, does its token between << and >> fit that? Answer with a JSON list of {count} entries, "
    "1 for yes and 0 for no, and nothing else.\n\n"
)


def marked(context: Context) -> str:
    """A context as one line, the token that activates between << and >>."""
    return "".join(
        f"<<{token}>>" if place == context.at else token
        for place, token in enumerate(context.tokens)
    ).replace("\n", " ")


@brief
@dataclasses.dataclass(frozen=True)
class Endpoint:
    """An explainer and a judge behind a chat endpoint that speaks the protocol of OpenAI.

    Attributes:
        url: of the endpoint up to and with the version, such as "http://localhost:8000/v1".
        model: its name there.
        key: sent as a bearer token; an empty string for none.
        timeout: seconds after which a call has failed, its whole answer included.
        options: further entries of the request, such as {"temperature": 0}.

    The key goes to the address given and nowhere else: a redirect is refused. It is in no repr, and
    in no message or answer, even where a server repeats it.

    Raises:
        ValueError: for an address that is none, that holds a password, a key that cannot be sent,
            or a timeout that is no positive number.
    """

    url: str
    model: str
    key: str = dataclasses.field(default="", repr=False)
    timeout: float = 60.0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        url = texts("url", (self.url,), "an address")[0]
        key = self.key
        texts("model", (self.model,), "its name")
        instance("options", self.options, Mapping, "a dict of further entries of the request")
        parts = urllib.parse.urlsplit(url)
        if "@" in parts.netloc:
            raise ValueError("the url holds a name or a password: give what is secret as key")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url={url!r}: give an http address, up to and with the version")
        if type(key) is not str or not re.fullmatch(r"[!-~]*", key):
            raise ValueError(
                "the key is no text, or holds a character that cannot be sent, such as a line "
                "break: give it without blanks, in ASCII"
            )
        number("timeout", self.timeout, most=1e7)

    def explain(self, contexts: Sequence[Context]) -> str:
        """One sentence about what the contexts have in common.

        Raises:
            OSError, ValueError: if the endpoint cannot be reached, or answers otherwise.
        """
        return self.chat(_EXPLAIN + "\n".join(marked(context) for context in contexts))

    def judge(self, explanation: str, contexts: Sequence[Context]) -> list[bool]:
        """Whether each of the contexts fits the explanation.

        Raises:
            OSError, ValueError: if the endpoint cannot be reached, or answers otherwise.
        """
        lines = "\n".join(f"{n}. {marked(context)}" for n, context in enumerate(contexts, 1))
        asked = _JUDGE.format(explanation=explanation, count=len(contexts)) + lines
        answer = self.chat(asked)
        found = re.search(r"\[[\s01,truefalseTF]*\]", answer)
        if found is None:
            raise ValueError(f"no list of answers in {answer[:80]!r}")
        values = json.loads(found[0].lower())
        return [bool(value) for value in values]

    def chat(self, text: str) -> str:
        """The endpoint's answer to one message.

        Raises:
            OSError: if it cannot be reached, does not answer in time, refuses, or redirects.
            ValueError: if it does not answer in the protocol, or without end.
        """
        body = {"model": self.model, "messages": [{"role": "user", "content": text}]}
        got = self._answer(json.dumps(body | dict(self.options)).encode())
        try:
            content = json.loads(got)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            content = None
        if not isinstance(content, str):
            raise ValueError(f"the endpoint answered {self._unsaid(got[:200])[:80]!r}")
        return self._unsaid(content)

    def _answer(self, body: bytes) -> str:
        """What the server answers; it is waited for in another thread, so that time can run out."""
        done: list[str | Exception] = []
        held: list[Any] = []
        waiting = threading.Thread(target=self._ask, args=(body, done, held), daemon=True)
        waiting.start()
        waiting.join(self.timeout)
        late = done and isinstance(getattr(done[0], "reason", done[0]), TimeoutError)
        if not done or late:
            for response in held:
                response.close()
            raise TimeoutError(
                f"the endpoint did not answer within {self.timeout:g} seconds: give a larger "
                "timeout, or an endpoint that is faster"
            )
        (got,) = done
        if isinstance(got, str):
            return got
        kind = ValueError if isinstance(got, ValueError) else OSError
        # Not the error itself: it holds the request, and with it the key.
        raise kind(self._unsaid(f"the endpoint cannot be used: {got}")) from None

    def _ask(self, body: bytes, done: list[str | Exception], held: list[Any]) -> None:
        """Puts the answer, or what went wrong, into `done`."""
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        address = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, body, headers)
        opener = urllib.request.build_opener(_Stays())
        try:
            with opener.open(request, timeout=self.timeout) as response:
                held.append(response)
                found = bytearray()
                while block := response.read1(1 << 16):
                    found += block
                    if len(found) > _LONGEST:
                        raise ValueError(f"its answer is longer than {_LONGEST >> 20} megabytes")
            done.append(found.decode("utf-8", "replace"))
        except urllib.error.HTTPError as error:
            error.close()
            done.append(OSError(f"HTTP status {error.code}, {str(error.reason)[:200]}"))
        except (ValueError, OSError) as error:
            done.append(error)
        except Exception as error:
            # A server may answer anything at all, and the thread must not end without a word.
            done.append(OSError(f"{type(error).__name__}: {str(error)[:200]}"))

    def _unsaid(self, text: str) -> str:
        """The text without the key; a short one is a word like others, and no secret."""
        return text.replace(self.key, "…") if len(self.key) >= 8 else text


_LONGEST = 16 << 20
"""Bytes of an answer at most."""


class _Stays(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the key and the question were given for one address."""

    def redirect_request(self, *arguments: Any, **_: Any) -> None:
        response, code, new = arguments[1], arguments[2], str(arguments[5])[:200]
        response.close()
        raise urllib.error.URLError(
            f"it redirects ({code}) to {new!r}, and the key and the question are for the address "
            "that was given; if that is the right one, give it as url"
        )
