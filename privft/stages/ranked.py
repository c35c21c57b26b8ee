"""One run on several ranks: what rank 0 hands over, and what the others do with it.

Rank 0 is the run.  It alone checks, reserves, journals, saves, settles: all of `stages.running`, as
a single process does.  The others `follow`: they lend their hands to the steps, and write nothing.

Keys never travel.  Every rank opens the vault itself, with a recipient's key of its own host, and
reads units from its own host's copy.  When the run is reserved and its secrets are sealed, rank 0
tells the others

    run, plan   in the clear: both are public
    brief       the run secret and the canaries that take part, as token ids (JSON)
    state       the newest checkpoint, when the run is gone on with, or nothing

and the last two are sealed as a run's files are (`sealedrun`), under keys that only a recipient of
the vault can derive.  So whoever reads the wire learns nothing from this, and a host that cannot
open the vault has no part in the run.

A follower believes what it can check: the ledger must have reserved the run for this very plan, it
must be the plan that its own operator named, and vault and model on its host must be the planned
ones.  The rest shows at the first step, where all ranks compare digests of their state, to which
plan, data, performance and platform belong.

The number of ranks belongs to it too, because float64 sums depend on their order: a run that is
gone on with on another number is closed and charged whole, as on another platform (DESIGN.md,
invariant 3).  Where the bits do not depend on it (`ranks.alike_on_any_number`), it does not.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from privft.budget.ledger import Ledger
from privft.errors import IntegrityError, PlanError
from privft.plan import Plan, parse_plan
from privft.randomness import KeyedStreams
from privft.stages.data import open_vault
from privft.stages.modelling import VaultUnits, Workbench, check_base, choose_device, find_base
from privft.stages.sealedrun import SealedRun, config_folder_of
from privft.training.checkpoint import platform_facts
from privft.training.examples import Example, UnitExamples
from privft.training.loop import train
from privft.training.ranks import Ranks, alike_on_any_number
from privft.training.sharding import shard_base
from privft.vault.keys import KeyOpener
from privft.workspace import Workspace


def step_context(plan: Plan, workbench: Workbench, ranks: Ranks) -> dict[str, Any]:
    """What must be equal for a step to be the same step, on every rank and in every replay."""
    device = choose_device(plan.the_config().performance.device)
    alike = alike_on_any_number(plan.the_mechanism(), device)
    return {
        "plan": plan.digest,
        "manifest": plan.manifest_root,
        "performance": dataclasses.asdict(workbench.performance()),
        "platform": platform_facts(),
        "ranks": None if alike else ranks.size,
    }


def hand_over(
    ranks: Ranks,
    sealed: SealedRun,
    plan: Plan,
    *,
    secret: bytes,
    canaries: Sequence[UnitExamples],
    state: bytes | None,
) -> None:
    """Rank 0: note on how many ranks the run is trained, and give the others what they need."""
    if ranks.size == 1:
        return
    trained_on = {"ranks": ranks.size, "hosts": ranks.hosts}
    known = trained_on_ranks(sealed)
    if trained_on not in known:
        sealed.seal("ranks", json.dumps([*known, trained_on]).encode())
    brief = {"secret": secret.hex(), "canaries": [_to_json(unit) for unit in canaries]}
    ranks.tell(
        [
            sealed.run.encode(),
            plan.to_bytes(),
            sealed.sealed("brief", json.dumps(brief).encode()),
            b"" if state is None else sealed.sealed("state", state),
        ]
    )


def trained_on_ranks(sealed: SealedRun) -> list[dict[str, int]]:
    """Every number of ranks and hosts that the run was trained on; empty for one process."""
    known: list[dict[str, int]] = []
    if sealed.has("ranks"):
        known = json.loads(sealed.unseal("ranks"))
    return known


def follow(
    workspace: Workspace,
    ledger: Ledger,
    plan: Plan,
    *,
    opener: KeyOpener,
    config_folder: Path | None,
    ranks: Ranks,
) -> None:
    """Take part in a run as a rank other than 0, until its last step; writes nothing.

    plan: the one that this host's operator named.  config_folder: None for the run's own.
    Errors: `PlanError` when rank 0 runs another one, `IntegrityError` when the ledger did not
    reserve it, or when this rank's state differs.
    """
    run_bytes, plan_bytes, brief_bytes, state_bytes = ranks.hear(4)
    run, theirs = run_bytes.decode(), parse_plan(plan_bytes)
    if theirs.digest != plan.digest:
        raise PlanError(
            f"rank 0 runs plan {theirs.digest[:16]}, and rank {ranks.rank} was given "
            f"{plan.digest[:16]}",
            hint="give the same plan to every host",
        )
    (reserved,) = ledger.entries(kind="run-reserved", run=run)
    if reserved.body["plan_sha256"] != plan.digest:
        raise IntegrityError(f"the ledger did not reserve run {run} for plan {plan.digest[:16]}")
    folder = config_folder or config_folder_of(workspace.run_path(run))
    base = find_base(plan.the_config(), relative_to=folder)
    check_base(base, plan.model)
    with open_vault(workspace, ledger, plan.dataset, opener) as vault:
        if vault.manifest_root != plan.manifest_root:
            raise PlanError(f"rank {ranks.rank} has other data than the plan was made for")
        sealed = SealedRun(run=run, folder=workspace.run_path(run), vault=vault)
        brief = json.loads(sealed.opened("brief", brief_bytes))
        workbench = Workbench.of(plan.the_config(), base)
        model = workbench.fresh()
        if workbench.config.ranks.shard_base:
            shard_base(model, ranks)
        train(
            model,
            units=VaultUnits(vault, workbench),
            canaries=[_from_json(unit) for unit in brief["canaries"]],
            mechanism=plan.the_mechanism(),
            max_records_per_unit=plan.max_records_per_unit,
            optimisation=workbench.optimisation(),
            performance=workbench.performance(),
            streams=KeyedStreams(bytes.fromhex(brief["secret"])),
            context=step_context(plan, workbench, ranks),
            journal=lambda step, digest: None,
            save=lambda state: None,
            resume=sealed.opened("state", state_bytes) if state_bytes else None,
            ranks=ranks,
        )


def _to_json(unit: UnitExamples) -> list[Any]:
    return [unit.key, [[example.input_ids, example.labels] for example in unit.examples]]


def _from_json(value: list[Any]) -> UnitExamples:
    key, examples = value
    return UnitExamples(
        key=key,
        examples=tuple(
            Example(input_ids=tuple(input_ids), labels=tuple(labels))
            for input_ids, labels in examples
        ),
    )
