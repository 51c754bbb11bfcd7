"""Confidence intervals of shares and means by the bootstrap, or Wilson's interval where a sample is constant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from safety.base import Config
from safety.errors import EmptyDatasetError
from safety.seeds import derive_seed

Array = NDArray[np.float64]
BATCH_NUMBERS = 4_000_000


class BootstrapConfig(Config):
    """The computation of confidence intervals."""

    resamples: int = Field(2000, ge=100)
    confidence: float = Field(0.95, gt=0, lt=1)
    method: Literal["BCa", "percentile"] = Field(
        "BCa", description="BCa has better coverage where a share is near 0 or 1"
    )


class Estimate(Config):
    """A figure with its confidence interval and the number of images behind it."""

    value: float
    low: float
    high: float
    n: int


def estimate_share(flags: Sequence[bool], config: BootstrapConfig, seed: int, name: str) -> Estimate:
    """Return the share of true flags; ``seed`` and ``name`` determine the resampling.

    Raises:
        EmptyDatasetError: There is no flag.
    """
    return estimate_mean_of_shares([flags], config, seed, name)


def estimate_mean_of_shares(
    strata: Sequence[Sequence[bool]], config: BootstrapConfig, seed: int, name: str
) -> Estimate:
    """Return the mean over strata of each stratum's share, resampled within the strata.

    With equally many flags per stratum this is the share over all of them. Where every stratum is constant (all true or
    all false) the bootstrap has no width, and the interval is Wilson's for the pooled count.
    """
    samples = [np.asarray(flags, dtype=np.float64) for flags in strata]
    _require_samples(samples, name)
    if all(_constant(sample) for sample in samples):
        value = float(np.mean([sample.mean() for sample in samples]))
        low, high = wilson(sum(int(s.sum()) for s in samples), sum(len(s) for s in samples), config.confidence)
        # With strata of unequal sizes the mean of shares can lie outside the pooled interval.
        return Estimate(value=value, low=min(low, value), high=max(high, value), n=sum(len(s) for s in samples))
    return _bootstrap(samples, config, seed, name)


def estimate_mean(values: Sequence[float], config: BootstrapConfig, seed: int, name: str) -> Estimate:
    """Return the mean of real values; equal values give an interval of no width."""
    sample = np.asarray(values, dtype=np.float64)
    _require_samples([sample], name)
    if _constant(sample):
        constant = float(sample[0])
        return Estimate(value=constant, low=constant, high=constant, n=len(sample))
    return _bootstrap([sample], config, seed, name)


def estimate_difference(
    first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]], config: BootstrapConfig, seed: int, name: str
) -> Estimate:
    """Return the mean over strata of share(first) - share(second), with rows resampled in pairs.

    Where every stratum's differences are constant, the interval has the width of Wilson's for the number of pairs that
    differ, on both sides.
    """
    samples = []
    for one, other in zip(first, second, strict=True):
        if len(one) != len(other):
            raise ValueError(f"{name}: pairs need equally many flags, not {len(one)} and {len(other)}")
        samples.append(np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64))
    _require_samples(samples, name)
    if all(_constant(sample) for sample in samples):
        count = sum(len(sample) for sample in samples)
        value = float(np.mean([sample.mean() for sample in samples]))
        differing = wilson(sum(int(np.count_nonzero(s)) for s in samples), count, config.confidence)
        slack = max(differing[1] - differing[0], 0.0)
        return Estimate(value=value, low=max(value - slack, -1.0), high=min(value + slack, 1.0), n=count)
    return _bootstrap(samples, config, seed, name)


def wilson(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """Return Wilson's score interval (1927) for a binomial share."""
    # Slow to import, and every job imports this module.
    from scipy import stats

    interval = stats.binomtest(successes, trials).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def _require_samples(samples: Sequence[Array], name: str) -> None:
    if not samples or any(len(sample) == 0 for sample in samples):
        raise EmptyDatasetError(
            "no image to estimate from", field=name, fix="raise the counts under 'evaluate', or those of the dataset"
        )


def _constant(sample: Array) -> bool:
    return bool(np.all(sample == sample[0]))


def _mean_of_means(*samples: Array, axis: int) -> Array:
    total: Array = np.stack([sample.mean(axis=axis) for sample in samples]).mean(axis=0)
    return total


def _bootstrap(samples: Sequence[Array], config: BootstrapConfig, seed: int, name: str) -> Estimate:
    """Resample each sample on its own and return the interval of the mean of their means."""
    from scipy import stats

    largest = max(len(sample) for sample in samples)
    value = float(_mean_of_means(*samples, axis=-1))
    found = stats.bootstrap(
        # scipy needs two rows per sample; a repeated row has the same mean in every resample.
        tuple(sample if len(sample) > 1 else sample.repeat(2) for sample in samples),
        _mean_of_means,
        n_resamples=config.resamples,
        confidence_level=config.confidence,
        method=config.method,
        vectorized=True,
        batch=max(1, BATCH_NUMBERS // largest),
        rng=np.random.default_rng(derive_seed(seed, name, "bootstrap")),
    ).confidence_interval
    low, high = float(found.low), float(found.high)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ArithmeticError(f"{name}: the bootstrap's interval is not finite")
    return Estimate(value=value, low=min(low, value), high=max(high, value), n=sum(len(sample) for sample in samples))
