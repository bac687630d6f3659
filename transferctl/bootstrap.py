"""How sure a score is: the percentile bootstrap over samples (Efron & Tibshirani 1993, chapter 13), piece by piece, so
that a million samples take no more memory than a thousand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

MOST_DRAWS, FEWEST_DRAWS = 1000, 200
WORK = 10**8  # sample weights that are drawn at most, above the fewest draws
PIECE = 1 << 22  # of them at a time


def draws_for(n: int, sums: int = 1) -> int:
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


def intervals(draws: Mapping[str, np.ndarray]) -> dict[str, float]:
    """name -> [B] becomes `name_low` and `name_high`, the ends of the 95 % interval; draws in which a score is not
    defined (NaN) do not count, and a score that no draw defines has no interval."""
    found: dict[str, float] = {}
    for name, values in draws.items():
        if len(defined := values[~np.isnan(values)]):
            low, high = np.quantile(defined, [0.025, 0.975])
            found |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return found
