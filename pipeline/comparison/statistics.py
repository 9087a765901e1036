"""What the results of a few seeds say: an interval for a mean, a test of a difference in pairs, many tests at once.

Letters used for shapes: S seeds, N examples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05
DRAWS = 4000  # of the bootstrap
SEED = 2023


def t_probability(t: float, df: int) -> float:
    """Return the probability that a variable of Student's distribution with df degrees of freedom lies in [-t, t].

    The finite sums of Abramowitz & Stegun 1964, 26.7.3 and 26.7.4.
    """
    theta = math.atan(t / math.sqrt(df))
    sine, cosine = math.sin(theta), math.cos(theta)
    if df % 2 == 0:
        term = total = 1.0
        for k in range(1, df // 2):
            term *= cosine**2 * (2 * k - 1) / (2 * k)
            total += term
        return sine * total
    term = total = cosine if df > 1 else 0.0
    for k in range(1, (df - 1) // 2):
        term *= cosine**2 * 2 * k / (2 * k + 1)
        total += term
    return 2 / math.pi * (theta + sine * total)


def t_quantile(level: float, df: int) -> float:
    """Return the t for which [-t, t] has all but `level` of the probability."""
    low, high = 0.0, 1e6
    while high - low > 1e-9 * (1 + low):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, df) < 1 - level else (low, middle)
    return high


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

    A bootstrap of the seeds and one of the examples, in pairs, give the two parts of the variance. The degrees of freedom
    of their sum are Satterthwaite's (1946), as three or five seeds say little of their own spread.
    """
    differences = ours - theirs  # [S, N]
    mean, parts = float(differences.mean()), []
    for values in (differences.mean(axis=1), differences.mean(axis=0)):  # of seeds [S], of examples [N]
        parts.append((bootstrap_variance(values), len(values) - 1))
    if not all(df for _, df in parts):
        return Difference(mean, math.nan, math.nan)
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return Difference(mean, 0.0, 1.0 if mean == 0 else 0.0)
    df = max(1, int(variance**2 / sum(part**2 / df for part, df in parts)))
    spread = math.sqrt(variance)
    return Difference(mean, t_quantile(LEVEL, df) * spread, 1 - t_probability(abs(mean) / spread, df))


def bootstrap_variance(values: np.ndarray) -> float:
    """Return the variance of the mean of n values, from draws of n with replacement.

    Such draws are too much alike by (n - 1)/n, which matters for few.
    """
    n, generator = len(values), np.random.default_rng(SEED)
    counts = generator.multinomial(n, np.full(n, 1 / n), DRAWS)  # [draws, n]
    return float((counts @ values / n).var()) * n / max(n - 1, 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values as they stand for all tests together (Holm 1979, "A simple sequentially rejective multiple test
    procedure"): the smallest of m times m, the next times m - 1, ..., none below the one before, at most 1."""
    order, largest = np.argsort(p_values, kind="stable"), 0.0
    corrected = [1.0] * len(p_values)
    for place, number in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[number]))
        corrected[number] = largest
    return corrected
