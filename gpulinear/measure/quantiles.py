"""What a list of timings says: median, 20th and 80th percentile, and whether the median is settled."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def percentiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """The 20th, 50th and 80th percentile, interpolated linearly. Needs at least one sample."""
    p20, p50, p80 = np.percentile(np.asarray(samples, np.float64), (20.0, 50.0, 80.0))
    return float(p20), float(p50), float(p80)


def is_settled(samples: Sequence[float], width: float) -> bool:
    """Whether the 95 % confidence interval of the median is narrower than `width` times the median.

    The interval lies between two order statistics and needs no assumption about the distribution: with n samples in
    ascending order, those at n/2 - 0.98 sqrt(n) and n/2 + 1 + 0.98 sqrt(n), rounded outward.
    Source: J.-Y. Le Boudec, Performance Evaluation of Computer and Communication Systems, 2010, theorem 2.1 and
    appendix A. With fewer than 6 samples there is no such interval, and the answer is no.
    """
    n = len(samples)
    low = math.floor(n / 2 - 0.98 * math.sqrt(n))
    high = math.ceil(n / 2 + 1 + 0.98 * math.sqrt(n))
    if low < 1 or high > n:
        return False
    ordered = sorted(samples)
    return ordered[high - 1] - ordered[low - 1] <= width * percentiles(ordered)[1]
