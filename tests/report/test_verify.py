"""Verifying a released folder: what passes, and that every kind of tampering is found and named."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from privft.errors import IntegrityError, SignatureError, UsageError
from privft.report import claim, recompute, release, statement, verify
from privft.report.trust import parse_trust
from privft.signing import SigningKey, canonical_json, dsse_add_signature, dsse_sign, sha256_hex
from tests.report.released import (
    AMARA,
    EXPIRES,
    JONAS,
    NOW,
    PEOPLE,
    RUN,
    STRANGER,
    failed,
    numbers_in,
    parsed,
    person,
    true_facts,
    trust,
    trust_file,
    write_release,
)

_made = claim.guarantee


@cache
def _once(unit: Any, events: tuple[Any, ...], delta: float, fprs: Any) -> dict[str, Any]:
    return _made(unit=unit, events=events, delta=delta, fprs=fprs)


@pytest.fixture(autouse=True)
def _each_guarantee_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many folders here differ in other things; the computation itself is the same."""

    def remembered(
        *, unit: Any, events: Any, delta: float, fprs: Any = claim.FPR_GRID, **_: Any
    ) -> dict[str, Any]:
        return copy.deepcopy(_once(unit, tuple(events), delta, fprs))

    monkeypatch.setattr(claim, "guarantee", remembered)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("honest")
    write_release(folder)
    return folder


@pytest.fixture
def folder(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "release"))


def test_honest_release_passes_every_check(honest: Path) -> None:
    rows = verify.verify_release(honest, trust(), now=NOW)
    assert [row.detail for row in rows if not row.ok] == []
    assert [row.name for row in rows] == [
        "trust root",
        "files",
        "ledger",
        "signature",
        "digests",
        "statement",
        "entries",
        "approvals",
        "countersignatures",
        "waivers",
        "epsilon",
        "budget",
        "audit",
        "policy",
        "page",
        "card",
        "licence note",
    ]
    verify.require(rows)


