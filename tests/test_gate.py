"""The order of the stages: every sequence of actions, on a real ledger, against a model of it.

`Model` is written here from DESIGN.md and knows nothing of `privft.gate`.  `walk` tries every
action in every state that any sequence of up to `DEPTH` accepted actions leads to; the stages
themselves are replaced by what they do to the ledger.  A refused action must leave the ledger as it
was, and must be refused in the way that the model says.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from privft import gate
from privft.budget.judged import RunRecord
from privft.budget.ledger import Ledger
from privft.budget.mechanism import Event
from privft.budget.signed import waiver_message
from privft.cli import main
from privft.errors import (
    AuditFailed,
    OrderError,
    PlanError,
    PolicyRefused,
    PrivftError,
    SignatureError,
    UsageError,
)
from privft.signing import Identity
from privft.stages import auditing, data, planning, releasing, running
from tests.budget.samples import (
    CAP,
    HASH,
    LOG_KEY,
    audit_bodies,
    key_added,
    new_ledger,
    reserve,
    step_digest,
    waiver_signatures,
)

DEPTH = 5
NOW = "2030-01-01T00:00:00Z"
SOON = "2030-02-01T00:00:00Z"
LATER = "2030-03-01T00:00:00Z"
ADA, BOB, EVE = (Identity.generate(name) for name in ("ada", "bob", "eve"))
STEPS = 3

# What may be done in which state, and how the rest is refused: O is OrderError, A is AuditFailed.
TABLE = """
            resume close audit waive countersign release
