"""Random stopping, run: always all repetitions, one charge, and no trace of how many counted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from privft import gate
from privft.budget.accounting import cost, tradeoff
from privft.budget.ledger import Ledger
from privft.budget.selection import Selection, event_from_dict
from privft.errors import IntegrityError
from privft.report.recompute import epsilon_agrees
from privft.signing import sha256_hex
from privft.stages import ranked, running, selecting
from privft.stages.sealedrun import SealedRun
from privft.training.checkpoint import platform_facts
from tests.report.test_recipe import follow
from tests.stages.world import NOTES, SIZE, Result, World, base, files_below, unchecked

STEPS, MOST = 3, 4
STOPPING = {"distribution": "truncated-negative-binomial", "shape": 1.0, "mean": 1.5, "most": MOST}
VARY: dict[str, Any] = {"training.learning_rate": [0.01, 0.05], "lora.lora_alpha": [4, 16]}
HELD_OUT = {"noise_multiplier": 20.0, "loss_bound": 8.0, "units": 10}
SECRET = bytes(range(32))
NEVER = "2026-01-01T00:00:00Z"


class Killed(BaseException):
    """The process ends here."""


@cache
def _studied(folder: Path) -> World:
    world = base().copied(folder / "world")
    rows = [json.loads(row) for row in (world.folder / "notes.jsonl").read_text().splitlines()]
    for row in rows:  # the same words in another order: no text may be in two data sets
        row |= {"note": " ".join(row["note"].split()[::-1]), "patient": f"s{row['patient']}"}
        row["id"] = f"s{row['id']}"
    source = world.folder / "studied.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    create = ("vault", "create", "studied", "--from", source, "--policy", "research")
    world.privft(*create, *NOTES, *SIZE)
    world.privft("plan", sweep(world))
    return world


@pytest.fixture(scope="session")
def studied(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with a data set under the policy that takes one accountant, and a plan of a sweep;
    not to be changed.  (Steps are bound to the plan, so what is compared has the same one.)"""
    return _studied(tmp_path_factory.mktemp("studied"))


def sweep(world: World, *, dataset: str = "studied", noise: float = 2.0, **changes: Any) -> Path:
    config = world.config("base", steps=STEPS, noise=noise)
    config.write_text(config.read_text().replace("dataset: notes", f"dataset: {dataset}"))
    body = {
        "sweep": 1,
        "base": "base.yaml",
        "vary": VARY,
        "charge": "random-stopping",
        "stopping": STOPPING,
        "score": HELD_OUT,
        **changes,
    }
    path = world.folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(body, sort_keys=False))
    return path


@dataclass(kw_only=True)
class Trained:
    """A sweep that was trained under a fixed secret, and what was seen of it from inside."""

    world: World
    result: Result
    run: str
    sealed: list[tuple[str, int]] = field(default_factory=list)  # name and length, as written
    scores: list[tuple[str, float]] = field(default_factory=list)  # digest of the model, score
    held: selecting.Held | None = None

    def settled(self) -> Mapping[str, Any]:
        with self.world.ledger() as ledger:
            return ledger.entries(kind="run-settled", run=self.run)[0].body

    def journal(self) -> list[tuple[int, str]]:
        with self.world.ledger() as ledger:
            return ledger.journal_entries(self.run)


