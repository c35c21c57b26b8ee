"""Sketches: how often near-duplicates are found, against the formula."""

from __future__ import annotations

import random
import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from privft.vault.duplicates import BANDS, bands, record_text, shared_text
from privft.vault.index import RECORD_ROW, Rows


def shingles(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def test_near_duplicates_are_found_as_often_as_the_formula_says() -> None:
    rng = random.Random(5)
    for changed, pairs in ((2, 400), (5, 400), (12, 400)):
        found, expected = 0, 0.0
        for _ in range(pairs):
            one = [f"w{rng.getrandbits(30):x}k" for _ in range(60)]
            two = list(one)
            for place in rng.sample(range(60), changed):
                two[place] = f"v{rng.getrandbits(30):x}k"
            same = len(shingles(one) & shingles(two)) / len(shingles(one) | shingles(two))
            expected += 1 - (1 - same**4) ** 4
            first, second = bands([" ".join(words) for words in (one, two)])
            found += bool((first == second).any())
        # five standard deviations of a binomial of this size
        assert abs(found - expected) < 5 * (expected * (1 - expected / pairs) + 1) ** 0.5, changed


def test_unrelated_texts_do_not_meet() -> None:
    rng = random.Random(6)
    words = ["".join(rng.choices("abcdefgh", k=8)) for _ in range(300)]
    found = bands([" ".join(rng.choices(words, k=30)) for _ in range(400)])
    assert sum(len(np.unique(found[:, band])) for band in range(BANDS)) == 400 * BANDS


def test_what_a_sketch_overlooks() -> None:
    said = "Seen on 12 May, 8:30 -- stable."
    others = ["seen  ON 17 may 9.45: STABLE", "seen on 12 May 8:30 unstable", "", "..."]
    one, same, other, empty, no_words = bands([said, *others])
    assert (one == same).all()
    assert not (one == other).all()
    assert (empty == no_words).all()


def test_a_sketch_does_not_depend_on_what_is_sketched_beside_it() -> None:
    rng = random.Random(7)
    words = ["Fever", "42", "ä", "no", "x_1", "Ünruhe", "day-3", "۴۲"]
    texts = [" ".join(rng.choices(words, k=rng.randrange(9))) for _ in range(200)]
    together = bands(texts)
    alone = np.concatenate([bands([text]) for text in texts])
    assert (together == alone).all()
    assert len(np.unique(together, axis=0)) > 100


@given(st.text() | st.text(st.characters(max_codepoint=127)))
def test_words_of_any_text_are_those_that_the_module_defines(text: str) -> None:
    """Texts in ASCII take a quicker way, and must come out the same."""
    words = re.findall(r"\w+", re.sub(r"\d", "0", text.lower()))
    assert (bands([text]) == bands([" ".join(words)])).all()
    # a letter beyond ASCII in front takes the general way
    assert (bands([f"\u00e9 {text}"]) == bands([" ".join(["\u00e9", *words])])).all()


def test_words_differ_in_every_letter_and_its_place() -> None:
    words = ["ab", "ba", "aab", "aba", "abc", "abd", "b" * 63, "b" * 64, "b" * 65, "c" * 64, "a"]
    assert len(np.unique(bands(words)[:, 0])) == len(words)


def test_sketches_are_the_same_in_every_process() -> None:
    (found,) = bands(["one two three four"])
    assert found.tolist() == [int(value) for value in KNOWN.split()]


KNOWN = "8964529779327687283 16018740719640166183 14000258170956965239 10838893018440474387"


def rows_of(entries: list[tuple[int, list[int]]]) -> Rows:
    rows = np.zeros(len(entries), dtype=RECORD_ROW)
    for place, (unit, sketch) in enumerate(entries):
        rows["tag_low"][place] = place
        rows["unit_low"][place] = unit
        rows["bands"][place] = sketch
    return rows


def test_only_meetings_of_two_units_count() -> None:
    entries = [
        (1, [1, 10, 20, 30]),
        (1, [1, 11, 21, 31]),
        (2, [2, 12, 22, 32]),
        (3, [3, 12, 23, 33]),
        (4, [4, 14, 24, 34]),
    ]
    found = shared_text(rows_of(entries), np.arange(1, 6, dtype=np.uint64))
    assert (found.units, found.records, found.pairs) == (2, 2, ((3, 4),))


def test_pairs_are_bounded_and_never_both_old() -> None:
    entries = [(unit, [7, 7, 7, 7]) for unit in range(1, 101)]
    numbers = np.zeros(100, dtype=np.uint64)
    assert shared_text(rows_of(entries), numbers).pairs == ()
    numbers[40:] = np.arange(60, dtype=np.uint64) + np.uint64(1)
    found = shared_text(rows_of(entries), numbers, pairs=7)
    assert (found.units, found.records, len(found.pairs)) == (100, 100, 7)


def test_all_text_of_a_record_counts() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert record_text({"id": "1", "prompt": "p", "completion": "c"}) == "p\nc"
    assert record_text({"id": "1", "messages": turns}) == "a\nb"
    assert record_text({"id": "1", "text": "t", "label": 3}) == "t"