def test_release_made_twice_is_the_same_bytes(honest: Path, tmp_path: Path) -> None:
    write_release(tmp_path / "again")
    for path in honest.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_every_file_is_guarded_at_every_kind_of_place(honest: Path, folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        original = path.read_bytes()
        for at in (0, len(original) // 3, len(original) // 2, len(original) - 1):
            spoiled = bytearray(original)
            spoiled[at] ^= 1
            path.write_bytes(spoiled)
            assert failed(folder), (path.name, at)
        for spoiled_bytes in (original + b"\n", original[:-1], b""):
            path.write_bytes(spoiled_bytes)
            assert failed(folder), path.name
        path.write_bytes(original)
    assert failed(folder) == {}


def test_changed_file_is_named(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"X")
    found = failed(folder)
    assert set(found) == {"digests"}
    assert "adapter_model.safetensors" in found["digests"]


@pytest.mark.parametrize("name", ["report.html", "README.md", "LICENSE-NOTE.txt"])
def test_rendering_that_says_something_else_is_named_twice(folder: Path, name: str) -> None:
    (folder / name).write_text((folder / name).read_text() + "<!-- epsilon 0.1 -->")
    found = failed(folder)
    assert name in found["digests"]
    assert len(found) == 2


def test_extra_file_missing_file_link_and_folder_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "optimizer.pt").write_bytes(b"")
    assert "optimizer.pt" in failed(folder)["files"]
    (folder / "optimizer.pt").unlink()
    (folder / "README.md").rename(tmp_path / "README.md")
    assert "README.md" in failed(folder)["files"]
    (folder / "README.md").symlink_to(tmp_path / "README.md")
    assert "not a plain file" in failed(folder)["files"]
    assert set(failed(tmp_path / "nowhere")) >= {"files"}


def test_statement_resigned_by_a_stranger_is_found_for_every_number(folder: Path) -> None:
    plain = json.loads(_payload(folder))
    paths = numbers_in(plain)
    assert len(paths) > 200
    for path in paths:
        changed = copy.deepcopy(plain)
        at: Any = changed
        for part in path[:-1]:
            at = at[part]
        at[path[-1]] = at[path[-1]] * 2 + 1
        envelope = dsse_sign(canonical_json(changed), statement.PAYLOAD_TYPE, [STRANGER])
        (folder / release.STATEMENT).write_bytes(canonical_json(envelope))
        found = failed(folder)
        assert "signature" in found, path
        with pytest.raises(SignatureError, match="signature"):
            verify.require(verify.verify_release(folder, trust(), now=NOW))


def _payload(folder: Path) -> bytes:
    import base64

    return base64.b64decode(parsed(folder, release.STATEMENT)["payload"])


Change = Callable[[dict[str, Any]], None]


def _put(*path: Any, value: Any) -> Change:
    def change(facts: dict[str, Any]) -> None:
        at: Any = facts
        for part in path[:-1]:
            at = at[part]
        at[path[-1]] = value(at[path[-1]]) if callable(value) else value

    return change


def _both(*changes: Change) -> Change:
    def change(facts: dict[str, Any]) -> None:
        for one in changes:
            one(facts)

    return change


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("epsilon", _both(_put("guarantee", "epsilon", value=1.5),
                          _put("guarantee", "cost", "epsilon_pld", value=1.5))),
        ("epsilon", _put("guarantee", "cost", "epsilon_rdp", value=2.2)),
        ("epsilon", _put("guarantee", "substitute", "epsilon_pld", value=2.0)),
        ("epsilon", _put("guarantee", "odds_percent", value=60.0)),
        ("epsilon", _put("guarantee", "tpr_at_fpr", 30, 1, value=lambda v: v * 0.9)),
        ("epsilon", _put("guarantee", "tpr_at_fpr", value=[[0.1, 0.1], [1.0, 1.0]])),
        ("epsilon", _put("guarantee", "mu", value=0.1)),
        ("entries", _both(_put("mechanism", "noise_multiplier", value=1.2),
                          _put("events", 0, "noise_multiplier", value=1.2))),
        ("entries", _both(_put("mechanism", "steps", value=30),
                          _put("events", 0, "count", value=30))),
        ("entries", _put("mechanism", "clip_norm", value=0.1)),
        ("entries", _put("mechanism", "expected_batch_size", value=960.0)),
        ("entries", _put("model", "weights_sha256", value="0" * 64)),
        ("entries", _put("config", "body", "seed", value=8)),
        ("entries", _put("plan", "sha256", value="0" * 64)),
        ("entries", _put("run", "actor", value="somebody-else")),
        ("entries", _put("run", "settled_time", value="2026-11-20T08:21:45Z")),
        ("entries", _put("audit", "suite", value="strict")),
        ("budget", _put("ledger", "before", "epsilon_spent", value=0.1)),
        ("budget", _put("ledger", "after", "epsilon_left", value=7.0)),
        ("budget", _put("ledger", "cap", "epsilon", value=80.0)),
        ("budget", _put("ledger", "more_runs_like_this", value=lambda v: v + 1)),
        ("budget", _put("ledger", "spent_events", value=[])),
        ("budget", _put("ledger", "history", 1, "cumulative", value=0.5)),
        ("audit", _put("audit", "tests", 0, "epsilon_lower", value=0.1)),
        ("audit", _put("audit", "tests", 0, "correct", value=60)),
        ("audit", _put("audit", "tests", 0, "ceiling", value=9.0)),
        ("audit", _put("audit", "tests", 0, "canaries", value=1000)),
        ("policy", _put("policy", "checks", 1, "limit", value=30.0)),
        ("policy", _put("policy", "checks", 0, "ok", value=False)),
        ("policy", _put("data", "declared_units", value=900)),
        ("approvals", _put("approvals", 0, "signature", value="0a" * 64)),
        ("approvals", _put("approvals", 0, "keyid", value=STRANGER.public.keyid)),
        ("policy", _put("approvals", value=lambda v: v[:1])),
        ("statement", _put("ledger", "checkpoint_before", value="")),
        ("statement", _put("ledger", "log_key", value=STRANGER.public.hex)),
    ],
)  # fmt: skip
def test_lie_signed_by_the_run_key_itself_is_found(
    tmp_path: Path, check: str, change: Change
) -> None:
    write_release(tmp_path, change=change)
    assert check in failed(tmp_path)


