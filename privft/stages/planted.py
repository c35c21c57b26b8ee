"""The canaries of a run: made from a sealed secret at training, and again at the audit.

**In a randomly stopped sweep all repetitions share them, coins and all.**  A canary is one more
unit, and the mechanism that is charged and audited is the whole selection: data in, the best model
out.  A unit is in the data or it is not, so a canary whose coin says "in" takes part in every
repetition, like a patient would.  Then each coin is fair and independent of the others given the
mechanism's answer under it, which is what the one-run bounds ask of a mechanism, and they hold for
the selection as they stand.  Coins of each repetition's own would be chosen together with the
model: the score could prefer a repetition for which canaries were in it, and what is then guessed
are no fair coins any more.
"""

from __future__ import annotations

import json
from pathlib import Path

from privft.audit.canaries import Canary, make_canaries, sample_texts
from privft.audit.suite import Suite, load_suite
from privft.errors import IntegrityError
from privft.plan import Plan
from privft.randomness import KeyedStreams
from privft.signing import sha256_hex
from privft.stages.modelling import Workbench, labelled_texts, shape_of
from privft.stages.sealedrun import SealedRun, config_folder_of
from privft.vault.store import Vault


def canaries_of(plan: Plan, sealed: SealedRun, workbench: Workbench) -> list[Canary]:
    """The run's canaries with their coins, made from their sealed secret.

    Their digest is sealed the first time; later the same ones must come out again, so that an
    audit by another version of the software cannot quietly look for canaries that never were.
    """
    suite, _ = load_suite(plan.suite)
    streams = KeyedStreams(sealed.unseal("canaries"))
    canaries = drafted(
        plan, suite, streams, workbench, sealed.vault, config_folder_of(sealed.folder)
    )
    rows = [[canary.kind, canary.unit, canary.included] for canary in canaries]
    digest = sha256_hex(json.dumps(rows, sort_keys=True).encode()).encode()
    if not sealed.has("canaries-digest"):
        sealed.seal("canaries-digest", digest)
    elif sealed.unseal("canaries-digest") != digest:
        raise IntegrityError(
            f"the canaries of run {sealed.run} do not come out as they were trained",
            hint="use the version of privft that trained the run, and the same evaluation file",
        )
    return canaries


def drafted(
    plan: Plan,
    suite: Suite,
    streams: KeyedStreams,
    workbench: Workbench,
    vault: Vault,
    config_folder: Path,
) -> list[Canary]:
    """The canaries that these streams make for a plan, coins and all."""
    config = workbench.config
    specs = suite.specs(config.task)
    wrong = max((spec.count for spec in specs if spec.kind == "mislabelled"), default=0)
    labelled = labelled_texts(config, vault.fields, relative_to=config_folder, count=wrong)
    return make_canaries(
        suite,
        streams,
        task=config.task,
        shape=shape_of(vault),
        vocabulary=workbench.vocabulary(),
        records_per_unit=plan.max_records_per_unit,
        examples=labelled or _examples(suite, streams, workbench),
    )


def _examples(
    suite: Suite, streams: KeyedStreams, workbench: Workbench
) -> list[tuple[str, str | None]]:
    """Texts drawn from the base model, for suites with canaries that need them."""
    needed = [s.count for s in suite.specs(workbench.config.task) if s.kind == "synthetic"]
    if not needed:
        return []
    model = workbench.base_module()
    texts = sample_texts(model, workbench.tokenizer, streams, count=max(needed))
    return [(text, None) for text in texts]