reserved    yes    yes   O     O     O           O
closed      O      O     O     O     O           O
trained     O      O     yes   O     O           A
auditing    O      O     yes   O     O           A
passed      O      O     yes   O     yes         yes
unproven    O      O     yes   yes   O           A
failed      O      O     O     yes   O           A
waived      O      O     O     O     yes         yes
released    O      O     O     O     O           yes
"""
ACTIONS, *_rows = (line.split() for line in TABLE.strip().splitlines())
MAY = {row[0]: dict(zip(ACTIONS, row[1:], strict=True)) for row in _rows}
REFUSAL: dict[str, type[PrivftError]] = {"O": OrderError, "A": AuditFailed}


def record(**changes: Any) -> RunRecord:
    made = RunRecord(
        run="r-1",
        dataset="notes",
        lineage="0" * 32,
        actor="ada",
        steps=STEPS,
        charged=(Event(noise_multiplier=1.0, count=STEPS),),
        reserved=2,
    )
    return replace(made, **changes)


SETTLED = {"settled": 3, "outcome": "completed"}
EXAMPLES: dict[str, list[RunRecord]] = {
    "reserved": [record()],
    "closed": [record(settled=3, outcome="closed")],
    "trained": [record(**SETTLED)],
    "passed": [record(**SETTLED, verdict="passed")],
    "auditing": [
        record(**SETTLED, auditing=True),
        record(**SETTLED, auditing=True, verdict="passed"),
        record(**SETTLED, auditing=True, verdict="failed", waived_until=SOON),
    ],
    "unproven": [
        record(**SETTLED, verdict="failed"),
        record(**SETTLED, verdict="failed", waived_until=NOW),
    ],
    "failed": [
        record(**SETTLED, verdict="failed", contradicted=True),
        record(**SETTLED, verdict="failed", contradicted=True, waived_until=NOW),
        record(**SETTLED, verdict="failed", contradicted=True, waived_until="2029-12-31T23:59:59Z"),
    ],
    "waived": [
        record(**SETTLED, verdict="failed", contradicted=hard, waived_until="2030-01-01T00:00:01Z")
        for hard in (True, False)
    ],
    "released": [
        record(**SETTLED, verdict="passed", released=9),
        record(**SETTLED, verdict="failed", waived_until="2029-01-01T00:00:00Z", released=9),
    ],
}


@pytest.mark.parametrize("state", EXAMPLES)
def test_the_state_follows_from_the_entries_and_the_time_alone(state: str) -> None:
    for example in EXAMPLES[state]:
        assert gate.state_of(example, now=NOW) == state


def test_every_record_that_the_ledger_can_make_has_a_state() -> None:
    for outcome, verdict, until, out, open_audit, hard in itertools.product(
        (None, "completed", "closed"),
        (None, "passed", "failed"),
        (None, NOW, SOON),
        (None, 9),
        (False, True),
        (False, True),
    ):
        made = record(
            settled=None if outcome is None else 3,
            outcome=outcome,
            verdict=verdict,
            waived_until=until,
            released=out,
            auditing=open_audit,
            contradicted=hard,
        )
        state = gate.state_of(made, now=NOW)
        if outcome != "completed":
            assert state == ("closed" if outcome else "reserved")
        if state in ("passed", "waived"):
            assert verdict is not None, "a missing audit is never a pass"
            assert not open_audit, "an audit that began has to end"


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("state", MAY)
def test_each_action_in_each_state_is_allowed_or_refused_as_the_table_says(
    state: str, action: str
) -> None:
    for example in EXAMPLES[state]:
        answer = MAY[state][action]
        if answer == "yes":
            assert gate.require(example, action, now=NOW) == state  # type: ignore[arg-type]
            continue
        with pytest.raises(REFUSAL[answer]) as refusal:
            gate.require(example, action, now=NOW)  # type: ignore[arg-type]
        assert type(refusal.value) is REFUSAL[answer]
        assert example.run in refusal.value.message
        assert refusal.value.hint == gate.next_step(state, example.run)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", MAY)
def test_what_is_recommended_next_is_a_command_and_allowed(state: str) -> None:
    words = gate.next_step(state, "r-1").split("privft ")[1].split()  # type: ignore[arg-type]
    verb = "resume" if words[:2] == ["train", "--resume"] else words[0]
    assert main.get_command(None, words[0]) is not None  # type: ignore[arg-type]
    assert verb == "plan" or MAY[state][verb] == "yes"


# -- every sequence --------------------------------------------------------------------------------


class Killed(Exception):
    """The process died inside of a stage."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A run as DESIGN.md has it; `steps` of the walk are its methods' names."""

    state: str = "reserved"
    verdict: str = ""
    audits: int = 0
    left: bool = False

    def after(self, step: str) -> Model | type[BaseException]:
        """The next model, or the error that the step must raise."""
        action, _, outcome = step.partition(":")
        if action == "wait":
            return replace(self, state=self.verdict) if self.state == "waived" else self
        answer = MAY[self.state][action]
        if answer != "yes":
            return REFUSAL[answer]
        if step == "resume:dies":
            return Killed
        if step == "audit:dies":  # it counts, and it is gone on with
            return replace(self, state="auditing", audits=self.audits + (self.state != "auditing"))
        if step == "resume:cannot":
            return replace(self, state="closed")
        states = {
            "resume": "trained",
            "close": "closed",
            "audit": outcome,
            "waive": "waived",
            "release": "released",
        }
        return replace(
            self,
            state=states[action],
            verdict=outcome if action == "audit" else self.verdict,
            audits=self.audits + (action == "audit" and self.state != "auditing"),
            left=self.left or action == "release",
        )


STEPS_OF_THE_WALK = (
    "resume:done",
    "resume:cannot",
    "resume:dies",
    "close",
    "audit:passed",
    "audit:failed",
    "audit:unproven",
    "audit:dies",
    "waive",
    "wait",
    "release",
)


def months_after(time: str, months: int) -> str:
    year, month = divmod(12 * int(time[:4]) + int(time[5:7]) - 1 + months, 12)
    return f"{year:04d}-{month + 1:02d}-01T00:00:00Z"