def test_noised_score_is_stated_with_its_own_interval_and_charge_and_verifies(
    tmp_path: Path,
) -> None:
    made = write_release(tmp_path / "out", score=True)
    rows = {row.name: row for row in verify.verify_release(tmp_path / "out", trust(), now=NOW)}
    assert [row.detail for row in rows.values() if not row.ok] == []
    assert "so do 1 noised measures, interval and charge" in rows["epsilon"].detail
    facts = statement.validate(made).predicate
    entry = facts.utility[-1]
    assert entry.paid is not None
    assert 0 < entry.paid.epsilon < 1.9018042357527423 < facts.guarantee.epsilon
    for page in ("report.html", "README.md"):
        text = (tmp_path / "out" / page).read_text()
        assert "each unit’s value is cut to between 0 and 8" in text
        assert "which the epsilon of this run includes" in text


@pytest.mark.parametrize(
    "change",
    [
        _put("utility", -1, "paid", "epsilon", value=0.01),
        _put("utility", -1, "paid", "bound", value=4.0),
        _put("utility", -1, "n", value=4000),
        _put("utility", -1, "trained", value=3.0),
        _put("utility", -1, "interval", value=[-0.7, -0.6]),
    ],
    ids=["epsilon", "bound", "units", "figure", "interval"],
)
def test_noised_score_that_does_not_follow_from_its_charge_is_found(
    tmp_path: Path, change: Change
) -> None:
    write_release(tmp_path / "out", score=True, change=change)
    assert set(failed(tmp_path / "out")) == {"epsilon"}


@pytest.mark.parametrize(
    "change",
    [
        _put("utility", -1, "paid", "noise_multiplier", value=100.0),
        _put("utility", -1, "source", value="public"),
        _put("utility", -1, "paid", value=None),
        _put("utility", -1, "interval", value=None),
        _put("utility", value=lambda rows: rows[:-1]),
        _put("events", value=lambda events: events[:-1]),
    ],
    ids=["noise", "source", "unpaid", "no interval", "unstated", "uncharged"],
)
def test_statement_whose_noised_figures_are_not_what_was_charged_is_none(change: Change) -> None:
    facts = true_facts(score=True)
    statement.build(facts)
    change(facts)
    with pytest.raises(UsageError):
        statement.build(facts)


def test_audit_that_contradicts_the_claim_cannot_have_passed(tmp_path: Path) -> None:
    def change(facts: dict[str, Any]) -> None:
        from privft.audit.bounds import one_run_epsilon

        test = facts["audit"]["tests"][0]
        test["correct"] = test["guesses"]
        test["epsilon_lower"] = test["ceiling"] = one_run_epsilon(
            canaries=512, guesses=100, correct=100, delta=1e-5, significance=0.05
        )

    write_release(tmp_path, change=change)
    assert "contradicts" in failed(tmp_path)["audit"]


def test_curve_test_that_contradicts_the_claim_cannot_have_passed(tmp_path: Path) -> None:
    curve_test = {
        "kind": "words",
        "method": recompute.CURVES,
        "canaries": 512,
        "guesses": 100,
        "correct": 99,
        "significance": 0.05,
        "epsilon_lower": 3.0,
        "ceiling": 4.0,
    }
    write_release(tmp_path, change=lambda facts: facts["audit"]["tests"].append(curve_test))
    assert "contradicts" in failed(tmp_path)["audit"]


@pytest.mark.parametrize(
    ("correct", "lower", "ceiling", "found"),
    [
        (50, 0.0, 4.0, None),
        (50, 0.0, 1.0, "ceiling states 1.0"),
        (50, 2.5, 4.0, "epsilon_lower states 2.5"),
        (99, 0.0, 4.0, "epsilon_lower states 0.0"),
    ],
)
def test_curve_test_must_lie_on_the_right_side_of_the_claim(
    tmp_path: Path, correct: int, lower: float, ceiling: float, found: str | None
) -> None:
    row = {"kind": "words", "method": recompute.CURVES, "canaries": 512, "guesses": 100}
    row |= {"correct": correct, "significance": 0.05, "epsilon_lower": lower, "ceiling": ceiling}
    write_release(tmp_path, change=lambda facts: facts["audit"]["tests"].append(row))
    assert (found or "") in failed(tmp_path).get("audit", "")
    assert ("audit" in failed(tmp_path)) is (found is not None)


