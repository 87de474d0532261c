"""Contexts that activate a direction most, as values: what is shown, judged and explained."""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from basis_probe.brief import brief
from basis_probe.results.envelope import read, written


@brief
@dataclasses.dataclass(frozen=True)
class Context:
    """A token that activates a direction, with the tokens around it.

    Attributes:
        tokens: as a reader sees them, spaces included; where an input holds no tokens, one text
            that says which place of which example it is.
        activations: of the direction at each of them, times its sign.
        at: which of the tokens activates.
        example: number of the example in the data.
        position: of that token in the example.
        box: of the image that is the example: top, left, bottom and right (the last two outside) of
            the part that the place sees; None where examples are no images.
        picture: that part of the image, made small, as PNG in base64; empty where examples are no
            images of one or three channels.
    """

    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    at: int
    example: int
    position: int
    box: tuple[int, int, int, int] | None = None
    picture: str = ""

    def __post_init__(self) -> None:
        count = len(self.activations)
        if len(self.tokens) != count or not 0 <= self.at < count:
            raise ValueError(
                f"token {self.at} of {len(self.tokens)} tokens with {count} activations: give an "
                "activation for every token, and one of their places"
            )

    @property
    def activation(self) -> float:
        """At the token that activates."""
        return self.activations[self.at]

    def crop(self, images: Tensor) -> Tensor:
        """The patch of the image that activates, [channels, rows, columns].

        Args:
            images: all images of the data in their order, [images, channels, height, width].

        Raises:
            ValueError: if the context is no part of an image.
        """
        if self.box is None:
            raise ValueError("the context has no box: only maps of image networks have patches")
        top, left, bottom, right = self.box
        return images[self.example, ..., top:bottom, left:right]

    def shade(self, place: int) -> float:
        """How strongly a token is tinted: 0 for none, 1 for the context's largest activation."""
        largest = max(self.activations)
        return max(0.0, self.activations[place] / largest) if largest > 0 else 0.0


@brief
@dataclasses.dataclass(frozen=True)
class TopContexts:
    """The contexts that activate one direction most, from the most active one down.

    Attributes:
        label: what the direction is called: "axis 12", "direction 3 of rotation 1".
        axis: which axis it is; None for a direction of the null.
        sign: 1 or -1, in which sense the direction is read.
        contexts: at most as many as were asked for.
        scores: "token purity": share of the contexts whose token is the commonest among them;
            "concept purity": the same of the commonest concept, where concepts were given.
        concept: the concept that is commonest among them, or an empty string.
    """

    label: str
    axis: int | None
    sign: int
    contexts: tuple[Context, ...]
    scores: Mapping[str, float]
    concept: str = ""

    def _repr_html_(self) -> str:
        from basis_probe.show.concepts import contexts

        return contexts((self,), self.label)


@brief
@dataclasses.dataclass(frozen=True)
class Examples:
    """Top contexts of some axes and of as many directions of a rotation, at one site.

    Attributes:
        site: its name.
        axes: of the axes.
        rotated: of directions of a Haar rotation of the same activations.
        chosen: how the axes were chosen, in words; empty where the user chose them.
    """

    site: str
    axes: tuple[TopContexts, ...]
    rotated: tuple[TopContexts, ...]
    chosen: str = ""

    def mean(self, score: str) -> tuple[float, float]:
        """The mean of a score over the axes, and over the rotated directions."""
        both = [
            [found.scores[score] for found in several if score in found.scores]
            for several in (self.axes, self.rotated)
        ]
        return tuple(sum(s) / len(s) if s else float("nan") for s in both)  # pyright: ignore[reportReturnType]

    def blind(self, seed: int = 0) -> tuple[TopContexts, ...]:
        """Axes and rotated directions in one random order, to be judged without knowing which."""
        both = (*self.axes, *self.rotated)
        order = torch.randperm(len(both), generator=torch.Generator().manual_seed(seed))
        return tuple(both[place] for place in order.tolist())

    def to_json(self) -> str:
        """A text from which `Examples.from_json` makes an equal value."""
        return written("examples", self)

    @classmethod
    def from_json(cls, text: str) -> "Examples":
        """The value that `to_json` wrote.

        Raises:
            ValueError: if the text is no such value.
        """
        return read("examples", cls, text)

    def _repr_html_(self) -> str:
        from basis_probe.show.concepts import examples

        return examples(self)
