"""How sure a score is: the bootstrap over samples (Efron & Tibshirani 1993, chapter 13), a part of the samples after
the other, so that the weights of a million samples take no more memory than those of a thousand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

MOST_DRAWS, FEWEST_DRAWS = 1000, 200
WORK = 10**8  # sample weights that are drawn at most, above the fewest draws
PIECE = 1 << 22  # of them at a time


def draws_for(n: int, sums: int) -> int:
    """How many times n samples are drawn again, where each draw keeps so many sums."""
    return int(np.clip(min(WORK // max(n, 1), 3 * 10**7 // sums), FEWEST_DRAWS, MOST_DRAWS))


def weights(n: int, draws: int) -> Iterator[tuple[slice, np.ndarray]]:
    """How often each sample is in each draw of n out of n: int [draws, part], of one part of the samples after the
    other. The same numbers every time.

    How many of a draw fall into each part is multinomial, and within a part every sample is as likely; so the parts
    together are what drawing from all at once is.
    """
    random, step = np.random.default_rng(0), max(PIECE // draws, 1)
    parts = [slice(start, min(start + step, n)) for start in range(0, n, step)]
    sizes = np.array([part.stop - part.start for part in parts])
    shares = random.multinomial(n, sizes / n, draws)
    for number, (part, size) in enumerate(zip(parts, sizes.tolist(), strict=True)):
        counts = shares[:, number]
        drawn = random.integers(0, size, int(counts.sum())) + np.repeat(np.arange(draws) * size, counts)
        yield part, np.bincount(drawn, minlength=draws * size).reshape(draws, size)


def exact_share(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of Clopper & Pearson (1934) for a share of n samples, of which none or all are hits. There,
    samples drawn again are all alike, and say that nothing else is possible."""
    assert hits in (0, n)
    end = 0.025 ** (1 / n)
    return (end, 1.0) if hits else (0.0, 1 - end)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of Wilson (1927) for a share of n samples, of which any number are hits."""
    from scipy.stats import binomtest  # takes a moment, which other scores need not wait for

    found = binomtest(hits, n).proportion_ci(0.95, "wilson")
    return float(found.low), float(found.high)


def intervals(scores: Mapping[str, float], draws: Mapping[str, np.ndarray]) -> dict[str, float]:
    """name -> [B] becomes `name_low` and `name_high`, the ends of the 95 % interval: percentiles of the draws. Draws in
    which a score is not defined (NaN) do not count; a score that no draw defines, or that is the same in all, has no
    interval: resampling does not see how it could be otherwise."""
    return {
        f"{name}_{end}": value
        for name in scores
        if (ends := _percentiles(draws[name])) is not None
        for end, value in zip(("low", "high"), ends, strict=True)
    }


def basic_intervals(scores: Mapping[str, float], draws: Mapping[str, np.ndarray]) -> dict[str, float]:
    """As `intervals`, of scores from 0 to 1 that are biased where samples are few, and in samples drawn again once
    more, so that percentiles may leave the score itself out: the basic bootstrap (Davison & Hinkley 1997, 5.2), which
    takes that off, made as wide as holds the score."""
    found: dict[str, float] = {}
    for name, score in scores.items():
        if (ends := _percentiles(draws[name])) is not None:
            found[f"{name}_low"] = float(np.clip(2 * score - ends[1], 0, score))
            found[f"{name}_high"] = float(np.clip(2 * score - ends[0], score, 1))
    return found


def _percentiles(values: np.ndarray) -> tuple[float, float] | None:
    defined = values[~np.isnan(values)]
    if not len(defined) or np.ptp(defined) < 1e-12:
        return None
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)