def test_unknown_audit_method_is_not_waved_through(tmp_path: Path) -> None:
    write_release(tmp_path, change=_put("audit", "tests", 0, "method", value="trust me"))
    assert "does not know" in failed(tmp_path)["audit"]


@pytest.mark.parametrize(
    "change",
    [
        _put("run-reserved", "run_key", value=STRANGER.public.hex),
        _put("run-released", "statement_sha256", value="0" * 64),
        _put("run-audited", "statement_sha256", value="0" * 64),
        _put("run-audited", "verdict", value="failed"),
        _put("run-audited", "findings", value=["control-failed"]),
        _put("run-audited", "attempt", value=2),
        _put("audit-started", "attempt", value=2),
        _put("audit-started", "significance", value=1e-9),
        _put("run-settled", "outcome", value="closed"),
        _put("run-settled", "adapter", value=None),
        _put("run-released", "files", "report.html", value="0" * 64),
        _put("run-reserved", "policy_digest", value="0" * 64),
    ],
)
def test_ledger_that_says_something_else_is_found(tmp_path: Path, change: Change) -> None:
    write_release(tmp_path, ledger_change=change)
    assert failed(tmp_path)


def test_statement_signed_only_by_an_approver_is_refused(tmp_path: Path) -> None:
    write_release(tmp_path, keys=[AMARA])
    assert "run key" in failed(tmp_path)["signature"]


def test_countersignature_by_a_stranger_is_named(tmp_path: Path) -> None:
    write_release(tmp_path, keys=[RUN, STRANGER])
    assert STRANGER.public.keyid[:16] in failed(tmp_path)["signature"]


def test_countersignature_added_after_release_is_found(folder: Path) -> None:
    envelope = dsse_add_signature(parsed(folder, release.STATEMENT), JONAS)
    (folder / release.STATEMENT).write_bytes(canonical_json(envelope))
    assert release.STATEMENT in failed(folder)["digests"]


def test_trust_root_of_another_ledger_trusts_nothing(honest: Path) -> None:
    other = trust(log_key=STRANGER.public)
    found = failed(honest, other)
    assert "ledger" in found
    assert "not checked" in found["epsilon"]


def test_trust_root_may_limit_the_policies(honest: Path) -> None:
    other = trust(policy_sha256=["0" * 64])
    assert "is not one that the trust root accepts" in failed(honest, other)["policy"]


def test_approver_without_the_role_does_not_count(honest: Path) -> None:
    found = failed(honest, trust([person(JONAS, "operator"), person(AMARA)]))
    assert "does not include approver" in found["approvals"]


@pytest.mark.parametrize(
    ("who", "times", "check"),
    [
        (JONAS, {"revoked": "2026-11-20T08:00:00Z"}, "approvals"),  # he approved at 08:05:40
        (JONAS, {"expires": "2026-11-20T08:05:40Z"}, "approvals"),
        (JONAS, {"added": "2026-11-20T08:06:00Z"}, "approvals"),
        (JONAS, {"revoked": "2026-11-20T08:05:41Z"}, None),  # what was signed before stays signed
        (AMARA, {"revoked": "2026-11-20T08:30:00Z"}, "signature"),  # released at 09:00:00
        (AMARA, {"revoked": "2026-11-20T09:00:01Z"}, None),
    ],
)
def test_key_counts_from_when_it_was_added_until_it_expired_or_was_revoked(
    honest: Path, who: SigningKey, times: dict[str, str], check: str | None
) -> None:
    people = [person(who, **times), *(one for one in PEOPLE if one.name != who.name)]
    found = failed(honest, trust(people))
    assert (check in found) if check else found == {}


def test_trust_root_that_expired_vouches_for_nothing(honest: Path) -> None:
    late = verify.verify_release(honest, trust(), now=EXPIRES)
    with pytest.raises(SignatureError, match="trust root expired at 2027-11-01") as caught:
        verify.require(late)
    assert "privft ledger trust" in str(caught.value.hint)
    assert [row.name for row in late if not row.ok] == ["trust root"]


def test_countersigner_whom_the_statement_does_not_name_is_found(tmp_path: Path) -> None:
    write_release(tmp_path, change=_put("may_countersign", value=lambda rows: rows[:1]))
    assert AMARA.name in failed(tmp_path)["statement"]