class World:
    """One ledger in a folder, a clock, and stages that only do what theirs does to the ledger."""

    def __init__(self, folder: Path, clock: str = NOW) -> None:
        self.folder, self.clock = folder, clock
        self.workspace: Any = SimpleNamespace(run_path=lambda run: folder / run)

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        with Ledger.open(self.folder / "ledger.db", log_key=LOG_KEY) as ledger:
            yield ledger

    def copied(self, folder: Path) -> World:
        folder.mkdir()
        shutil.copy(self.folder / "ledger.db", folder / "ledger.db")
        return World(folder, self.clock)

    def do(self, step: str, ledger: Ledger, patch: pytest.MonkeyPatch) -> None:
        """Take a step of the walk through the gate."""
        action, _, outcome = step.partition(":")
        run = ledger.runs()[0].run
        if action == "wait":
            self.clock = months_after(self.clock, 2)
            return
        patch.setattr(gate, "_now", lambda: self.clock)
        self._stub(ledger, run, outcome, patch)
        common: dict[str, Any] = {"actor": ADA, "opener": None}
        if action == "resume":
            gate.resume(None, ledger, run, **common, watch=None, ranks=None)  # type: ignore[arg-type]
        elif action == "close":
            gate.close(self.workspace, ledger, run, actor=ADA, reason="given up")
        elif action == "audit":
            gate.audit(None, ledger, run, **common, watch=None)  # type: ignore[arg-type]
        elif action == "waive":
            end = months_after(self.clock, 1)
            gate.waive(ledger, run, people=[ADA, BOB], reason="urgent", expires=end)
        else:
            plain: Any = {"merge": False, "say": str}
            gate.release(None, ledger, run, Path("x"), **common, **plain)  # type: ignore[arg-type]

    def _stub(self, ledger: Ledger, run: str, outcome: str, patch: pytest.MonkeyPatch) -> None:
        def resume(*_: Any, **__: Any) -> None:
            if outcome == "dies":
                raise Killed
            if outcome == "cannot":
                running.close(ledger, run, folder=self.folder, actor=ADA, reason="another machine")
            settle(ledger, run)

        def audit(*_: Any, **__: Any) -> None:
            if not ledger.run(run).auditing:
                self.append(ledger, "audit-started", run)
            if outcome == "dies":
                raise Killed
            self.append(ledger, "run-audited", run, outcome=outcome)

        def release(*_: Any, **__: Any) -> dict[str, str]:
            if not ledger.entries(kind="run-released", run=run):
                self.append(ledger, "run-released", run)
            return {}

        patch.setattr(running, "resume", resume)
        patch.setattr(running, "stored_plan", lambda *_, **__: (Plan(), None))
        patch.setattr(data, "policy_of", lambda *_: None)
        patch.setattr(planning, "check_approved", lambda *_, **__: [])
        patch.setattr(auditing, "audit", audit)
        patch.setattr(releasing, "release", release)

    def append(self, ledger: Ledger, kind: str, run: str, **changes: Any) -> None:
        """Write an entry past the gate."""
        outcome = changes.pop("outcome", "passed")
        begun = ledger.run(run).attempts
        if kind == "audit-started":
            body, _ = audit_bodies(run, "passed", attempt=begun + 1)
        elif kind == "run-audited":
            verdict = "passed" if outcome == "passed" else "failed"
            findings = ["control-failed"] if outcome == "unproven" else None
            _, body = audit_bodies(run, verdict, attempt=max(1, begun), findings=findings)
        elif kind == "run-released":
            body = {"run": run, "files": {"a": HASH}, "statement_sha256": HASH}
        else:
            said = {"reason": "x", "expires": months_after(self.clock, 1)}
            body = {"run": run, **said, "signatures": waiver_signatures([ADA, BOB], run, **said)}
        ledger.append(kind, {**body, **changes}, actor="ada", time=self.clock)


class Plan:
    dataset = "notes"


def settle(ledger: Ledger, run: str) -> None:
    adapter = {"adapter_model.safetensors": HASH}
    ledger.settle(
        run, actor="ada", outcome="completed", reason="x", steps_drawn=STEPS, adapter=adapter
    )


def add(ledger: Ledger, person: Identity, *roles: str) -> None:
    body = key_added(person, *roles)
    ledger.append("key-added", body, actor="ada", time="2026-01-01T00:00:00Z")


