"""The sampler is the one that the accountant assumes."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from privft.randomness import KeyedStreams, Stream
from privft.training.sampling import CHUNK_UNITS, poisson_sample

STREAMS = KeyedStreams(bytes(range(32)))


def sample(step: int, units: int = 500, probability: float = 0.1, population: str = "units"):
    return poisson_sample(
        STREAMS, step=step, units=units, probability=probability, population=population
    )


def test_batch_sizes_are_binomial() -> None:
    sizes = np.array([len(sample(step)) for step in range(4000)])
    assert abs(sizes.mean() - 50) < 4 * np.sqrt(45 / 4000)
    # A shuffled or fixed-size sampler has no variance, batches without replacement too little.
    assert stats.chi2.cdf((4000 - 1) * sizes.var(ddof=1) / 45, 3999) == pytest.approx(
        0.5, abs=0.4995
    )


def test_each_unit_has_its_own_independent_coin() -> None:
    taken = np.zeros((3000, 40), dtype=bool)
    for step in range(3000):
        taken[step, sample(step, units=40, probability=0.3)] = True
    rates = taken.mean(0)
    assert np.abs(rates - 0.3).max() < 4.5 * np.sqrt(0.21 / 3000)
    correlation = np.corrcoef(taken.T) - np.eye(40)
    assert np.abs(correlation).max() < 5 / np.sqrt(3000)


def test_a_step_samples_the_same_units_whatever_else_was_drawn() -> None:
    first = sample(7)
    sample(8)
    assert (sample(7) == first).all()


def test_canaries_do_not_change_who_else_is_sampled() -> None:
    assert (sample(3) == sample(3)).all()
    assert not np.array_equal(sample(3), sample(3, population="canaries"))


def test_probability_one_takes_everybody_and_nobody_is_fine() -> None:
    assert (sample(0, units=9, probability=1.0) == np.arange(9)).all()
    assert len(sample(0, units=0)) == 0


def test_chunks_do_not_show() -> None:
    units = CHUNK_UNITS + 5
    got = sample(1, units=units, probability=1e-3)
    assert got.max() < units
    assert (np.diff(got) > 0).all()
    assert abs(len(got) - units * 1e-3) < 5 * np.sqrt(units * 1e-3)


class Dealt:
    """Streams whose words are chosen."""

    def __init__(self, words: list[int]) -> None:
        self.words = np.array(words, dtype=np.uint64)

    def stream(self, name: str, *, step: int, label: str) -> Stream:
        made = Stream(bytes(32))
        made.uint64 = lambda count: self.words[:count]  # type: ignore[method-assign]
        return made


@pytest.mark.parametrize(
    "probability", [96 / 6000, 0.5, 1 / 3, 1e-7, 2.0**-60, 1 - 2.0**-53, 5e-324]
)
def test_the_probability_is_exact(probability: float) -> None:
    """Of 2^64 equally likely words the first floor(q 2^64) are in: never more than q of them, and
    less than one word below it."""
    words = int(Fraction(probability) * 2**64)
    assert words / Fraction(2**64) <= Fraction(probability) < (words + 1) / Fraction(2**64)
    edge = [0, max(0, words - 1), words, min(words + 1, 2**64 - 1), 2**64 - 1]
    taken = poisson_sample(
        Dealt(edge),  # type: ignore[arg-type]
        step=0,
        units=5,
        probability=probability,
        population="units",
    )
    assert taken.tolist() == [at for at, word in enumerate(edge) if word < words]


def test_the_same_key_samples_the_units_that_it_always_did() -> None:
    """Chunks, and how coins are kept, must never change who is in a step."""
    stream = STREAMS.stream("poisson", step=3, label="units")
    units = 2 * CHUNK_UNITS + 77
    expected = np.flatnonzero(stream.uint64(units) < np.uint64(int(0.01 * 2**64)))
    assert (sample(3, units=units, probability=0.01) == expected).all()


MEMORY = """
import json, resource, sys, tracemalloc
import numpy as np
from privft.randomness import KeyedStreams
from privft.training.sampling import poisson_sample

units, probability = int(sys.argv[1]), float(sys.argv[2])
sample = lambda units: poisson_sample(
    KeyedStreams(bytes(range(32))), step=0, units=units, probability=probability,
    population="units",
)
sample(1000)  # what is loaded late is not the sampler's
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tracemalloc.start()
found = sample(units)
peak = tracemalloc.get_traced_memory()[1]
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({
    "allocated": peak, "resident": (after - before) * 1024, "count": len(found),
    "first": int(found[0]), "last": int(found[-1]), "ascending": bool((np.diff(found) > 0).all()),
}))
"""


@pytest.mark.parametrize("probability", [1e-5, 0.1, pytest.param(1.0, marks=pytest.mark.slow)])
def test_a_hundred_million_units_take_less_than_one_gib(probability: float) -> None:
    """Measured in a process of its own: what Python and numpy allocate, and what the system sees.

    0.1 is far beyond what is of use; at 1 the answer alone is 0.8 GB.
    """
    units = 100_000_000
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(units), str(probability)],
        capture_output=True,
        text=True,
        check=True,
    )
    seen = json.loads(done.stdout)
    assert seen["allocated"] < 1 << 30
    assert seen["resident"] < 1 << 30
    answer = 8 * seen["count"]
    assert seen["allocated"] < answer + (80 << 20), "beside the answer: bits, and a chunk at a time"
    expected, spread = units * probability, np.sqrt(units * probability * (1 - probability))
    assert abs(seen["count"] - expected) <= 6 * spread
    assert seen["ascending"]
    assert seen["first"] < 1000 / probability
    assert seen["last"] >= units - 1000 / probability
