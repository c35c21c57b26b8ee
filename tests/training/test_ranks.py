"""Several ranks make the run that one process makes, and none waits for ever for another."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privft.errors import IntegrityError, PrivftError
from privft.training import loop
from privft.training.examples import UnitExamples
from privft.training.ranks import ALONE, Ranks, shares
from tests.training.joined import LENGTHS, on_ranks, sums, trained
from tests.training.tiny import text_units


def same_bits(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].tobytes() == right[name].tobytes() for name in left
    )


def padded(unit: UnitExamples) -> int:
    return unit.bucket * len(unit.examples) if unit.examples else 0


# -- shares ---------------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.integers(2, 300), max_size=4), max_size=40),
    st.integers(1, 9),
)
def test_every_unit_is_in_one_share_and_shares_are_balanced(
    lengths: list[list[int]], size: int
) -> None:
    units = text_units(lengths)
    dealt = shares(units, size)
    assert len(dealt) == size
    assert sorted(unit.key for share in dealt for unit in share) == sorted(u.key for u in units)
    place = {unit.key: i for i, unit in enumerate(units)}
    assert all([place[u.key] for u in s] == sorted(place[u.key] for u in s) for s in dealt)
    loads = [sum(map(padded, share)) for share in dealt]
    for share, load in zip(dealt, loads, strict=True):
        if share:
            assert load - min(map(padded, share)) <= min(loads)
    assert dealt == shares(units, size)


def test_one_rank_has_everything_and_needs_nobody() -> None:
    units = text_units(LENGTHS)
    assert ALONE.share(units) == units
    ALONE.agree(0, "00" * 32)
    ALONE.add_up({})
    ALONE.tell([b"nobody hears this"])


# -- the same result ------------------------------------------------------------------------------


def both_sums(ranks: Ranks) -> tuple[dict[str, Any], dict[str, Any]]:
    return sums(ranks, LENGTHS, "gaussian"), sums(ranks, LENGTHS, "discrete-gaussian")


@pytest.mark.parametrize("size", [2, 4])
def test_the_sum_is_that_of_one_process_and_of_whole_numbers_exactly(
    tmp_path: Path, size: int
) -> None:
    real, whole = both_sums(ALONE)
    scale = max(np.abs(value).max() for value in real.values())
    assert scale > 1e-3
    assert all(value.dtype == np.float64 for value in real.values())
    assert all(value.dtype == np.int64 for value in whole.values())
    for found_real, found_whole in on_ranks(size, tmp_path, both_sums):
        assert same_bits(found_whole, whole)
        for name, value in real.items():
            np.testing.assert_allclose(found_real[name], value, rtol=0, atol=1e-13 * scale)


def discrete_runs(ranks: Ranks) -> list[dict[str, Any]]:
    return [
        trained(ranks, token_budget=tokens, mechanism={"noise": "discrete-gaussian"})
        for tokens in (8, 64, 100_000)
    ]


def test_hardened_runs_have_the_same_bits_on_any_number_of_ranks_and_in_any_microbatches(
    tmp_path: Path,
) -> None:
    whole, *others = discrete_runs(ALONE)
    for size in (2, 4):
        for found in on_ranks(size, tmp_path, discrete_runs):
            others += found
    assert len(others) == 2 + 3 * (2 + 4)
    assert all(same_bits(other, whole) for other in others)


def plain_run(ranks: Ranks) -> dict[str, Any]:
    return trained(ranks)


def test_the_noise_is_added_once_and_all_ranks_end_with_the_same_bits(tmp_path: Path) -> None:
    """Twice the noise, or other noise, would be far off: it is most of what these runs learn."""
    whole = trained()
    silent = trained(mechanism={"noise_multiplier": 1e-6})
    first, *others = on_ranks(4, tmp_path, plain_run)
    assert all(same_bits(first, other) for other in others)
    for name, value in whole.items():
        np.testing.assert_allclose(first[name], value, rtol=0, atol=1e-6)
    assert max(np.abs(whole[name] - silent[name]).max() for name in whole) > 1e-3


# -- next to nothing to do ------------------------------------------------------------------------

LITTLE: dict[str, dict[str, Any]] = {
    "nobody at all": {"lengths": [], "canaries": []},
    "one unit in all": {"lengths": [[11]], "canaries": []},
    "fewer units than ranks": {"lengths": [[11], [7]], "canaries": []},
    "a unit longer than the token budget": {"lengths": [[90, 90], [3], [3]], "token_budget": 16},
    "units without anything to learn": {"lengths": [[], [], [9]], "canaries": []},
    "nothing for many steps": {
        "lengths": [[9]],
        "canaries": [],
        "mechanism": {"steps": 60, "sampling_probability": 0.02},
    },
}


def little_runs(ranks: Ranks) -> dict[str, Any]:
    found = {}
    for case, settings in LITTLE.items():
        rest = {key: value for key, value in settings.items() if key != "mechanism"}
        changes = {"noise": "discrete-gaussian", **settings.get("mechanism", {})}
        found[case] = trained(ranks, mechanism=changes, **rest)
    return found


@pytest.fixture(scope="module")
def little(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[Any]]:
    return little_runs(ALONE), on_ranks(4, tmp_path_factory.mktemp("little"), little_runs)


@pytest.mark.parametrize("case", LITTLE)
def test_ranks_with_nothing_to_do_keep_step(
    little: tuple[dict[str, Any], list[Any]], case: str
) -> None:
    whole, ranks = little
    assert len(ranks) == 4
    assert all(same_bits(found[case], whole[case]) for found in ranks)


# -- agreement ------------------------------------------------------------------------------------


def other_context(ranks: Ranks) -> None:
    trained(ranks, context={"plan": "p" if ranks.rank != 2 else "another"})


def test_a_rank_in_another_state_stops_all_before_noise_is_drawn(tmp_path: Path) -> None:
    for found in on_ranks(3, tmp_path, other_context):
        assert isinstance(found, IntegrityError)
        assert "1 of 3 ranks are in another state than rank 0 at step 0: rank 2" in str(found)


def slow_journal(ranks: Ranks, folder: str) -> bool:
    """Whether noise was ever drawn before rank 0's journal had returned."""
    intents, early = Path(folder), []

    def journal(step: int, digest: str) -> None:
        if ranks.rank == 0:
            time.sleep(0.2)
            (intents / f"intent-{step}").touch()

    real = loop.add_noise

    def checked(*arguments: Any, step: int, **rest: Any) -> Any:
        early.append(not (intents / f"intent-{step}").exists())
        return real(*arguments, step=step, **rest)

    loop.add_noise = checked
    try:
        trained(ranks, journal=journal, mechanism={"steps": 3})
    finally:
        loop.add_noise = real
    return len(early) == 3 and not any(early)