@pytest.fixture(autouse=True)
def nothing_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no policy and no folder here; tests/stages/test_retention.py has both."""
    monkeypatch.setattr(gate, "_expire", lambda *_: None)


@pytest.fixture
def start(tmp_path: Path) -> World:
    folder = tmp_path / "start"
    folder.mkdir()
    with new_ledger(folder) as ledger:
        for person in (ADA, BOB):
            add(ledger, person, "operator", "approver")
        add(ledger, EVE, "auditor")
        reserve(ledger, steps=STEPS)
    return World(folder)


def check_ledgers_own_rules(world: World, model: Model) -> None:
    """What the ledger refuses by itself, should a caller come past the gate."""

    def refused(verb: Callable[[Ledger, str], object]) -> bool:
        trial = world.copied(world.folder / "trial")
        try:
            with trial.ledger() as ledger:
                verb(ledger, ledger.runs()[0].run)
        except OrderError:
            return True
        finally:
            shutil.rmtree(trial.folder)
        return False

    reserved = model.state == "reserved"
    assert refused(settle) is not reserved
    assert refused(lambda ledger, run: ledger.journal(run, 0, step_digest(0))) is not reserved
    no_audit = model.state in ("reserved", "closed", "released")
    if model.state != "waived":
        assert refused(lambda ledger, run: world.append(ledger, "audit-started", run)) is (
            no_audit or model.state == "failed"
        )
    not_open = no_audit or model.state != "auditing"
    assert refused(lambda ledger, run: world.append(ledger, "run-audited", run)) is not_open
    may_leave = model.state in ("passed", "waived")
    if model.state != "released":
        assert (
            refused(lambda ledger, run: world.append(ledger, "run-released", run)) is not may_leave
        )
        assert refused(lambda ledger, run: world.append(ledger, "run-waived", run)) is (
            model.state not in ("failed", "unproven", "waived")
        )


def walk(
    world: World, model: Model, depth: int, patch: pytest.MonkeyPatch, known: set[Model]
) -> Iterator[str]:
    """Try every step from here; go on from each that changed something.  Yields states seen."""
    if model not in known:
        known.add(model)
        check_ledgers_own_rules(world, model)
    for number, step in enumerate(STEPS_OF_THE_WALK):
        expected = model.after(step)
        branch = world.copied(world.folder / str(number))
        raised: BaseException | None = None
        with branch.ledger() as ledger:
            before = ledger.root
            try:
                branch.do(step, ledger, patch)
            except (PrivftError, Killed) as error:
                raised = error
            record = ledger.runs()[0]
            now = gate.state_of(record, now=branch.clock)
            root = ledger.root
        if isinstance(expected, type):
            assert type(raised) is expected, (step, model, raised)
            assert root == before, f"{step} was refused and left a trace"
            now_expected = model
        else:
            assert raised is None or step in ("resume:cannot", "audit:dies"), (step, model, raised)
            assert record.attempts == expected.audits, (step, model)
            now_expected = expected
        assert now == now_expected.state, (step, model)
        yield now
        if now_expected != model and depth > 1:
            yield from walk(branch, now_expected, depth - 1, patch, known)
        shutil.rmtree(branch.folder)


def test_every_sequence_of_actions_goes_the_right_way_or_is_refused(
    start: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list(walk(start, Model(), DEPTH, monkeypatch, set()))
    assert set(seen) == set(MAY), "the walk came through every state"
    assert len(seen) > 250


def test_a_released_run_can_be_released_again_when_its_waiver_has_expired(
    start: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start.ledger() as ledger:
        for step in ("resume:done", "audit:failed", "waive", "release", "wait", "release"):
            start.do(step, ledger, monkeypatch)
        assert len(ledger.entries(kind="run-released")) == 1


# -- planning and training -------------------------------------------------------------------------


@pytest.mark.parametrize("fails_at", ["unedited", "fresh", "approved", None])
def test_training_starts_after_the_plan_is_found_whole_fresh_and_approved(
    start: World, monkeypatch: pytest.MonkeyPatch, fails_at: str | None
) -> None:
    called: list[str] = []

    def stage(name: str) -> Callable[..., Any]:
        def call(*_: Any, **__: Any) -> Any:
            called.append(name)
            if name == fails_at:
                raise PlanError("no")
            return "r-1"

        return call

    monkeypatch.setattr(planning, "check_unedited", stage("unedited"))
    monkeypatch.setattr(planning, "check_fresh", stage("fresh"))
    monkeypatch.setattr(planning, "check_approved", stage("approved"))
    monkeypatch.setattr(running, "start", stage("start"))

    def train() -> str:
        with start.ledger() as ledger:
            return gate.train(
                None,  # type: ignore[arg-type]
                ledger,
                Plan(),  # type: ignore[arg-type]
                config_folder=Path(),
                actor=ADA,
                opener=None,  # type: ignore[arg-type]
                watch=None,  # type: ignore[arg-type]
                ranks=None,  # type: ignore[arg-type]
            )

    if fails_at is None:
        assert train() == "r-1"
        assert called == ["unedited", "fresh", "approved", "start"]
        return
    with pytest.raises(PlanError):
        train()
    assert called[-1] == fails_at


# -- who may --------------------------------------------------------------------------------------


def close(ledger: Ledger, who: Identity) -> None:
    gate.close(World(Path()).workspace, ledger, ledger.runs()[0].run, actor=who, reason="x")


def test_only_operators_with_their_own_keys_act(start: World) -> None:
    with start.ledger() as ledger:
        size = ledger.size
        with pytest.raises(PolicyRefused, match="does not include operator"):
            close(ledger, EVE)
        with pytest.raises(PolicyRefused, match="nobody named mallory"):
            close(ledger, Identity.generate("mallory"))
        with pytest.raises(PolicyRefused, match="other keys for ada"):
            close(ledger, Identity.generate("ada"))
        assert ledger.size == size
        ledger.append("key-revoked", {"name": "bob", "reason": "left"}, actor="ada")
        with pytest.raises(SignatureError, match="not good"):
            close(ledger, BOB)


# -- waivers --------------------------------------------------------------------------------------


@pytest.fixture
def failed(start: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Ledger, str]]:
    with start.ledger() as ledger:
        start.do("resume:done", ledger, monkeypatch)
        start.do("audit:failed", ledger, monkeypatch)
        yield ledger, ledger.runs()[0].run


WAIVER: dict[str, Any] = {"people": [ADA, BOB], "reason": "urgent", "expires": SOON}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"people": [ADA]}, UsageError, "two people, got 1"),
        ({"people": [ADA, ADA]}, UsageError, "two people"),
        ({"people": []}, UsageError, "two people"),
        ({"reason": " "}, UsageError, "reason"),
        ({"expires": NOW}, UsageError, "expected an expiry after"),
        ({"expires": "next week"}, UsageError, "expected a time such as"),
        ({"people": [ADA, EVE]}, PolicyRefused, "does not include approver"),
        ({"people": [ADA, Identity.generate("bob")]}, PolicyRefused, "other keys for bob"),
        ({"people": [ADA, Identity.generate("mallory")]}, PolicyRefused, "nobody named mallory"),
    ],
)
def test_a_waiver_needs_two_approvers_a_reason_and_an_end(
    failed: tuple[Ledger, str], change: dict[str, Any], error: type[PrivftError], words: str
) -> None:
    ledger, run = failed
    size = ledger.size
    with pytest.raises(error, match=words):
        gate.waive(ledger, run, **(WAIVER | change))
    assert ledger.size == size


def test_a_waiver_is_signed_by_both_over_run_statement_reason_and_end(
    failed: tuple[Ledger, str],
) -> None:
    ledger, run = failed
    gate.waive(ledger, run, **WAIVER)
    (entry,) = ledger.entries(kind="run-waived")
    message = waiver_message(run, statement_sha256=HASH, reason="urgent", expires=SOON)
    signatures = entry.body["signatures"]
    assert [signature["name"] for signature in signatures] == ["ada", "bob"]
    for signature, person in zip(signatures, (ADA, BOB), strict=True):
        person.signing.public.verify(bytes.fromhex(signature["signature"]), message)
    others = [
        waiver_message(run, statement_sha256=HASH, reason="urgent", expires=LATER),
        waiver_message(run, statement_sha256=HASH, reason="other", expires=SOON),
        waiver_message(run, statement_sha256="cd" * 32, reason="urgent", expires=SOON),
        waiver_message("r-2", statement_sha256=HASH, reason="urgent", expires=SOON),
    ]
    assert len({message, *others}) == 5


def release_as_ada(ledger: Ledger, run: str) -> dict[str, str]:
    common: dict[str, Any] = {"actor": ADA, "opener": None, "merge": False, "say": str}
    return gate.release(None, ledger, run, Path("x"), **common)  # type: ignore[arg-type]


def signed_waiver(run: str, people: list[Identity], **said: str) -> dict[str, Any]:
    whole = {"reason": "urgent", "expires": SOON} | said
    return {"run": run, **whole, "signatures": waiver_signatures(people, run, **whole)}


MALLORY = Identity.generate("mallory")
FORGERIES: dict[str, Callable[[str], dict[str, Any]]] = {
    "no signatures": lambda run: {**signed_waiver(run, []), "signatures": [{}, {}]},
    "one person twice": lambda run: signed_waiver(run, [ADA, ADA]),
    "a stranger": lambda run: signed_waiver(run, [ADA, MALLORY]),
    "somebody else's name": lambda run: signed_waiver(run, [ADA, Identity.generate("bob")]),
    "somebody without the role": lambda run: signed_waiver(run, [ADA, EVE]),
    "a later end than was signed": lambda run: {**signed_waiver(run, [ADA, BOB]), "expires": LATER},
    "another reason": lambda run: {**signed_waiver(run, [ADA, BOB]), "reason": "none"},
    "another run's": lambda run: {**signed_waiver("r-9", [ADA, BOB]), "run": run},
    "another statement's": lambda run: {
        **signed_waiver(run, [ADA, BOB]),
        "signatures": waiver_signatures(
            [ADA, BOB], run, reason="urgent", expires=SOON, statement_sha256="cd" * 32
        ),
    },
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_waiver_opens_nothing_even_where_the_ledger_took_it(
    failed: tuple[Ledger, str], monkeypatch: pytest.MonkeyPatch, forgery: str
) -> None:
    ledger, run = failed
    body = FORGERIES[forgery](run)
    with pytest.raises(PrivftError):
        ledger.append("run-waived", body, actor="ada", time=NOW)
    with pytest.MonkeyPatch.context() as patch:  # another program wrote it
        patch.setattr("privft.budget.judged.check_waiver", lambda *_, **__: None)
        ledger.append("run-waived", body, actor="ada", time=NOW)
    assert gate.state_of(ledger.run(run), now=NOW) == "waived"
    monkeypatch.setattr(releasing, "release", lambda *_, **__: pytest.fail("it went out"))
    with pytest.raises((SignatureError, PolicyRefused)):
        release_as_ada(ledger, run)


def test_a_waiver_opens_the_door_until_its_last_second(
    failed: tuple[Ledger, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, run = failed
    monkeypatch.setattr(releasing, "release", lambda *_, **__: {"a": HASH})
    gate.waive(ledger, run, **WAIVER)
    monkeypatch.setattr(gate, "_now", lambda: "2030-01-31T23:59:59Z")
    assert release_as_ada(ledger, run) == {"a": HASH}
    monkeypatch.setattr(gate, "_now", lambda: SOON)
    with pytest.raises(AuditFailed):
        release_as_ada(ledger, run)


def test_who_was_revoked_answers_for_no_release_any_more(
    failed: tuple[Ledger, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, run = failed
    monkeypatch.setattr(releasing, "release", lambda *_, **__: pytest.fail("it went out"))
    gate.waive(ledger, run, **WAIVER)
    later = "2030-01-10T00:00:00Z"
    ledger.append("key-revoked", {"name": "bob", "reason": "left"}, actor="ada", time=later)
    monkeypatch.setattr(gate, "_now", lambda: "2030-01-11T00:00:00Z")
    with pytest.raises(SignatureError, match="bob were not good"):
        release_as_ada(ledger, run)


def test_a_run_beyond_the_cap_is_refused_by_the_ledger_itself(start: World) -> None:
    with start.ledger() as ledger:
        size = ledger.size
        with pytest.raises(PrivftError) as refusal:
            reserve(ledger, cap=CAP, steps=4000, noise=0.5)
        assert refusal.value.exit_code == 11
        assert ledger.size == size
