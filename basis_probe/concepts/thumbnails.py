"""What a place of a feature map sees, as a small picture."""

import base64
import dataclasses
import io

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

SIDE = 48
"""A picture is at most so many pixels wide and high: smaller parts of an image stay as they are."""


@dataclasses.dataclass(frozen=True)
class Thumbnails:
    """Makes pictures of parts of images, all in the same colours.

    What a network is fed has often been shifted and scaled channel by channel, and nothing says
    how. So the darkest and the brightest values among some images become black and white.

    Attributes:
        low, high: of every channel, [channels, 1, 1].

    Example:
        >>> images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 4 - 2
        >>> made = Thumbnails.of(images)
        >>> made.picture(images[0], (0, 8, 16, 24)).shape
        torch.Size([16, 16, 3])
        >>> encoded(made.picture(images[0], (0, 0, 32, 32)))[:8]
        'iVBORw0K'
    """

    low: Float[Tensor, "channels 1 1"]
    high: Float[Tensor, "channels 1 1"]

    @staticmethod
    def of(images: Tensor) -> "Thumbnails | None":
        """For images like these; None if they are none of one or three channels."""
        if images.ndim != 4 or not images.is_floating_point() or images.shape[1] not in (1, 3):
            return None
        values = images.detach().float().cpu().transpose(0, 1).flatten(1)
        if not bool(values.isfinite().all()):
            return None
        # A few values far away would leave all others grey.
        few = values[:, :: max(1, values.shape[1] // 100_000)]
        ends = few.quantile(torch.tensor([0.002, 0.998], dtype=few.dtype), dim=1)
        return Thumbnails(ends[0, :, None, None], ends[1, :, None, None])

    def picture(
        self, image: Float[Tensor, "channels height width"], box: tuple[int, int, int, int]
    ) -> UInt8[Tensor, "rows columns channels"]:
        """A part of an image, made smaller where it is large."""
        top, left, bottom, right = box
        part = image[:, top:bottom, left:right].detach().float().cpu()
        rows, columns = part.shape[1:]
        shrink = SIDE / max(rows, columns)
        if shrink < 1:
            less = max(1, round(rows * shrink)), max(1, round(columns * shrink))
            part = torch.nn.functional.adaptive_avg_pool2d(part, less)
        lit = (part - self.low) / (self.high - self.low).clamp_min(1e-12)
        return (255 * lit.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0)


def encoded(picture: UInt8[Tensor, "rows columns channels"]) -> str:
    """A picture as PNG in base64, as a page holds it."""
    from PIL import Image

    values = picture.numpy()
    file = io.BytesIO()
    Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values).save(
        file, format="png", optimize=True
    )
    return base64.b64encode(file.getvalue()).decode("ascii")
