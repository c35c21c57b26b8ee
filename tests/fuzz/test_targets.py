"""Each fuzz target takes its seeds' mutations quietly, and can find something.

The long runs are `make fuzz`; these few hundred mutations keep the targets alive.
"""

from __future__ import annotations

import random

import pytest

from tests.fuzz.targets import TARGETS, Target

TAKEN = {  # whose first seed is a sound text of its kind
    *("floe", "cell", "cell-body", "index", "records", "facts", "manifest", "manifest-unsigned"),
    *("manifest-payload", "certificate", "unit-proof", "jsonl", "jsonl-chat", "csv", "gzip"),
    *("service-answer", "service-name", "token-uri"),
}


def mutations(seed: bytes, count: int) -> list[bytes]:
    """Flips, cuts, repeats and insertions."""
    rng = random.Random(len(seed))
    found = []
    for _ in range(count):
        data = bytearray(seed)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(data) + 1)
            match rng.randrange(4):
                case 0:
                    data[place : place + 1] = bytes([rng.randrange(256)])
                case 1:
                    del data[place : place + rng.randint(1, 40)]
                case 2:
                    data[place:place] = data[place : place + 20]
                case _:
                    data[place:place] = rng.choice(
                        [b"\0", b"{", b"[", b'"', b"\xff\xff\xff\xff", b"-1"]
                    )
        found.append(bytes(data))
    return found


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_of_the_seeds_are_taken_or_refused_quietly(name: str) -> None:
    target, refused = TARGETS[name], 0
    for seed in target.seeds():
        target(seed)
        for data in mutations(seed, 30):
            refused += not target(data)
    assert refused or name in ("jsonl", "jsonl-chat", "records")


@pytest.mark.parametrize("name", sorted(TAKEN))
def test_the_first_seed_is_taken(name: str) -> None:
    """Else the fuzzer would start, and perhaps stay, outside of the parser."""
    assert TARGETS[name](next(iter(TARGETS[name].seeds())))


def test_what_is_no_refusal_is_passed_on() -> None:
    def broken(data: bytes) -> None:
        raise IndexError

    with pytest.raises(IndexError):
        Target(parse=broken, seeds=list)(b"")