def train(world: World, *, counted: int | None, code: int = 0, **changes: Any) -> Trained:
    """Train under `SECRET`, what is planned or a sweep with changes; counted: how many repetitions
    count, else as drawn."""
    if changes:
        world.privft("plan", sweep(world, **changes))
    sealed: list[tuple[str, int]] = []
    scores: list[tuple[str, float]] = []
    held: list[selecting.Held] = []
    seal, score, restored = SealedRun.seal, selecting._score, selecting._restored

    def sealing(self: SealedRun, name: str, plaintext: bytes) -> None:
        seal(self, name, plaintext)
        sealed.append((name, self._path(name).stat().st_size))

    def scoring(*arguments: Any, inputs: str) -> float:
        found = score(*arguments, inputs=inputs)
        scores.append((inputs, found))
        return found

    def restoring(best: selecting.Held, *arguments: Any) -> Any:
        held.append(best)
        return restored(best, *arguments)

    drawn = selecting.draw_repetitions if counted is None else lambda *_: counted
    with (
        unchecked(),
        mock.patch.object(running, "fresh_secret", return_value=SECRET),
        mock.patch.object(selecting, "draw_repetitions", drawn),
        mock.patch.object(SealedRun, "seal", sealing),
        mock.patch.object(selecting, "_score", scoring),
        mock.patch.object(selecting, "_restored", restoring),
    ):
        result = world.privft("train", world.folder / "sweep.plan", code=code)
    (run,) = world.runs()
    return Trained(
        world=world,
        result=result,
        run=run,
        sealed=sealed,
        scores=scores,
        held=held[0] if held else None,
    )


@pytest.fixture(scope="module")
def by_count(studied: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Trained]:
    """The same sweep under the same secret, of which so many repetitions count."""
    folder = tmp_path_factory.mktemp("counted")

    @cache
    def trained(counted: int) -> Trained:
        return train(studied.copied(folder / str(counted)), counted=counted)

    return trained


def test_the_best_of_those_that_count_is_kept(by_count: Callable[[int], Trained]) -> None:
    adapters = set()
    for counted in (1, 2, MOST):
        done = by_count(counted)
        assert len(done.scores) == MOST, "each repetition is scored, whether it counts or not"
        assert len({digest for digest, _ in done.scores}) == MOST, "each is another model"
        best, _ = max(done.scores[:counted], key=lambda row: row[1])
        assert done.held is not None
        assert sha256_hex(done.held.tensors) == best
        adapters.add(str(done.settled()["adapter"]))
    firsts = {max(by_count(n).scores[:n], key=lambda row: row[1])[0] for n in (1, 2, MOST)}
    assert len(adapters) == len(firsts)
    assert len({tuple(by_count(counted).scores) for counted in (1, 2, MOST)}) == 1


def test_how_many_counted_shows_nowhere(by_count: Callable[[int], Trained]) -> None:
    one, other = by_count(1), by_count(MOST)
    assert one.journal() == other.journal()
    assert len(one.journal()) == STEPS * MOST
    bodies = [{**done.settled(), "adapter": 0, "run": 0} for done in (one, other)]
    for body in bodies:
        del body["journal_sha256"]  # over the run's name too
    assert bodies[0] == bodies[1]
    public = ("chosen", "adapter/adapter_config.json")  # of the one that is kept
    written = [[row for row in done.sealed if row[0] not in public] for done in (one, other)]
    assert written[0] == written[1]
    assert [name for name, _ in written[0]].count("checkpoint") == MOST + MOST  # one a checkpoint
    left = [
        {name: len(data) for name, data in files_below(folder_of(done)).items()}
        for done in (one, other)
    ]
    for files in left:
        assert files.pop("adapter/adapter_config.json.sealed")
    assert left[0] == left[1]
    assert {"secret.sealed", "checkpoint.sealed"}.isdisjoint(left[0])
    assert talk(one) == talk(other)
    assert "4 repetitions; how many of them count stays hidden" in talk(one)
    assert f"step {STEPS * MOST} of {STEPS * MOST}" in talk(one)


def folder_of(done: Trained) -> Path:
    return done.world.workspace.run_path(done.run)


def talk(done: Trained) -> str:
    """What the terminal said, but for the run's name, seconds, and the folder."""
    said = f"{done.result.out}\n{done.result.err}".replace(str(done.world.folder), "")
    return re.sub(r", \d+ s|r-0001-[0-9a-f]{6}", "", said)


def test_no_two_repetitions_share_noise_or_samples() -> None:
    from privft.randomness import KeyedStreams

    root = KeyedStreams(SECRET)
    every = [root, *(root.repetition(number) for number in range(8))]
    for name, label in (("noise", "a.weight"), ("sample", "units"), ("candidate", "")):
        drawn = {each.stream(name, step=2, label=label).bytes(16) for each in every}
        assert len(drawn) == len(every)
    again = KeyedStreams(SECRET).repetition(3).stream("noise").bytes(16)
    assert again == root.repetition(3).stream("noise").bytes(16)
    with pytest.raises(ValueError, match="number"):
        root.repetition(-1)