def test_no_rank_draws_noise_before_the_intent_is_durable(tmp_path: Path) -> None:
    assert on_ranks(3, tmp_path, slow_journal, str(tmp_path)) == [True] * 3


class Stopped(Exception):
    """A rank is made to stop here."""


def interrupted(ranks: Ranks, noise: str) -> tuple[dict[int, str], bytes]:
    """The journal of five steps, and the checkpoint after four."""
    digests: dict[int, str] = {}
    saved: list[bytes] = []

    def journal(step: int, digest: str) -> None:
        digests[step] = digest
        if step == 4:
            raise Stopped

    with pytest.raises(Stopped):
        trained(ranks, journal=journal, save=saved.append, mechanism={"noise": noise})
    return digests, saved[-1]


def resumed(ranks: Ranks, noise: str, state: bytes, digests: dict[int, str]) -> dict[str, Any]:
    def journal(step: int, digest: str) -> None:
        assert digests.setdefault(step, digest) == digest

    return trained(ranks, journal=journal, resume=state, mechanism={"noise": noise})


@pytest.mark.parametrize(("before", "after"), [(1, 4), (2, 1)])
def test_a_hardened_run_goes_on_with_the_same_bits_on_another_number_of_ranks(
    tmp_path: Path, before: int, after: int
) -> None:
    noise = "discrete-gaussian"
    whole = trained(mechanism={"noise": noise})
    stopped = on_ranks(before, tmp_path, interrupted, noise)
    digests, state = stopped[0]
    assert all(other == stopped[0] for other in stopped)
    for found in on_ranks(after, tmp_path, resumed, noise, state, digests):
        assert same_bits(found, whole)


# -- lost and stuck ranks -------------------------------------------------------------------------


def one_dies(ranks: Ranks) -> None:
    def journal(step: int, digest: str) -> None:
        if step == 2 and ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    trained(ranks, journal=journal)


def test_a_rank_that_dies_stops_the_others_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    first, dead, last = on_ranks(3, tmp_path, one_dies, timeout_s=60)
    assert time.monotonic() - started < 30
    assert dead is None
    for found in (first, last):
        assert isinstance(found, PrivftError)
        assert "lost another rank" in str(found)
        assert "--resume" in str(found.hint)


def one_is_slow(ranks: Ranks) -> float:
    def journal(step: int, digest: str) -> None:
        if step == 2 and ranks.rank == 1:
            time.sleep(8)

    started = time.monotonic()
    with pytest.raises(PrivftError, match="lost another rank, or waited for it longer than 2 s"):
        trained(ranks, journal=journal)
    return time.monotonic() - started


def test_a_rank_that_is_too_slow_stops_the_others_in_time(tmp_path: Path) -> None:
    first, slow, last = on_ranks(3, tmp_path, one_is_slow, timeout_s=2)
    assert 1.5 < first < 7
    assert 1.5 < last < 7
    assert slow > 7, "it was still at work when the others had gone"


def waits_for_rank_0(ranks: Ranks) -> list[bytes]:
    """Rank 0 takes longer to check its data than a step may take."""
    messages = [b"run", b"", bytes(range(256)) * 1000]
    if ranks.rank == 0:
        time.sleep(4)
        ranks.tell(messages)
        return messages
    return ranks.hear(3)


def test_all_ranks_hear_what_rank_0_tells_even_late(tmp_path: Path) -> None:
    first, *others = on_ranks(3, tmp_path, waits_for_rank_0, timeout_s=2)
    assert others == [first, first]
