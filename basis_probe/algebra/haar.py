"""Uniformly distributed rotations: of a whole space, of a few directions, and around fixed vectors.

The orthogonal factor of a Gaussian matrix is uniform only after its columns are flipped so that the
diagonal of R is positive. Without that, LAPACK's choice of signs leans every direction to one side
of its own axis.

Source: F. Mezzadri, "How to generate random matrices from the classical compact groups",
Notices of the AMS 54 (2007), section 4.
"""

from __future__ import annotations

import functools

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from basis_probe.algebra.remembered import remembered

_APART = 0.1
"""Rows whose singular values are within so much of each other are far from dependent."""
_TALL = 4
"""Gaussian columns so many times longer than they are many are far from dependent."""
_SMALL = 512
"""Up to so many dimensions a frame is made, to be used at every site of that width."""


def haar(dim: int, generator: torch.Generator) -> Float64[Tensor, "dim dim"]:
    """An orthogonal matrix, uniformly distributed on O(dim): reflections and rotations alike.

    Args:
        dim: the size, at least 1.
        generator: a generator on the CPU; one seed means one matrix, whatever device uses it.

    Raises:
        ValueError: if `dim` is below 1 or the generator is not on the CPU.

    Example:
        >>> turn = haar(5, torch.Generator().manual_seed(0))
        >>> torch.allclose(turn.T @ turn, torch.eye(5, dtype=torch.float64))
        True
    """
    return haar_directions(dim, dim, generator)


def haar_directions(
    dim: int, count: int, generator: torch.Generator
) -> Float64[Tensor, "dim direction"]:
    """Orthonormal columns, distributed as the first `count` columns of a uniform rotation.

    Args:
        dim: dimension of the space, at least 1.
        count: number of directions, between 1 and `dim`.
        generator: a generator on the CPU.

    Raises:
        ValueError: if the sizes do not fit or the generator is not on the CPU.

    Example:
        >>> haar_directions(100, 3, torch.Generator().manual_seed(0)).shape
        torch.Size([100, 3])
    """
    if dim < 1:
        raise ValueError(f"a rotation of {dim} dimensions was asked for: give dim >= 1")
    if not 1 <= count <= dim:
        raise ValueError(
            f"{count} orthonormal directions were asked for in {dim} dimensions: "
            f"give a count between 1 and {dim}"
        )
    return _positive_qr(_gaussian(dim, count, generator))


def haar_fixing(
    vectors: Float[Tensor, "sample dim"], generator: torch.Generator
) -> Float64[Tensor, "dim dim"]:
    """An orthogonal matrix that leaves the vectors where they are, uniform among all of those.

    It is the identity on the span of the vectors and uniform on O(dim - rank) across it. Zero
    vectors and vectors that depend on the others add nothing; where the vectors span the whole
    space, the identity is returned.

    Args:
        vectors: one per row; their lengths do not matter.
        generator: a generator on the CPU.

    Raises:
        ValueError: if `vectors` is not a matrix of finite real numbers with at least one column, or
            the generator is not on the CPU.

    Example:
        >>> ones = torch.ones(1, 4, dtype=torch.float64)
        >>> turn = haar_fixing(ones, torch.Generator().manual_seed(0))
        >>> torch.allclose(turn @ ones[0], ones[0])
        True
    """
    if vectors.ndim != 2 or vectors.shape[1] < 1:
        raise ValueError(
            f"the fixed vectors have shape {tuple(vectors.shape)}: give [count, dim], one per row"
        )
    if vectors.is_complex() or not bool(vectors.isfinite().all()):
        raise ValueError("the fixed vectors are not all finite real numbers: leave those out")
    span = _span(vectors.detach().to("cpu", torch.float64))
    dim, rank = span.shape
    if rank == 0:
        return haar(dim, generator)
    # Behind the span, the columns of this frame are uniform in its complement ...
    frame = _positive_qr(torch.cat([span, _gaussian(dim, dim - rank, generator)], dim=1))
    # ... and the reflections that make the span from the first axes make a fixed basis of the
    # complement from the others; mapping that basis to the uniform one is the turn.
    reflections, scales = torch.geqrf(span)
    frame[:, :rank] *= reflections.diagonal().sign()
    return torch.ormqr(reflections, scales, frame, left=False, transpose=True)


