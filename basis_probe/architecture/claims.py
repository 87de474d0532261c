"""What claims rest on: their sources, and what is said where there is none."""

from basis_probe.model.facts import Region, Shape

PAPER = "Godfrey, Brown, Emerson, Kvinge 2022 (arXiv 2205.14258), section 3 and Table 1"
RESIDUAL = "Elhage, Lasenby, Olah 2023, Privileged Bases in the Transformer Residual Stream"
ALGEBRA = "algebra of the modules around the site"

NOTHING = Region(Shape.UNKNOWN)
"""What is known of a vertex that is no function of single rows."""


class NotUnderstood(Exception):
    """What stands in the way of a claim."""
