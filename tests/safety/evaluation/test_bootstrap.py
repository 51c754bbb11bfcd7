"""Intervals against scipy's exact tools, closed forms and simulated coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from safety.errors import EmptyDatasetError
from safety.evaluation.bootstrap import (
    BootstrapConfig,
    estimate_difference,
    estimate_mean,
    estimate_mean_of_shares,
    estimate_share,
)

CONFIG = BootstrapConfig(resamples=2000)


@pytest.mark.parametrize(("successes", "trials"), [(0, 24), (24, 24), (0, 1)])
def test_a_share_that_never_varies_gets_wilsons_interval(successes: int, trials: int) -> None:
    found = estimate_share([True] * successes + [False] * (trials - successes), CONFIG, 0, "x")
    expected = stats.binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.value, found.n) == (successes / trials, trials)


@pytest.mark.parametrize("method", ["BCa", "percentile"])
def test_a_middling_share_agrees_with_the_normal_interval(method: str) -> None:
    flags = [True] * 400 + [False] * 600
    found = estimate_share(flags, BootstrapConfig(resamples=4000, method=method), 1, "x")
    half = stats.norm.ppf(0.975) * np.sqrt(0.4 * 0.6 / 1000)
    assert found.value == 0.4
    assert found.low == pytest.approx(0.4 - half, abs=0.004)
    assert found.high == pytest.approx(0.4 + half, abs=0.004)


def test_the_interval_covers_a_known_share_about_as_often_as_it_says() -> None:
    draw, share, trials = np.random.default_rng(0), 0.1, 150
    hits = 0
    for trial in range(trials):
        found = estimate_share(list(draw.random(100) < share), BootstrapConfig(resamples=300), trial, "x")
        hits += found.low <= share <= found.high
    # 95% +- four standard errors of 150 trials.
    assert hits / trials >= 0.95 - 4 * np.sqrt(0.95 * 0.05 / trials)


def test_equal_seeds_and_names_give_equal_intervals() -> None:
    flags = [True, False, False, True, False] * 8
    assert estimate_share(flags, CONFIG, 3, "x") == estimate_share(flags, CONFIG, 3, "x")
    others = [estimate_share(flags, CONFIG, seed, name) for seed, name in ((4, "x"), (3, "y"))]
    assert any(other != estimate_share(flags, CONFIG, 3, "x") for other in others)


def test_the_mean_of_shares_weighs_categories_alike() -> None:
    strata = [[True] * 10, [False] * 20 + [True] * 20]
    found = estimate_mean_of_shares(strata, CONFIG, 0, "x")
    assert found.value == pytest.approx((1.0 + 0.5) / 2)
    assert found.n == 50
    # Only the second stratum varies, and its mean counts by half.
    half = 0.5 * stats.norm.ppf(0.975) * np.sqrt(0.25 / 40)
    assert (found.low, found.high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.02)


def test_strata_that_do_not_vary_still_have_a_width() -> None:
    found = estimate_mean_of_shares([[True] * 8, [False] * 8], CONFIG, 0, "x")
    assert found.value == 0.5
    assert found.low < 0.4
    assert found.high > 0.6


def test_a_stratum_of_one_row_is_estimated_all_the_same() -> None:
    found = estimate_mean_of_shares([[True], [True, False, True, False]], CONFIG, 0, "x")
    assert found.value == 0.75
    assert 0.5 <= found.low <= 0.75 <= found.high <= 1.0


def test_pairing_takes_out_what_both_share() -> None:
    draw = np.random.default_rng(5)
    hard = draw.random(200) < 0.5
    first, second = hard.copy(), hard.copy()
    first[:4] = ~first[:4]
    paired = estimate_difference([list(first)], [list(second)], CONFIG, 0, "x")
    expected = float(first.mean() - second.mean())
    assert paired.value == pytest.approx(expected)
    assert paired.high - paired.low < 0.06
    alone = estimate_share(list(first), CONFIG, 0, "x")
    assert alone.high - alone.low > 0.12


def test_no_differing_pair_is_bounded_by_wilson() -> None:
    found = estimate_difference([[True, False] * 20], [[True, False] * 20], CONFIG, 0, "x")
    bound = stats.binomtest(0, 40).proportion_ci(method="wilson").high
    assert (found.value, found.low, found.high) == pytest.approx((0.0, -bound, bound))


def test_a_difference_that_every_pair_has_keeps_its_sign() -> None:
    found = estimate_difference([[False] * 40], [[True] * 40], CONFIG, 0, "x")
    assert found.value == -1.0
    assert found.low == -1.0
    assert -1.0 < found.high < -0.8


def test_means_of_real_values() -> None:
    values = list(np.random.default_rng(1).normal(25.0, 3.0, 400))
    found = estimate_mean(values, CONFIG, 0, "x")
    half = stats.norm.ppf(0.975) * np.std(values, ddof=1) / 20
    assert found.value == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.05)
    assert estimate_mean([2.0, 2.0], CONFIG, 0, "x").high == 2.0


def test_no_row_is_an_error_that_names_the_figure() -> None:
    with pytest.raises(EmptyDatasetError, match="ip/test"):
        estimate_share([], CONFIG, 0, "ip/test")
    with pytest.raises(ValueError, match="equally many"):
        estimate_difference([[True]], [[True, False]], CONFIG, 0, "x")