class Turned:
    """Given vectors after turns of their space that leave others where they are, uniform otherwise.

    The turned vectors are what `vectors @ haar_fixing(fixed, generator)` holds, and have its law;
    but no square matrix is made of the whole space, only a frame of as many directions as there are
    vectors: with F uniform among the orthonormal frames across what is fixed, and V = B R for an
    orthonormal B, the turned V has the law of F R.

    Args:
        vectors: what is turned, one per row.
        fixed: what is left where it is, one per row; None for nothing.

    Attributes:
        along: what the vectors have along `span`, [direction, fixed].

    Raises:
        ValueError: if the vectors are no matrix of finite real numbers.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> axes = torch.eye(1000, dtype=torch.float64)[:3]
        >>> turned = Turned(axes, None).draw(generator)
        >>> torch.allclose(turned @ turned.T, torch.eye(3, dtype=torch.float64))
        True
    """

    def __init__(
        self,
        vectors: Float[Tensor, "direction dim"],
        fixed: Float[Tensor, "sample dim"] | None,
    ) -> None:
        if not bool(vectors.isfinite().all()):
            raise ValueError("the vectors to turn are not all finite: leave those out")
        given = vectors.detach().to("cpu", torch.float64)
        dim = given.shape[1]
        empty = given.new_zeros(dim, 0)
        self._span = empty if fixed is None else _span(fixed.detach().to("cpu", torch.float64))
        rank = self._span.shape[1]
        self.along = given @ self._span
        self._kept = self.along @ self._span.T
        across = given - self._kept
        self._free = min(len(given), dim - rank)
        self._many = dim >= _TALL * (rank + self._free)
        if rank and not self._many:
            # Reflections that make the span from the first axes make a basis of all that turns from
            # the others.
            span, scales = torch.geqrf(self._span)
            across = torch.ormqr(span, scales, across, left=False)[:, rank:]
            self._reflected = _compact(span, scales)
        if self._free == dim - rank:
            self._inside = across
        else:
            self._inside = torch.linalg.qr(across.T).R.T

    def draw(
        self, generator: torch.Generator, *, dtype: torch.dtype = torch.float64
    ) -> Float[Tensor, "direction dim"]:
        """The vectors, turned; the generator is on the CPU.

        Args:
            generator: on the CPU; one seed means the same turn in every type.
            dtype: in which they are computed: float64, or float32 in a third of the time.
        """
        if self._free == 0:
            return self._kept.to(dtype, copy=True)
        dim, rank = self._span.shape
        require_cpu(generator)
        if self._many:
            return self._among_many(generator, dtype)
        if rank:
            return self._about_fixed(generator, dtype)
        # Normals of single precision are drawn five times faster; the frame is exact all the same.
        (frame,) = remembered(
            generator,
            ("columns", dim, self._free, "orthonormal"),
            lambda: (_positive_qr(_normal(dim, self._free, generator).double()),),
        )
        return torch.addmm(self._kept, self._inside, frame.T).to(dtype)

    def _about_fixed(self, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """The vectors turned where some are fixed, and they are not few of many dimensions.

        The reflections that bring Gaussian columns to triangular form one after another are made of
        Gaussian columns that have not been touched by those before: nothing need be decomposed.

        Source: G. W. Stewart, SIAM J. Numer. Anal. 17 (1980) 403.
        """
        rank = self._span.shape[1]
        inside, kept, vectors, weights = self._parts[dtype]
        dim = len(self._span) - rank
        if dim <= _SMALL:
            # Sites of one width share the frame, and a product is faster than reflections.
            (frame,) = remembered(
                generator,
                ("frame", dim, self._free, dtype),
                lambda: (_framed(_normal(dim, self._free, generator).double()).to(dtype),),
            )
            turned = inside @ frame.T
        else:
            normal = _normal(dim, self._free, generator).to(dtype)
            reflections, scales, signs = _triangular(normal)
            turned = inside.new_zeros(len(inside), dim)
            torch.mul(inside, signs, out=turned[:, : self._free])
            turned = torch.ormqr(reflections, scales, turned, left=False, transpose=True)
        # Behind zeros in the first places it is reflected back.
        seen = turned @ vectors[rank:]
        back = torch.addmm(kept, seen @ weights, vectors.T)
        back[:, rank:] += turned
        return back

    @functools.cached_property
    def _parts(self) -> dict[torch.dtype, tuple[Tensor, ...]]:
        """What does not change from draw to draw, in either type."""
        parts = (self._inside, self._kept, *self._reflected)
        both = (torch.float64, torch.float32)
        return {dtype: tuple(part.to(dtype) for part in parts) for dtype in both}

    def _among_many(self, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """The vectors turned, where they are few of many dimensions."""
        columns, weights = (part[0] for part in self.factors(generator, 1, dtype=dtype))
        span = self.span.to(dtype)
        turned = torch.addmm(self._kept.to(dtype), weights, columns.T)
        return turned.sub_((weights @ (span.T @ columns).T) @ span.T)

    @property
    def span(self) -> Float64[Tensor, "dim fixed"]:
        """An orthonormal basis of what is left where it is, one vector per column."""
        return self._span

    @property
    def has_factors(self) -> bool:
        """Whether the vectors are few of many dimensions, so that `factors` can be asked for."""
        return self._many and self._free > 0

    def factors(
        self, generator: torch.Generator, count: int, *, dtype: torch.dtype
    ) -> tuple[list[Float[Tensor, "dim free"]], Float[Tensor, "turn direction free"]]:
        """What as many turned sets of vectors are made of, where `has_factors`.

        The turned vectors of number n are kept + weights[n] @ columns[n].T across what is fixed:
        kept is what they have along the span, and what the columns have along it falls away. With
        G the normals across what is fixed and U the Cholesky factor of their Gram matrix, the frame
        is G U^-1. It is not made: of U, small as it is, the inverse acts on the vectors.

        Args:
            generator: on the CPU; the turns are those of as many calls of `draw`.
            count: how many.
            dtype: of what is returned.

        Example:
            >>> turning = Turned(torch.eye(9, dtype=torch.float64)[:2], None)
            >>> columns, weights = turning.factors(
            ...     torch.Generator().manual_seed(0), 3, dtype=torch.float64
            ... )
            >>> one = turning.draw(torch.Generator().manual_seed(0))
            >>> torch.allclose(weights[0] @ columns[0].T, one)
            True
        """
        require_cpu(generator)
        dim = len(self._span)
        drawn = [
            remembered(
                generator,
                ("columns and products", dim, self._free),
                lambda: _with_products(_normal(dim, self._free, generator)),
            )
            for _ in range(count)
        ]
        columns = [one.to(dtype) for one, _ in drawn]
        grams = torch.stack([gram for _, gram in drawn])
        if self._span.shape[1]:
            span = self._span.to(dtype)
            along = torch.stack([span.T @ one for one in columns]).double()
            grams = grams - along.mT @ along
        upper = torch.linalg.cholesky(grams, upper=True)
        # inside U^-T, from the right.
        inside = self._inside.expand(count, -1, -1)
        weights = torch.linalg.solve_triangular(upper.mT, inside, upper=False, left=False)
        return columns, weights.to(dtype)


def turned_axes(
    count: int, dim: int, generator: torch.Generator, *, some: int | None = None
) -> Float64[Tensor, "count some dim"]:
    """As many turns of some axes as `Turned(axes, None)` would draw one after the other.

    Args:
        count: how many.
        dim: the size of each.
        generator: a generator on the CPU.
        some: how many of the axes are turned; None for all.

    Example:
        >>> made = turned_axes(3, 4, torch.Generator().manual_seed(0))
        >>> one = Turned(torch.eye(4, dtype=torch.float64), None)
        >>> torch.allclose(made[0], one.draw(torch.Generator().manual_seed(0)))
        True
    """
    require_cpu(generator)
    width = dim if some is None else some

    def make() -> tuple[Tensor]:
        drawn = [_normal(dim, width, generator) for _ in range(count)]
        return (_positive_qr(torch.stack(drawn).double()).mT.contiguous(),)

    return remembered(generator, ("turns", count, dim, width), make)[0]


def require_cpu(generator: torch.Generator) -> None:
    """Nothing; raises where the numbers would depend on the device.

    Raises:
        ValueError: if the generator is not on the CPU.
    """
    if generator.device.type != "cpu":
        raise ValueError(
            f"the generator is on {generator.device}: give a torch.Generator on the CPU, so that "
            "one seed means the same numbers on every device"
        )


def _gaussian(dim: int, count: int, generator: torch.Generator) -> Float64[Tensor, "dim direction"]:
    require_cpu(generator)
    return torch.randn(dim, count, generator=generator, dtype=torch.float64)


def _normal(dim: int, count: int, generator: torch.Generator) -> Float32[Tensor, "dim direction"]:
    return torch.randn(dim, count, generator=generator, dtype=torch.float32)


def _triangular(
    columns: Float[Tensor, "dim direction"],
) -> tuple[
    Float[Tensor, "dim direction"], Float[Tensor, " direction"], Float[Tensor, " direction"]
]:
    """Reflections, as LAPACK keeps them, for independent Gaussian columns; with the signs of R.

    Column k is reflected from its k-th entry on; what is above that was turned away before.
    """
    below = columns.tril()
    first = columns.diagonal()
    signs = torch.where(first < 0, 1.0, -1.0).to(columns)
    lengths = below.square().sum(0).sqrt_() * signs
    return below / (first - lengths), (lengths - first) / lengths, signs


def _framed(columns: Float64[Tensor, "dim direction"]) -> Float64[Tensor, "dim direction"]:
    """The orthonormal frame that those reflections make, uniform where columns are Gaussian."""
    reflections, scales, signs = _triangular(columns)
    return torch.linalg.householder_product(reflections, scales) * signs


def _compact(
    reflections: Float64[Tensor, "dim fixed"], scales: Float64[Tensor, " fixed"]
) -> tuple[Float64[Tensor, "dim fixed"], Float64[Tensor, "fixed fixed"]]:
    """V and W with Q' = I + V W V' for the product Q of reflections as LAPACK keeps them.

    Source: Schreiber and Van Loan 1989, SIAM J. Sci. Stat. Comput. 10:53.
    """
    vectors = reflections.tril(-1)
    vectors.diagonal().fill_(1.0)
    count = len(scales)
    weights = torch.zeros(count, count, dtype=torch.float64)
    for last in range(count):
        some = vectors[:, :last].T @ vectors[:, last]
        weights[:last, last] = -scales[last] * (weights[:last, :last] @ some)
        weights[last, last] = scales[last]
    return vectors, -weights.T


def _with_products(columns: Tensor) -> tuple[Tensor, Tensor]:
    exact = columns.double()
    return columns, exact.T @ exact


def _positive_qr(
    columns: Float64[Tensor, "*stack dim direction"],
) -> Float64[Tensor, "*stack dim direction"]:
    """The orthogonal factor of the QR decomposition whose R has a positive diagonal."""
    rows, count = columns.shape[-2:]
    if rows >= _TALL * count:
        # Tall Gaussian columns are so far from dependent that the Cholesky factor of their Gram
        # matrix, which has a positive diagonal, is as exact and three times faster.
        upper = torch.linalg.cholesky(columns.mT @ columns, upper=True)
        return torch.linalg.solve_triangular(upper, columns, upper=True, left=False)
    q, r = torch.linalg.qr(columns)
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    return q * signs.to(q).unsqueeze(-2)


def _span(vectors: Float64[Tensor, "sample dim"]) -> Float64[Tensor, "dim direction"]:
    """An orthonormal basis of the span of the rows."""
    # The largest entry first: squares of very small or large entries leave the range of float64.
    largest = vectors.abs().amax(dim=1, keepdim=True)
    rows = vectors[largest[:, 0] > 0] / largest[largest[:, 0] > 0]
    if len(rows) == 0:
        return vectors.new_zeros(vectors.shape[1], 0)
    rows = rows / rows.norm(dim=1, keepdim=True)
    _, sizes, directions = torch.linalg.svd(rows, full_matrices=False)
    smallest = sizes[0] * max(rows.shape) * torch.finfo(torch.float64).eps
    if 1 < len(rows) <= len(sizes) and float(sizes[-1]) > _APART * float(sizes[0]):
        # Singular vectors of equal singular values, as of orthogonal rows, are any that rounding
        # picks; these move as little as the rows do, and what is drawn across them too.
        return _positive_qr(rows.T)
    return directions[sizes > smallest].T.contiguous()
