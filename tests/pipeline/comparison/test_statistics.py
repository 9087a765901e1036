"""The statistics keep what they promise on drawn data: coverage, level, power, and Holm as it is written down."""

import math

import numpy as np
import pytest

from pipeline.comparison import statistics
from pipeline.comparison.statistics import holm, interval, paired_difference, t_probability, t_quantile


@pytest.mark.parametrize(
    ("df", "quantile"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423), (1000, 1.9623)]
)
def test_quantiles_are_those_of_printed_tables(df, quantile):
    assert t_quantile(0.05, df) == pytest.approx(quantile, abs=1e-4)
    assert t_probability(quantile, df) == pytest.approx(0.95, abs=1e-5)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7])
def test_probabilities_are_the_integral_of_the_density(df):
    t = np.linspace(-1.7, 1.7, 20001)
    factor = math.gamma((df + 1) / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
    density = factor * (1 + t**2 / df) ** (-(df + 1) / 2)
    assert t_probability(1.7, df) == pytest.approx(np.trapezoid(density, t), abs=1e-6)


@pytest.mark.parametrize("n", [3, 5])
def test_intervals_cover_the_mean_at_the_stated_rate(n):
    draws = np.random.default_rng(1).normal(0.9, 0.02, (4000, n))
    found = [interval(values) for values in draws]
    covered = np.mean([abs(mean - 0.9) <= half for mean, half in found])
    assert 0.94 < covered < 0.96  # three standard errors are 0.01


def test_an_interval_of_one_seed_has_no_width():
    mean, half = interval([0.5])
    assert mean == 0.5 and math.isnan(half)


def draw(generator, seeds: int, n: int, by_seed: float, by_example: float, shift: float = 0.0):
    """Return the scores of two methods, [S, N] each, whose difference varies with the seed, with the example and beyond."""
    shared = generator.normal(0, 1, (1, n))  # how hard an example is, for both
    parts = by_seed * generator.normal(0, 1, (seeds, 1)) + by_example * generator.normal(0, 1, (1, n))
    theirs = shared + generator.normal(0, 1, (seeds, n))
    return theirs + shift + parts + generator.normal(0, 1, (seeds, n)), theirs


CASES = [(2, 0.5, 0.0), (3, 0.2, 0.3), (3, 0.5, 0.0), (3, 0.0, 1.0), (5, 0.2, 0.3), (5, 0.5, 0.0), (5, 0.0, 1.0)]


@pytest.mark.parametrize(("seeds", "by_seed", "by_example"), CASES)
def test_the_paired_test_holds_its_level(seeds, by_seed, by_example, monkeypatch):
    monkeypatch.setattr(statistics, "DRAWS", 400)
    generator = np.random.default_rng(7)
    pairs = [draw(generator, seeds, 60, by_seed, by_example) for _ in range(600)]
    found = [paired_difference(*pair) for pair in pairs]
    assert np.mean([one.p < 0.05 for one in found]) < 0.075  # 0.05 and three standard errors
    assert np.mean([one.p < 0.005 for one in found]) < 0.014  # what Holm's correction looks at
    assert np.mean([abs(one.mean) <= one.half for one in found]) > 0.925
    assert all((one.p < 0.05) == (abs(one.mean) > one.half) for one in found)


def test_the_paired_test_finds_a_difference_that_is_there(monkeypatch):
    monkeypatch.setattr(statistics, "DRAWS", 400)
    generator = np.random.default_rng(8)
    found = [paired_difference(*draw(generator, 5, 200, 0.05, 0.1, shift=0.5)) for _ in range(100)]
    assert np.mean([one.p < 0.05 for one in found]) > 0.95
    assert np.mean([one.mean for one in found]) == pytest.approx(0.5, abs=0.03)


def test_an_interval_is_student_s_where_only_seeds_differ_and_a_bootstrap_s_where_only_examples_do():
    generator = np.random.default_rng(11)
    of_seeds = np.repeat(generator.normal(0, 1, (4, 1)), 50, axis=1)
    assert paired_difference(of_seeds, np.zeros((4, 50))).half == pytest.approx(interval(of_seeds[:, 0])[1])
    of_examples = np.repeat(generator.normal(0, 1, (1, 200)), 4, axis=0)
    normal = 1.96 * of_examples[0].std() / math.sqrt(200)
    assert paired_difference(of_examples, np.zeros((4, 200))).half == pytest.approx(normal, rel=0.05)


def test_pairs_are_what_makes_a_small_difference_visible():
    generator = np.random.default_rng(9)
    ours, theirs = draw(generator, 5, 200, 0.02, 0.05, shift=0.3)
    wrong_pairs = paired_difference(ours, theirs[:, generator.permutation(200)])
    assert paired_difference(ours, theirs).half < wrong_pairs.half


def test_seeds_alone_would_find_what_is_not_there(monkeypatch):
    """Where the test examples differ in which method they favour, seeds agree with each other and are all wrong."""
    monkeypatch.setattr(statistics, "DRAWS", 400)
    generator = np.random.default_rng(10)
    pairs = [draw(generator, 5, 60, 0.0, 3.0) for _ in range(200)]
    naive = [interval((ours - theirs).mean(axis=1)) for ours, theirs in pairs]
    assert np.mean([abs(mean) > half for mean, half in naive]) > 0.5
    assert np.mean([paired_difference(*pair).p < 0.05 for pair in pairs]) < 0.1


def test_equal_scores_are_no_difference():
    same = np.ones((5, 20))
    found = paired_difference(same, same)
    assert (found.mean, found.p) == (0.0, 1.0) and found.half < 1e-9


def test_one_seed_tells_nothing():
    found = paired_difference(np.ones((1, 20)), np.zeros((1, 20)))
    assert found.mean == 1.0 and math.isnan(found.p) and math.isnan(found.half)


def plain_holm(p_values: list[float]) -> list[float]:
    """Return for each test the smallest level at which Holm's procedure rejects it, step by step."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    levels = {}
    for number in order:
        before = order[: order.index(number) + 1]
        levels[number] = min(1.0, max((len(p_values) - place) * p_values[one] for place, one in enumerate(before)))
    return [levels[number] for number in range(len(p_values))]


def test_holm_is_the_plain_procedure_and_monotone():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    generator = np.random.default_rng(3)
    for n in (1, 2, 7, 20):
        p_values = (generator.random(n) ** 3).tolist()
        found = holm(p_values)
        assert found == pytest.approx(plain_holm(p_values))
        assert all(one >= p for one, p in zip(found, p_values, strict=True))
        order = np.argsort(p_values)
        assert (np.diff(np.array(found)[order]) >= 0).all()


def test_holm_keeps_the_level_of_all_tests_together():
    generator = np.random.default_rng(4)
    wrong = [min(holm(generator.random(15).tolist())) < 0.05 for _ in range(2000)]
    assert np.mean(wrong) < 0.065
