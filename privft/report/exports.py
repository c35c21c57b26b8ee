"""Drafts for other people's forms, filled in from the one signed statement.

    registry    an entry for the OpenDP Differential Privacy Deployments Registry (YAML)
    dpia        an annex to a data protection impact assessment (GDPR, article 35)
    annex-iv    technical documentation in the order of Annex IV of Regulation (EU) 2024/1689
    model-risk  a record for a bank's model inventory (after SR 11-7)

Each is a dated pack: `as_of` says which version of the outside form it follows, and the text says
so too, because forms change and a statement does not.  Every export is a draft for a person to
finish.  It marks with `[TO DO]` what only the operator can know, and never claims compliance: what
is met, and by whom, is for people with the authority to say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from privft.errors import UsageError
from privft.report import registry
from privft.report.card import environment
from privft.report.facts import Facts, LedgerFacts
from privft.report.hazards import hazards
from privft.report.page import verdict
from privft.report.registry import TODO as TODO
from privft.report.statement import digest, validate
from privft.report.stopped import selected
from privft.report.wording import bets, odds_of, round_up, unit_words


@dataclass(frozen=True, kw_only=True)
class Pack:
    """One outside form: its name for people, the version followed, and the file's name."""

    title: str
    as_of: str
    file: str
    template: str | None


PACKS: dict[str, Pack] = {
    "registry": Pack(
        title="OpenDP Differential Privacy Deployments Registry",
        as_of=f"schema of opendp/deployments-registry-data at {registry.SCHEMA_COMMIT[:12]}",
        file="registry.yaml",
        template=None,
    ),
    "dpia": Pack(
        title="Annex to a data protection impact assessment",
        as_of="GDPR article 35(7), as in force 2026-01",
        file="dpia-annex.md",
        template="export-dpia.md",
    ),
    "annex-iv": Pack(
        title="Technical documentation in the order of Annex IV",
        as_of="Regulation (EU) 2024/1689, text of 2024-07-12",
        file="annex-iv.md",
        template="export-annex-iv.md",
    ),
    "model-risk": Pack(
        title="Model risk record",
        as_of="SR 11-7 / OCC 2011-12, text of 2011-04-04",
        file="model-risk.md",
        template="export-model-risk.md",
    ),
}


def export(statement: Mapping[str, Any], name: str) -> str:
    """The draft of that name; raises `UsageError` for an unknown one."""
    if name not in PACKS:
        raise UsageError(f"there is no export {name!r}", hint=f"one of {', '.join(PACKS)}")
    pack, facts = PACKS[name], validate(statement).predicate
    if pack.template is None:
        return _registry(facts, pack, digest(statement))
    return (
        environment()
        .get_template(pack.template)
        .render(
            facts=facts,
            pack=pack,
            todo=TODO,
            words=unit_words(facts.guarantee.unit),
            bets=bets(facts.guarantee.odds_percent),
            cap_odds=round_up(odds_of(facts.ledger.cap.epsilon, facts.ledger.cap.delta)),
            verdict=verdict(facts),
            hazards=hazards(facts),
            more_runs=_more_runs(facts.ledger),
            statement_sha256=digest(statement),
            stopped=selected(facts),
        )
    )


def _more_runs(ledger: LedgerFacts) -> int:
    """How many more runs like this one fit; none where a recovery used the budget up."""
    return 0 if ledger.exhausted else ledger.more_runs_like_this


def _registry(facts: Facts, pack: Pack, sha256: str) -> str:
    """The registry's YAML; fields that only people know are left as `[TO DO]`."""
    claim, mechanism, words = facts.guarantee, facts.mechanism, unit_words(facts.guarantee.unit)
    cap = facts.ledger.cap
    entry = registry.Entry(
        url_slug=TODO,
        deployment=registry.Deployment(
            basic=registry.Basic(
                name=f"{facts.model.name} trained on {facts.data.dataset}",
                data_curators=[
                    registry.Curator(data_curator_name=TODO, data_curator_type="Industry")
                ],
                description="LoRA adapter trained with DP-SGD"
                + ("; made-up training data" if facts.synthetic else ""),
                intended_use=TODO,
                data_product_type="Machine learning model",
                data_product_region=TODO,
                publication_date=facts.run.settled_time[:10],
            ),
            dp_variant=registry.Variant(
                variant_name="Approximate DP",
                data_domain=f"data sets of units ({words['one']}) of declared size "
                f"{facts.data.declared_units}",
                unprotected_quantities="sampling probability, declared number of units, "
                "configuration; nothing is inferred from the records",
            ),
            privacy_loss=registry.PrivacyLoss(
                privacy_unit=f"{claim.unit}-level",
                privacy_unit_details=f"Adding or removing {words['one']}.",
                number_of_privacy_units=facts.data.declared_units,
                privacy_parameters=registry.Parameters(epsilon=claim.epsilon, delta=claim.delta),
                privacy_parameters_details="All runs on the same data together: epsilon at "
                f"most {cap.epsilon:g} at delta {cap.delta:g}.",
            ),
            deployment_model=registry.DeploymentModel(
                model_name="Central",
                trust_assumptions="That the run happened as stated rests on the enclave that ran "
                f"it and on the keys that signed. {TODO}",
                actors=TODO,
                release_type="One release",
                release_type_details=f"{len(facts.ledger.history)} runs on the same data so far; "
                f"by the budget {_more_runs(facts.ledger)} more like this one would fit.",
                data_source_type="Static",
                access_type="Non-interactive",
            ),
            implementation=registry.Implementation(
                preprocessing_and_hyperparameter_tuning="Every run is charged to the ledger "
                f"before its first step; {len(facts.ledger.history)} so far. {TODO}",
                mechanisms=f"DP-SGD: Poisson sampling at {mechanism.sampling_probability:g}, "
                f"clip norm {mechanism.clip_norm:g}, noise multiplier "
                f"{mechanism.noise_multiplier:g}, {mechanism.steps} steps"
                + (" a repetition. " if facts.selection else ". ")
                + f"Noise: {facts.noise.generator}; {facts.noise.caveat or facts.noise.precision}",
                composition=_composition(facts),
                post_processing="None that touches the data again.",
                justification=f"Policy {facts.policy.name}. {TODO}",
                utility=_usefulness(facts),
                additional_information=f"Signed statement, SHA-256 {sha256}",
            ),
            administrative=registry.Administrative(status="Draft", registry_authors=[TODO], tier=3),
        ),
    )
    head = f"# DRAFT for a person to finish. {pack.title}; {pack.as_of}.\n"
    return head + registry.render(entry)


def _composition(facts: Facts) -> str:
    if facts.selection is None:
        return "PLD accounting of the run; a Renyi filter over all runs."
    return (
        f"Private selection by random stopping, {selected(facts)}; Renyi accounting of the "
        "selection as one event, which no PLD accountant knows; a Renyi filter over all runs."
    )


def _usefulness(facts: Facts) -> str:
    rows = [
        f"{u.metric}{f', {u.group}' if u.group else ''} "
        f"({'held-out units, noised' if u.paid else f'{u.source} text'}): {u.base:.3f} before, "
        f"{u.trained:.3f} after"
        for u in facts.utility
    ]
    return "; ".join(rows) or "Nothing was measured that may leave the enclave."