def test_candidates_are_drawn_with_equal_chances() -> None:
    from privft.randomness import KeyedStreams

    root = KeyedStreams(SECRET)
    drawn = [int(root.repetition(n).stream("candidate").integers(4, 1)[0]) for n in range(2000)]
    assert all(400 < drawn.count(each) < 600 for each in range(4))


def test_one_reservation_and_one_charge(by_count: Callable[[int], Trained]) -> None:
    done = by_count(2)
    with done.world.ledger() as ledger:
        record = ledger.run(done.run)
        (reserved,) = ledger.entries(kind="run-reserved")
        ledger.verify()
    (event,) = record.charged
    assert isinstance(event, Selection)
    assert (event.most, event.mean, len(event.events)) == (MOST, 1.5, 2)
    assert [event_from_dict(row) for row in reserved.body["events"]] == [event]
    assert done.settled()["events"] == reserved.body["events"]
    assert record.steps == done.settled()["steps_charged"] == STEPS * MOST
    shown = done.world.privft("ledger", "show", "--composed")
    assert "no epsilon by PLD over its runs: one accountant only" in " ".join(shown.out.split())
    bundle = done.world.folder / "bundle.json"
    bundle.write_text(done.world.privft("ledger", "export").out)
    trust = done.world.folder / "trust.json"
    trust.write_text(done.world.privft("ledger", "trust").out)
    done.world.privft("ledger", "verify", "--bundle", bundle, "--trust", trust)