def test_countersignature_by_somebody_who_is_no_approver_is_found(honest: Path) -> None:
    found = failed(honest, trust([person(JONAS), person(AMARA, "auditor")]))
    assert "was no approver" in found["signature"]


def test_countersignature_that_the_policy_asks_for_must_be_there(tmp_path: Path) -> None:
    write_release(tmp_path / "a", keys=[RUN])
    assert failed(tmp_path / "a") == {
        "countersignatures": "the policy wants 1, and 0 count: nobody"
    }
    write_release(tmp_path / "b", change=_put("run", "actor", value=AMARA.name))  # her own run
    assert failed(tmp_path / "b")["countersignatures"].endswith("0 count: nobody")
    write_release(tmp_path / "c", keys=[RUN, JONAS, AMARA])
    rows = {row.name: row for row in verify.verify_release(tmp_path / "c", trust(), now=NOW)}
    words = "1 asked for, 2 there: jonas-weidling, amara-liu"
    assert rows["countersignatures"].detail == words


def test_policy_that_names_no_number_of_countersignatures_does_not_ask_for_none(
    tmp_path: Path,
) -> None:
    def forget(facts: dict[str, Any]) -> None:
        del facts["policy"]["body"]["countersignatures"]

    with pytest.raises(IntegrityError, match="does not say how many countersignatures"):
        write_release(tmp_path, change=forget)


def test_waived_release_passes_and_says_who_waived_it(tmp_path: Path) -> None:
    write_release(tmp_path, waived_by=[JONAS, AMARA])
    rows = {row.name: row for row in verify.verify_release(tmp_path, trust(), now=NOW)}
    assert [row.detail for row in rows.values() if not row.ok] == []
    assert (
        rows["waivers"].detail == "1, signed by amara-liu, jonas-weidling, in force at the release"
    )


@pytest.mark.parametrize(
    ("people", "change", "words"),
    [
        ([JONAS, JONAS], _put("run-waived", "reason", value=lambda v: v), "1 signed"),
        ([JONAS, STRANGER], _put("run-waived", "reason", value=lambda v: v), "nobody named"),
        ([JONAS, AMARA], _put("run-waived", "reason", value="none"), "not as stated"),
        (
            [JONAS, AMARA],
            _put("run-waived", "signatures", 0, "signature", value="0a" * 64),
            "not as stated",
        ),
    ],
)
def test_waiver_that_two_people_did_not_sign_is_found(
    tmp_path: Path, people: list[SigningKey], change: Change, words: str
) -> None:
    write_release(tmp_path, waived_by=people, ledger_change=change)
    assert words in failed(tmp_path)["waivers"]


def test_waiver_with_a_signature_over_other_words_is_found_though_stated(tmp_path: Path) -> None:
    forged = _put("signatures", 0, "signature", value="0a" * 64)
    write_release(tmp_path, waived_by=[JONAS, AMARA], waiver_change=forged)
    assert "does not hold" in failed(tmp_path)["waivers"]


def test_waiver_that_had_expired_at_the_release_is_found(tmp_path: Path) -> None:
    early = _put("expires", value="2026-11-20T08:59:59Z")
    write_release(tmp_path, waived_by=[JONAS, AMARA], waiver_change=early)
    assert "waivers" in failed(tmp_path)


FAILED = {"verdict": "failed", "findings": ["control-failed"]}


def test_failed_audit_without_a_waiver_is_found(tmp_path: Path) -> None:
    write_release(
        tmp_path,
        change=_put("audit", value=lambda audit: audit | FAILED),
        ledger_change=_put("run-audited", value=lambda body: body | FAILED),
    )
    assert (
        failed(tmp_path)["waivers"]
        == "released after a failed audit, without a waiver that held then"
    )


def test_statement_that_is_not_the_audited_one_is_found_behind_a_waiver(tmp_path: Path) -> None:
    write_release(
        tmp_path,
        waived_by=[JONAS, AMARA],
        ledger_change=_put("run-audited", "statement_sha256", value="0" * 64),
    )
    assert "not the audited one" in failed(tmp_path)["waivers"]


