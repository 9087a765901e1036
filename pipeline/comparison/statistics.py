"""What the results of a few seeds say: an interval for a mean, a test of a difference in pairs, many tests at once.

Letters used for shapes: S seeds, N examples.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05
DRAWS = 4000  # of the bootstrap
SEED = 2023


def t_probability(t: float | np.ndarray, df: int) -> np.ndarray:
    """Return the probability that a variable of Student's distribution with df degrees of freedom lies between -t and t.

    It is negative for a negative t. The finite sums of Abramowitz & Stegun 1964, 26.7.3 and 26.7.4.
    """
    theta = np.arctan(np.asarray(t) / math.sqrt(df))
    sine, cosine = np.sin(theta), np.cos(theta)
    if df % 2 == 0:
        term = total = np.ones_like(theta)
        for k in range(1, df // 2):
            term = term * cosine**2 * (2 * k - 1) / (2 * k)
            total = total + term
        return sine * total
    term = total = cosine if df > 1 else np.zeros_like(theta)
    for k in range(1, (df - 1) // 2):
        term = term * cosine**2 * 2 * k / (2 * k + 1)
        total = total + term
    return 2 / math.pi * (theta + sine * total)


def first_where(is_beyond: Callable[[float], bool]) -> float:
    """Return the smallest number from 0 to 1,000,000 for which it is true; it is for all larger ones too."""
    low, high = 0.0, 1e6
    while high - low > 1e-9 * (1e-3 + low):
        middle = (low + high) / 2
        low, high = (low, middle) if is_beyond(middle) else (middle, high)
    return high


def t_quantile(level: float, df: int) -> float:
    """Return the t for which all but `level` of the probability lies between -t and t."""
    return first_where(lambda t: t_probability(t, df) >= 1 - level)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of values of several seeds, and half of its 95% interval by Student's t (nan for one value)."""
    n = len(values)
    if n < 2:
        return float(np.mean(values)), math.nan
    return float(np.mean(values)), t_quantile(LEVEL, n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)


@dataclass(frozen=True)
class Difference:
    """A mean difference, half of its 95% interval, and the probability of one as large where there is none."""

    mean: float
    half: float
    p: float


def paired_difference(ours: np.ndarray, theirs: np.ndarray) -> Difference:
    """Return how much larger `ours` [S, N] is than `theirs` [S, N] in the mean: the same seeds, the same examples.

    How far the mean may be off has two parts. Other examples: a bootstrap draws them, with all that the seeds found of
    each. Other seeds: three or five are too few to draw from, as they say little of their own spread, so that Student's t
    tells how far off their mean may be. Every draw of the one is added to the whole distribution of the other.
    """
    differences = ours - theirs  # [S, N]
    mean, (n_seeds, n) = float(differences.mean()), differences.shape
    if n_seeds < 2 or n < 2:
        return Difference(mean, math.nan, math.nan)
    of_examples = bootstrap(differences.mean(axis=0)) - mean  # [draws]
    of_seeds = float(differences.mean(axis=1).std(ddof=1)) / math.sqrt(n_seeds)
    scale = max(of_seeds, 1e-12)  # where all seeds agree

    def probability_beyond(distance: float) -> float:
        inside = [t_probability((distance + sign * of_examples) / scale, n_seeds - 1) for sign in (1, -1)]
        return float(np.clip(1 - sum(inside) / 2, 0, 1).mean())

    half = first_where(lambda distance: probability_beyond(distance) <= LEVEL)
    return Difference(mean, half, probability_beyond(abs(mean)))


def bootstrap(values: np.ndarray) -> np.ndarray:
    """Return the means of draws of n values from n, with replacement."""
    n, generator = len(values), np.random.default_rng(SEED)
    return generator.multinomial(n, np.full(n, 1 / n), DRAWS) @ values / n  # [draws, n] and [n] -> [draws]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values as they stand for all tests together (Holm 1979, "A simple sequentially rejective multiple test
    procedure"): the smallest of m times m, the next times m - 1, ..., none below the one before, at most 1."""
    order, largest = np.argsort(p_values, kind="stable"), 0.0
    corrected = [1.0] * len(p_values)
    for place, number in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[number]))
        corrected[number] = largest
    return corrected
