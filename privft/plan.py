"""A plan: what a run is going to do, priced, and bound to everything that it depends on.

A plan is one file of canonical JSON (RFC 8785).  Its SHA-256 is what people approve and what the
ledger's reservation names.  It is bound to

    data      lineage and manifest root of the vault
    policy    its whole text and digest
    config    its whole text and digest
    model     digests of weights and tokenizer
    budget    digest of the data set's budget view (spent, reserved, cap) at a checkpoint

and is stale as soon as one of them differs.  Ledger entries that leave the budget view alone do
not make it stale.  Making a plan opens no record and loads no weights.
`substitute` is null where no accountant knows that relation (a randomly stopped sweep).

    {"format": "privft-plan-v1", "created": "2026-...Z", "operator": "ada", "dataset": ...,
     "lineage": ..., "manifest_root": ..., "mechanism": {...}, "delta": 1e-5,
     "max_records_per_unit": 4, "cost": {...}, "substitute": {...}, "config": {...},
     "config_sha256": ..., "policy": {...}, "policy_sha256": ..., "model": {"name": ...,
     "weights_sha256": ..., "tokenizer_sha256": ...}, "suite": "quick", "suite_sha256": ...,
     "budget_sha256": ..., "checkpoint": "<signed note>"}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from privft.budget.mechanism import Mechanism
from privft.budget.priced import stated_epsilon
from privft.budget.selection import AnyEvent, Selection
from privft.config import RunConfig, parse_config
from privft.errors import IntegrityError, PlanError
from privft.signing import canonical_json, parse_canonical, sha256_hex

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Json = dict[str, Any]
_FORMAT: Literal["privft-plan-v1"] = "privft-plan-v1"


class _Value(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class ModelFacts(_Value):
    """The base model by name and content."""

    name: str
    weights_sha256: _Sha256
    tokenizer_sha256: _Sha256


class Plan(_Value):
    """The module's docstring shows the file."""

    format: Literal["privft-plan-v1"] = _FORMAT
    created: str
    operator: str
    dataset: str
    lineage: str
    manifest_root: _Sha256
    mechanism: _Json
    delta: Annotated[float, Field(gt=0, lt=1)]
    max_records_per_unit: Annotated[int, Field(ge=1)]
    cost: _Json
    substitute: _Json | None
    config: _Json
    config_sha256: _Sha256
    policy: _Json
    policy_sha256: _Sha256
    model: ModelFacts
    suite: str
    suite_sha256: _Sha256
    budget_sha256: _Sha256
    checkpoint: str

    def to_bytes(self) -> bytes:
        """The file's content, but for its last line break."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """What approvals sign and the ledger names."""
        return sha256_hex(self.to_bytes())

    def the_mechanism(self) -> Mechanism:
        """The mechanism, typed."""
        return Mechanism.from_dict(self.mechanism)

    @property
    def epsilon(self) -> float:
        """What the run costs at `delta`: by PLD, or by RDP where that is the only accountant."""
        return stated_epsilon(self.cost)

    def events(self) -> tuple[AnyEvent, ...]:
        """What the run is charged, as the accountants take it: training, then a noised score; or
        the one selection of a randomly stopped sweep."""
        return charged_for(self.the_config(), self.the_mechanism())

    def the_selection(self) -> Selection | None:
        """The event of a randomly stopped sweep; None for one training."""
        first = self.events()[0]
        return first if isinstance(first, Selection) else None

    def score_words(self) -> str:
        """What is let out of the units that are set aside, in words: `none` by default."""
        config = self.the_config()
        score = config.evaluation.held_out
        if config.selection is not None and config.selection.held_out is not None:
            return "none; each repetition is scored on them, noised, and the epsilon includes it"
        if score is None:
            return "none"
        return (
            f"{config.held_out_figures} figures over {score.units} declared units, losses cut at "
            f"{score.loss_bound:g}, noise multiplier {score.noise_multiplier:g} each; the epsilon "
            "includes them"
        )

    def the_config(self) -> RunConfig:
        """The config, typed; raises `PlanError` when it is not the one that the digest names."""
        config = parse_config(canonical_json(self.config).decode(), source="the plan's config")
        if config.digest != self.config_sha256:
            raise PlanError("the plan's config does not have the digest that the plan states")
        return config


def charged_for(config: RunConfig, mechanism: Mechanism) -> tuple[AnyEvent, ...]:
    """What a run of this config by this mechanism is charged."""
    if config.selection is not None:
        return (config.selection.event(mechanism.event()),)
    return (mechanism.event(), *config.score_events())


def parse_plan(data: bytes) -> Plan:
    """The plan in a file; raises `PlanError` when it is no plan, or one that was cut or edited into
    another form.  (An edit that is canonical changes the digest, and with it the approvals.)
    """
    again = "make it again: privft plan"
    body = data.removesuffix(b"\n")
    changed = PlanError(
        "this plan was changed: it is not in the form in which `privft plan` writes it",
        hint="go back to the file as it was, or " + again,
    )
    try:
        plan = Plan.model_validate(parse_canonical(body))
    except IntegrityError as error:
        if _FORMAT.encode() in body:
            raise changed from None
        raise PlanError(f"this is no plan: {error.message}", hint=again) from None
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "whole"
        raise PlanError(f"this is no plan: {place}: {first['msg']}", hint=again) from None
    if plan.to_bytes() != body:
        raise changed
    return plan


def approval_message(plan_sha256: str) -> bytes:
    """What an approver signs."""
    return f"privft-plan-approval-v1\n{plan_sha256}\n".encode()


def stale_reasons(
    plan: Plan, *, manifest_root: str, policy_sha256: str, budget_sha256: str, suite_sha256: str
) -> list[str]:
    """What has changed since the plan was made, in words; empty when it is fresh."""
    pairs = [
        ("the data (records came, went, or were re-keyed)", plan.manifest_root, manifest_root),
        ("the policy", plan.policy_sha256, policy_sha256),
        ("the budget (another run was reserved or settled)", plan.budget_sha256, budget_sha256),
        ("the audit suite", plan.suite_sha256, suite_sha256),
    ]
    return [what for what, planned, now in pairs if planned != now]