def killed(world: World, place: str, at: int) -> str:
    """Train a planned sweep until call number `at` of a function, which never returns."""
    owner, name = {"journal": (Ledger, "journal"), "seal": (SealedRun, "seal"),
                   "settle": (Ledger, "settle")}[place]  # fmt: skip
    real, calls = getattr(owner, name), []

    def dying(self: Any, *arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        ours = place != "seal" or arguments[0] == "checkpoint"
        if ours and sum(1 for c in calls if place != "seal" or c[0] == "checkpoint") > at:
            raise Killed
        return real(self, *arguments, **named)

    with (
        unchecked(),
        mock.patch.object(running, "fresh_secret", return_value=SECRET),
        mock.patch.object(owner, name, dying),
        pytest.raises(Killed),
    ):
        world.privft("train", world.folder / "sweep.plan", code=None)
    (run,) = world.runs()
    return run


@pytest.fixture(scope="module")
def undisturbed(studied: World, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(studied.copied(tmp_path_factory.mktemp("whole") / "world"), counted=None)


@pytest.mark.parametrize(
    ("place", "at"),
    [
        ("journal", STEPS + 2),  # after a checkpoint inside of the second repetition
        ("journal", 2 * STEPS),  # before the first step of the third
        ("seal", 1),  # a repetition is over and nothing of it is kept yet
        ("seal", 2 * MOST - 1),  # the last one
        ("settle", 0),
    ],
)
def test_a_sweep_that_was_killed_ends_with_the_same_bits_and_the_same_charge(
    studied: World, undisturbed: Trained, tmp_path: Path, place: str, at: int
) -> None:
    world = studied.copied(tmp_path / "world")
    run = killed(world, place, at)
    with world.ledger() as ledger:
        assert ledger.budget(ledger.run(run).lineage).reserved == ledger.run(run).charged
    world.privft("train", "--resume", run)
    with world.ledger() as ledger:
        settled = ledger.entries(kind="run-settled", run=run)[0].body
        assert ledger.journal_entries(run) == undisturbed.journal()
        ledger.verify()
    assert settled["adapter"] == undisturbed.settled()["adapter"]
    assert settled["events"] == undisturbed.settled()["events"]
    assert "secret.sealed" not in files_below(world.workspace.run_path(run))


@pytest.mark.parametrize("at", [STEPS + 1])
def test_a_sweep_that_cannot_be_gone_on_with_is_charged_whole(
    studied: World, tmp_path: Path, at: int
) -> None:
    world = studied.copied(tmp_path / "world")
    run = killed(world, "journal", at)
    other = {**platform_facts(), "torch": "another"}
    with mock.patch.object(ranked, "platform_facts", return_value=other):
        done = world.privft("train", "--resume", run, code=1)
    assert "closed and charged in full" in done.err
    with world.ledger() as ledger:
        record = ledger.run(run)
        assert gate.state_of(record, now=NEVER) == "closed"
        assert ledger.entries(kind="run-settled")[0].body["steps_charged"] == STEPS * MOST
    assert isinstance(record.charged[0], Selection)
    assert "checkpoint.sealed" not in files_below(world.workspace.run_path(run))


def test_a_number_of_none_keeps_nothing_and_is_charged(studied: World, tmp_path: Path) -> None:
    world = studied.copied(tmp_path / "world")
    stopping = {"distribution": "poisson", "mean": 1.5, "most": MOST}
    page = world.privft("plan", sweep(world, stopping=stopping))
    assert "(Poisson, mean 1.5 before it is cut)" in " ".join(page.out.split())
    assert "The number can be 0" in (world.folder / "sweep.html").read_text()
    done = train(world, counted=0, code=1, stopping=stopping)
    assert "count came out as 0, so nothing is kept" in done.result.err
    assert len(done.journal()) == STEPS * MOST, "all repetitions took place all the same"
    settled = done.settled()
    assert (settled["outcome"], settled["adapter"]) == ("closed", None)
    left = files_below(folder_of(done))
    assert not [name for name in left if name.startswith(("adapter", "chosen", "secret", "check"))]
    done.world.privft("audit", done.run, code=1)


def test_a_score_on_public_text_is_free_and_needs_such_text(studied: World, tmp_path: Path) -> None:
    world = studied.copied(tmp_path / "world")
    paid = world.privft("plan", sweep(world), "--json").json["cost"]["epsilon_rdp"]
    free = world.privft("plan", sweep(world, score="public"), "--json").json
    assert free["cost"]["epsilon_rdp"] < paid
    done = train(world, counted=2, score="public")
    assert all(score < 0 for _, score in done.scores)
    path = sweep(world, score="public")
    config = world.folder / "base.yaml"
    config.write_text(config.read_text().replace("public_file: public.jsonl, ", ""))
    refused = world.privft("plan", path, code=2)
    assert "expected evaluation.public_file" in refused.err


def test_what_the_policy_and_the_budget_say(studied: World, tmp_path: Path) -> None:
    world = studied.copied(tmp_path / "world")
    refused = world.privft("plan", sweep(world, dataset="notes"), code=10)
    assert "two_accountants" in refused.err
    assert "a sweep run by run" in refused.err
    dear = world.privft("plan", sweep(world, noise=0.45), code=10)
    assert "max_epsilon_per_run" in dear.err
    world.privft("plan", sweep(world, noise=0.6), "--json")
    with world.ledger() as ledger:
        before = ledger.budget(ledger.entries(kind="dataset-created")[-1].body["lineage"])
    assert before.epsilon_spent == 0


def test_the_price_of_the_plan_is_that_of_its_event(studied: World, tmp_path: Path) -> None:
    world = studied.copied(tmp_path / "world")
    said = world.privft("plan", sweep(world), "--json").json
    plan = json.loads((world.folder / "sweep.plan").read_text())
    assert plan["substitute"] is None
    assert said["epsilon"] == said["cost"]["epsilon_rdp"]
    assert said["takes"]["seconds_at_most"] == pytest.approx(
        said["takes"]["seconds_a_step_at_most"] * STEPS * MOST
    )
    edited = json.loads((world.folder / "sweep.plan").read_text())
    edited["cost"]["epsilon_rdp"] /= 2
    (world.folder / "edited.plan").write_text(json.dumps(edited, sort_keys=True))
    world.privft("train", world.folder / "edited.plan", code=14)
    shown = world.privft("train", world.folder / "sweep.plan", "--dry-run").err
    assert f"would train {STEPS} steps, {MOST} times over" in shown
    several = ("--launcher", "torchrun", "--", "--nproc-per-node", "2")
    alone = world.privft("train", world.folder / "sweep.plan", *several, code=2)
    assert "trained by one process" in alone.err


@pytest.fixture(scope="module")
def released(by_count: Callable[[int], Trained]) -> Trained:
    """Audited and released, to `out`."""
    done = by_count(2)
    done.world.privft("audit", done.run)
    done.world.privft("release", done.run, "--to", done.world.folder / "out")
    return done


def predicate(done: Trained) -> dict[str, Any]:
    stated: dict[str, Any] = json.loads((folder_of(done) / "report.json").read_text())
    return stated


def test_a_release_verifies_and_says_what_random_stopping_is(released: Trained) -> None:
    world, out = released.world, released.world.folder / "out"
    verified = " ".join(world.privft("verify", out).out.split())
    assert "alone, of random stopping" in verified
    assert "verified: everything that can be checked without the data holds" in verified
    facts = predicate(released)["predicate"]
    event = event_from_dict(facts["events"][0])
    claim = facts["guarantee"]
    assert claim["epsilon"] == cost([event], claim["delta"]).epsilon_rdp
    assert (claim["cost"]["epsilon_pld"], claim["substitute"]) == (None, None)
    assert claim["odds_percent"] == pytest.approx(100 * tradeoff([event]).max_accuracy)
    assert len(facts["selection"]["candidates"]) == 4
    assert facts["selection"]["chosen"] in facts["selection"]["candidates"]
    page = (out / "report.html").read_text()
    for words in ("4 trainings were run from the start", "K stays hidden", "Kept was:"):
        assert words in page
    assert "geometric, mean 1.5 before it is cut" in (out / "README.md").read_text()
    drafted = world.privft("report", "export", released.run, "--as", "registry").out
    assert "Renyi accounting of the selection" in drafted
    for form in ("dpia", "annex-iv", "model-risk"):
        world.privft("report", "export", released.run, "--as", form)
    world.privft("report", "index")


def test_the_audit_holds_the_selections_own_curve(released: Trained) -> None:
    tests = predicate(released)["predicate"]["audit"]["tests"]
    assert {test["method"] for test in tests} == {
        "one-run (epsilon, delta)",
        "one-run f-DP",
    }
    assert predicate(released)["predicate"]["audit"]["verdict"] == "passed"


def test_the_candidate_that_is_named_is_the_one_that_left(released: Trained) -> None:
    settings = json.loads((released.world.folder / "out" / "adapter_config.json").read_text())
    chosen = predicate(released)["predicate"]["selection"]["chosen"]
    assert f"lora.lora_alpha {settings['lora_alpha']}" in chosen


@pytest.mark.parametrize(
    "edit",
    [
        lambda facts: facts["guarantee"].update(epsilon=0.2),
        lambda facts: facts["guarantee"]["cost"].update(epsilon_rdp=0.2),
        lambda facts: facts["guarantee"]["cost"].update(epsilon_pld=0.2),
        lambda facts: facts["guarantee"].update(odds_percent=50.5),
        lambda facts: facts["events"][0].update(mean=3.0),
        lambda facts: facts["events"][0].update(most=5),
        lambda facts: facts["events"][0]["events"][1].update(noise_multiplier=30.0),
    ],
    ids=["epsilon", "by RDP", "by PLD", "odds", "mean", "most", "score"],
)
def test_an_edited_number_is_found(released: Trained, edit: Callable[[Any], None]) -> None:
    plain = predicate(released)
    assert "random stopping" in epsilon_agrees(plain)
    edit(plain["predicate"])
    with pytest.raises(IntegrityError):
        epsilon_agrees(plain)


def test_public_tools_come_to_the_same_epsilon(released: Trained, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(released.world.folder / "out", tmp_path / "release")
    trust = released.world.privft("ledger", "trust").out
    (tmp_path / "trust.json").write_text(trust)
    assert follow(tmp_path) == [0, 0, 0, 0]
