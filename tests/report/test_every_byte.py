"""Any byte of any file: each one of a released folder is changed in turn, found, and named.

What is computed from statement and proof alone is remembered while both are as they were: the
accountants do not run a hundred thousand times, and everything that reads a file still does.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from privft.report import recompute, release, verify
from tests.report.released import NOW, trust, write_release

FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    release.STATEMENT,
    release.PAGE,
    release.CARD,
    release.PROOF,
    release.LICENCE_NOTE,
)
IN_VERIFY = (
    "dsse_open",
    "parse",
    "canonical_json",
    "render",
    "render_card",
    "render_licence_note",
)
IN_RECOMPUTE = (
    "entries_agree",
    "approvals_hold",
    "waivers_hold",
    "epsilon_agrees",
    "budget_agrees",
    "audit_agrees",
    "policy_agrees",
)
ROOT = trust()


class Remembered:
    """Functions of some files alone, computed once for the same contents."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self._answers: dict[Any, Any] = {}

    def __call__(
        self, name: str, function: Callable[..., Any], of: Sequence[str]
    ) -> Callable[..., Any]:
        def remembered(*given: Any, **named: Any) -> Any:
            key = (name, *(self.contents[file] for file in of))
            if key not in self._answers:
                if len(self._answers) > 64:
                    self._answers.clear()
                try:
                    self._answers[key] = function(*given, **named), None
                except Exception as error:
                    self._answers[key] = None, error
            answer, error = self._answers[key]
            if error is not None:
                raise error
            return answer

        return remembered


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("honest")
    write_release(folder)
    return folder


@pytest.fixture
def folder(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "release"))


@pytest.fixture
def remembered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Remembered:
    memory = Remembered()
    memory.contents = {name: (folder / name).read_bytes() for name in FILES}
    both = (release.STATEMENT, release.PROOF)
    for room, name, of in [
        (verify, "check_proof", [release.PROOF]),
        (verify, "parse_canonical", [release.STATEMENT]),
        *[(verify, name, both) for name in IN_VERIFY],
        *[(recompute, name, both) for name in IN_RECOMPUTE],
    ]:
        monkeypatch.setattr(room, name, memory(name, getattr(room, name), of))
    return memory


def unfound(
    folder: Path, name: str, memory: Remembered, places: Iterator[tuple[int, int]]
) -> list[tuple[int, int]]:
    """The (byte, bit)s of a file whose change is not found, or found without the file's name."""
    path, missed = folder / name, []
    original = path.read_bytes()
    for at, bit in places:
        spoiled = bytearray(original)
        spoiled[at] ^= 1 << bit
        memory.contents[name] = bytes(spoiled)
        path.write_bytes(spoiled)
        rows = verify.verify_release(folder, ROOT, now=NOW)
        if not any(not row.ok and name in row.detail for row in rows):
            missed.append((at, bit))
    memory.contents[name] = original
    path.write_bytes(original)
    assert all(row.ok for row in verify.verify_release(folder, ROOT, now=NOW))
    return missed


def test_the_files_are_all_that_a_release_holds(honest: Path) -> None:
    assert sorted(path.name for path in honest.iterdir()) == sorted(FILES)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_found_and_its_file_named(
    folder: Path, remembered: Remembered, name: str
) -> None:
    size = len(remembered.contents[name])
    assert size > 0
    assert unfound(folder, name, remembered, ((at, at % 8) for at in range(size))) == []


@pytest.mark.parametrize("name", FILES)
def test_every_bit_of_a_sample_of_bytes_is_guarded(
    folder: Path, remembered: Remembered, name: str
) -> None:
    size = len(remembered.contents[name])
    places = ((at, bit) for at in range(0, size, max(1, size // 16)) for bit in range(8))
    assert unfound(folder, name, remembered, places) == []


def test_every_bit_of_what_is_signed_by_the_log_is_guarded(
    folder: Path, remembered: Remembered
) -> None:
    """Base64 has spare bits at its end: a second spelling of a signature would be a blind spot."""
    proof = remembered.contents[release.PROOF]
    start = proof.index(b'"checkpoint":"')
    end = proof.index(b'"entries"')
    tail = ((at, bit) for at in range(end - 16, end) for bit in range(8))
    assert unfound(folder, release.PROOF, remembered, tail) == []
    head = ((at, at % 8) for at in range(start, end))
    assert unfound(folder, release.PROOF, remembered, head) == []
