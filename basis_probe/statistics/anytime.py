"""Evidence that may be looked at as often as one likes, and stopped at will.

An e-value is a number that is at most 1 on average where nothing is to be found. Looks at one
network are not independent: whatever luck its weights had, every look has again, so that their
product proves nothing. A sum of e-values with weights of 1 in all has a mean of at most 1 whatever
their dependence, and never falls; so, by Markov, it ever reaches 20 with a probability of 1 in 20
at most, at whichever moment the user stops.

Source: V. Vovk and R. Wang, Annals of Statistics 49 (2021) 1736, on calibrators and means of
e-values.
"""

import math
from collections.abc import Sequence


def e_of(p: float) -> float:
    """The e-value of a p-value: the mean of k p^(k-1) over k in (0, 1).

    Args:
        p: in (0, 1]; NaN gives NaN.

    Raises:
        ValueError: for another number.

    Example:
        >>> e_of(1.0), round(e_of(0.05), 2), round(e_of(1e-6))
        (0.5, 1.78, 5239)
    """
    if math.isnan(p):
        return math.nan
    if not 0 < p <= 1:
        raise ValueError(f"p={p}: give a p-value in (0, 1]")
    log = math.log(p)
    if log > -1e-4:
        # The limit, and its slope, where the formula is a difference of equal numbers.
        return 0.5 - log / 6
    return (1 - p + p * log) / (p * log * log)


def mean_e(p_values: Sequence[float]) -> float:
    """The e-value of several tests of one hypothesis, of whatever dependence: the mean.

    NaN, where a test said nothing, is left out; NaN where none said anything.
    """
    found = [e_of(p) for p in p_values if not math.isnan(p)]
    return sum(found) / len(found) if found else math.nan


def weight(look: int) -> float:
    """The weight of a look; all of them together have 1.

    Looks 2^j to 2^(j+1) - 1 share 1/((j+1)(j+2)): half goes to the first, and what begins to show
    late has not lost much.

    Args:
        look: its number, from 1.

    Example:
        >>> weight(1), round(1 / weight(2)), round(1 / weight(1000))
        (0.5, 12, 56320)
    """
    epoch = look.bit_length() - 1
    return 1 / ((epoch + 1) * (epoch + 2) * 2**epoch)
