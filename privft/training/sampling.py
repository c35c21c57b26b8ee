"""Poisson sampling of units: who takes part in which step.

Every unit is in every step by its own coin, independent of all others, so batch sizes vary and
empty batches happen; they are steps like any other.  This is the sampler that the accountant
assumes (Abadi et al. 2016; Chua et al. 2024, arXiv 2411.10614, on what shuffled batches leak).

The coin of a unit in a step depends on (secret, step, position) alone.  A probability is realised
as floor(q * 2^64) / 2^64: never above the stated one.

Memory: coins are tossed a chunk at a time and kept as single bits, 12.5 MB for 100 million units;
beyond that there is only the answer, 8 bytes for each unit that was sampled.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from privft.randomness import KeyedStreams

CHUNK_UNITS = 1 << 20  # 8 MiB of draws at a time, whatever the number of units


def poisson_sample(
    streams: KeyedStreams, *, step: int, units: int, probability: float, population: str
) -> NDArray[np.int64]:
    """Positions (ascending, shape [B]) of the units that take part in `step`.

    population: names the list that is sampled ("units" or "canaries"), so that adding canaries
        leaves the sample of the others untouched.

    Guarantees: each position is drawn independently with a probability of at most `probability`
    (and less than 2^-64 below it); memory beyond the result is an eighth of a byte a unit.
    """
    stream = streams.stream("poisson", step=step, label=population)
    starts = range(0, units, CHUNK_UNITS)
    coins = [
        np.packbits(stream.bernoulli(probability, min(CHUNK_UNITS, units - start)))
        for start in starts
    ]
    positions = np.empty(sum(int(np.bitwise_count(bits).sum()) for bits in coins), dtype=np.int64)
    filled = 0
    for start, bits in zip(starts, coins, strict=True):
        found = np.flatnonzero(np.unpackbits(bits))
        positions[filled : filled + len(found)] = found
        positions[filled : filled + len(found)] += start
        filled += len(found)
    return positions