def test_recovery_of_the_ledger_is_stated_and_held_against_its_entry(tmp_path: Path) -> None:
    write_release(tmp_path / "a", recovered_by=[JONAS, AMARA])
    assert failed(tmp_path / "a") == {}
    hidden = _put("ledger", "recoveries", value=[])
    write_release(tmp_path / "b", recovered_by=[JONAS, AMARA], change=hidden)
    assert failed(tmp_path / "b")["entries"].startswith("recoveries: the ledger has [{")
    write_release(tmp_path / "c", recovered_by=[JONAS, STRANGER])
    assert "approvals" in failed(tmp_path / "c")


MERGED = {"config.json": b"{}\n", "model.safetensors": b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "}


def test_merged_model_is_covered_file_by_file(tmp_path: Path) -> None:
    folder = tmp_path / "release"
    write_release(folder, merged=MERGED)
    assert failed(folder) == {}
    weights = folder / "merged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"X")
    assert failed(folder) == {"digests": "changed since the release: merged/model.safetensors"}
    weights.unlink()
    assert "merged/model.safetensors" in failed(folder)["digests"]
    weights.symlink_to(tmp_path / "elsewhere")
    assert "merged/model.safetensors is not a plain file" in failed(folder)["files"]
    weights.unlink()
    weights.write_bytes(MERGED["model.safetensors"])
    (folder / "merged" / "extra.bin").write_bytes(b"")
    assert "merged/extra.bin" in failed(folder)["digests"]


def test_merged_model_that_was_not_released_is_found(folder: Path) -> None:
    (folder / "merged").mkdir()
    (folder / "merged" / "model.safetensors").write_bytes(MERGED["model.safetensors"])
    assert "merged/model.safetensors" in failed(folder)["digests"]


def test_approval_that_was_never_signed_is_found_though_the_ledger_holds_it(
    tmp_path: Path,
) -> None:
    def forge(facts: dict[str, Any]) -> None:
        for approval in facts["approvals"]:
            approval["signature"] = "0a" * 64

    write_release(tmp_path, change=forge, approved=_put("signature", value="0a" * 64))
    assert "does not hold" in failed(tmp_path)["approvals"]


def test_failure_is_raised_with_the_name_of_its_check(folder: Path) -> None:
    (folder / "README.md").write_bytes(b"")
    with pytest.raises(
        IntegrityError, match=r"digests: changed since the release: README\.md"
    ) as e:
        verify.require(verify.verify_release(folder, trust(), now=NOW))
    assert e.value.exit_code == 13


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t.replace(b"privft-trust-v1", b"privft-trust-v2"),
        lambda t: t.replace(b'"people"', b'"persons"'),
        lambda t: t.replace(b'"hex": "', b'"hex": "Z'),
        lambda t: b"[]",
        lambda t: b"\xff",
        lambda t: t.replace(AMARA.public.hex.encode(), JONAS.public.hex.encode()),
        lambda t: t.replace(b'"expires": "2027-11', b'"expires": "2027-13'),
        lambda t: t.replace(b'"revoked": null', b'"revoked": "never"', 1),
        lambda t: t.replace(b'"approver"', b'"king"', 1),
    ],
)
def test_spoiled_trust_root_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    assert spoil(trust_file()) != trust_file()
    with pytest.raises(SignatureError):
        parse_trust(spoil(trust_file()))


def test_verifying_needs_no_torch_and_no_plotting(honest: Path, tmp_path: Path) -> None:
    root = tmp_path / "trust.json"
    root.write_bytes(trust_file())
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from privft.report.trust import parse_trust\n"
        "from privft.report.verify import verify_release, require\n"
        f"require(verify_release(Path({str(honest)!r}),"
        f" parse_trust(Path({str(root)!r}).read_bytes()), now={NOW!r}))\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "peft", "datasets", "matplotlib"} & set(
        done.stdout.split()
    )


def test_weights_are_only_hashed(folder: Path) -> None:
    weights = (folder / "adapter_model.safetensors").read_bytes()
    stated = json.loads(_payload(folder))["predicate"]["model"]["adapter_files"]
    assert stated["adapter_model.safetensors"] == sha256_hex(weights)


def test_envelope_around_another_statement_is_not_rendered(honest: Path) -> None:
    envelope = parsed(honest, release.STATEMENT)
    other = json.loads(_payload(honest))
    other["predicate"]["limits"] = []
    with pytest.raises(IntegrityError, match="another statement"):
        release.rendered_files(other, envelope)
