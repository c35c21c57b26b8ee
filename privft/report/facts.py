"""The facts of one run, typed: the predicate of the signed statement.

This is the vocabulary of the report.  The gate fills it, `report.statement` wraps and checks it,
every page is rendered from it.  It is strict on purpose: an unknown field, a missing field, a
number given as text, a NaN, or a digest of the wrong length is an error, because a fact that
nobody expected is a fact that nobody shows.

What may stand here is decided by DESIGN.md, invariant 8: no number of units, no exact loss on
private text, no gradient norm, no batch size that was drawn.  `declared_units` is the number that
the policy or the config declares; audit counts are of canaries; utility comes from public or
generated text, or is released with noise and its own charge.

Units: epsilon in nats; probabilities and rates in 0..1; `odds_percent` in 50..100; times in ISO
8601, UTC; digests in lower-case hexadecimal SHA-256.  Two facts are stated once and not twice: the
cross-checks at the end of `Facts` refuse a predicate that contradicts itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, model_validator

from privft.budget.mechanism import Event, Mechanism
from privft.budget.priced import stated_epsilon
from privft.budget.selection import AnyEvent, event_from_dict
from privft.evaluating import SelectionConfig
from privft.report.events import (
    EventFacts,
    PlainEventFacts,
    SelectionFacts,
    StoppedEvent,
)
from privft.report.findings import (
    Attestation,
    AuditFacts,
    ReferenceValues,
    SelfCheck,
    Utility,
    Waiver,
)
from privft.report.values import (
    Amount,
    Count,
    Line,
    Positive,
    Rate,
    Sha256,
    Strict,
    Time,
    Words,
)
from privft.signing import canonical_json


class RunFacts(Strict):
    """Which run this is; `run_key` is the Ed25519 key that signs the statement, in hexadecimal."""

    id: Line
    dataset: Line
    lineage: Line
    actor: Line
    task: Literal["causal-lm", "sequence-classification"]
    run_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    reserved_time: Time
    settled_time: Time


class CostFacts(Strict):
    """What one list of events costs, by the accountants that know it (`priced.Cost`)."""

    epsilon_pld: Amount | None
    epsilon_rdp: Amount | None
    note: Words | None
    delta: Positive
    adjacency: Literal["add-remove", "substitute"]
    best_order: float | None
    order_at_edge: bool


class Guarantee(Strict):
    """The claim.  `tpr_at_fpr` is the trade-off curve: no attack has a higher true positive rate
    at that false positive rate.  `odds_percent`: the best that any attacker can do at guessing
    whether one unit took part, when both answers are equally likely beforehand."""

    unit: Literal["record", "subject"]
    adjacency: Literal["add-remove"]
    epsilon: Amount
    delta: Positive
    cost: CostFacts
    substitute: CostFacts | None
    odds_percent: Annotated[float, Field(ge=50, le=100)]
    tpr_at_fpr: Annotated[list[tuple[Rate, Rate]], Field(min_length=2, max_length=400)]
    mu: Amount | None


class MechanismFacts(Strict):
    """`budget.mechanism.Mechanism`, field by field."""

    unit: Literal["record", "subject"]
    adjacency: Literal["add-remove"]
    sampler: Literal["poisson"]
    sampling_probability: Annotated[float, Field(gt=0, le=1)]
    noise_multiplier: Positive
    clip_norm: Positive
    steps: Annotated[int, Field(ge=1)]
    expected_batch_size: Positive
    normaliser: Literal["expected-batch-size"]
    noise: Literal["gaussian", "discrete-gaussian"]
    clipping: Literal["flat", "automatic", "per-layer", "adaptive"]
    count_noise: Positive | None


class Noise(Strict):
    """Where the noise comes from and what its floating-point form does not prove.

    secure: whether it is drawn so that the low bits of a result give nothing away.
    """

    generator: Line
    precision: Line
    secure: bool
    caveat: Words | None


class Data(Strict):
    """What is known in public about the data: a keyed fingerprint and declared numbers."""

    dataset: Line
    lineage: Line
    unit: Literal["record", "subject"]
    manifest_root: Line
    declared_units: Annotated[int, Field(ge=1)]
    max_records_per_unit: Annotated[int, Field(ge=1)] | None


class Head(Strict):
    """A trained classification head that plain torch can apply.

    The last hidden states are pooled (`mean` over real tokens, `first`, or `last` token), then, if
    `feature_scale` is a number, brought to length one and multiplied by it; logits = features @
    weight.T + bias, in the order of `labels`.  weight, bias: names of tensors in `file`.
    """

    file: Line
    weight: Line
    bias: Line
    pooling: Literal["mean", "first", "last"]
    feature_scale: Positive | None
    max_length: Annotated[int, Field(ge=1)]
    labels: Annotated[list[Line], Field(min_length=2)]


class Model(Strict):
    """Base model and what was trained on top of it; `adapter_files` are the released weights."""

    name: Line
    source: Line | None = None
    licence: Line | None = None
    weights_sha256: Sha256
    tokenizer_sha256: Sha256
    trained_parameters: Annotated[int, Field(ge=1)]
    adapter_files: Annotated[dict[str, Sha256], Field(min_length=1)]
    adapter_moved: bool
    head: Head | None = None


class Config(Strict):
    """The whole run configuration, as it was planned; `sha256` over its canonical JSON."""

    sha256: Sha256
    body: dict[str, JsonValue]


class PolicyCheck(Strict):
    """One rule of the policy, the limit that it sets and what this run came to."""

    rule: Line
    limit: JsonValue
    got: JsonValue
    ok: bool


class PolicyFacts(Strict):
    """The policy in force; `sha256` over its canonical JSON."""

    name: Line
    sha256: Sha256
    body: dict[str, JsonValue]
    checks: Annotated[list[PolicyCheck], Field(min_length=1)]


class PlanFacts(Strict):
    """The plan that was priced, approved and run."""

    sha256: Sha256
    created: Time


class Approval(Strict):
    """One person's Ed25519 signature, in hexadecimal, over `plan.approval_message`."""

    name: Line
    keyid: Sha256
    time: Time
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


class Signatory(Strict):
    """Somebody whose countersignature the page can put a name to: an approver at the audit."""

    name: Line
    keyid: Sha256


class BudgetFacts(Strict):
    """Where the data set's budget stands, as the filter counts it."""

    epsilon_spent: Amount
    epsilon_left: Amount


class CapFacts(Strict):
    """The cumulative guarantee: all runs together never exceed it."""

    epsilon: Positive
    delta: Positive
    orders: Annotated[list[float], Field(min_length=1)]


class PastRun(Strict):
    """A line of the burn-down: what the run alone costs, and what the filter counts after it."""

    run: Line
    epsilon: Amount
    cumulative: Amount


class Recovery(Strict):
    """The ledger was restored from a backup.  `kept` entries are there; of a branch with at least
    `seen` entries, everything after the backup is lost.  `exhausted`: this budget counts as used
    up since then, for what was lost may have used it.  signers: who took it on themselves."""

    time: Time
    kept: Count
    seen: Count
    exhausted: bool
    reason: Words
    signers: Annotated[list[Sha256], Field(min_length=2)]


class LedgerFacts(Strict):
    """The budget before and after this run.  `spent_events`: all that was charged to the same
    data before this run, so that admission can be recomputed."""

    log_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    checkpoint_before: Words
    before: BudgetFacts
    after: BudgetFacts
    cap: CapFacts
    spent_events: list[EventFacts]
    more_runs_like_this: Count
    history: Annotated[list[PastRun], Field(min_length=1)]
    recoveries: list[Recovery]

    @property
    def exhausted(self) -> bool:
        """Whether a recovery of the ledger used the whole budget up, so that nothing is left."""
        return any(lost.exhausted for lost in self.recoveries)


class Facts(Strict):
    """The predicate, whole."""

    renderer: Line
    synthetic: bool
    run: RunFacts
    versions: Annotated[dict[str, str], Field(min_length=1)]
    platform: dict[str, str]
    guarantee: Guarantee
    mechanism: MechanismFacts
    events: Annotated[list[EventFacts], Field(min_length=1)]
    selection: SelectionFacts | None
    noise: Noise
    data: Data
    model: Model
    config: Config
    policy: PolicyFacts
    plan: PlanFacts
    approvals: list[Approval]
    may_countersign: list[Signatory]
    ledger: LedgerFacts
    selfcheck: Annotated[list[SelfCheck], Field(min_length=1)]
    reference_values: ReferenceValues
    audit: AuditFacts
    utility: list[Utility]
    waivers: list[Waiver]
    attestations: list[Attestation] = Field(default_factory=list)
    limits: list[Words]

    @model_validator(mode="after")
    def _does_not_contradict_itself(self) -> Facts:
        mechanism = Mechanism.from_dict(self.mechanism.model_dump())
        own, trained = mechanism.event().to_dict(), self._training_events()
        same: list[tuple[str, Any, Any]] = [
            ("unit", self.guarantee.unit, self.mechanism.unit),
            ("unit", self.data.unit, self.mechanism.unit),
            ("dataset", self.data.dataset, self.run.dataset),
            ("lineage", self.data.lineage, self.run.lineage),
            ("epsilon", self.guarantee.epsilon, stated_epsilon(self.guarantee.cost.model_dump())),
            ("delta", self.guarantee.delta, self.guarantee.cost.delta),
            ("adjacency", self.guarantee.cost.adjacency, "add-remove"),
            ("training event", trained[0].model_dump(), own),
            ("noised score", [event.model_dump() for event in trained[1:]], self._score(trained)),
            ("selection", *self._selections(mechanism)),
            ("PLD", self.guarantee.cost.epsilon_pld is None, self.selection is not None),
            ("last run of the history", self.ledger.history[-1].run, self.run.id),
        ]
        for what, left, right in same:
            if left != right:
                raise ValueError(f"the facts contradict themselves on {what}: {left} and {right}")
        if self.guarantee.delta * self.data.declared_units >= 1:
            raise ValueError(
                f"expected delta < 1/{self.data.declared_units}, got {self.guarantee.delta}"
            )
        return self

    @property
    def asked(self) -> SelectionConfig | None:
        """The randomly stopped sweep that the config asks for, if it does."""
        body = self.config.body.get("selection")
        return None if body is None else SelectionConfig.model_validate_json(canonical_json(body))

    def _selections(self, mechanism: Mechanism) -> tuple[Any, Any]:
        """What was charged and told of a selection, and what follows from the config."""
        asked, told = self.asked, self.selection
        charged = [each.model_dump() for each in self.events if isinstance(each, StoppedEvent)]
        if asked is None:
            return (charged, told), ([], None)
        follows = SelectionFacts(
            candidates=asked.labels(),
            chosen=told.chosen if told is not None else "",
            score="public" if asked.held_out is None else "held-out",
        )
        if follows.chosen not in follows.candidates:
            raise ValueError("expected what was chosen to be among the candidates")
        return (charged, told), ([asked.event(mechanism.event()).to_dict()], follows)

    def _training_events(self) -> Sequence[PlainEventFacts]:
        """What one training is charged as: the whole run, or one repetition of a selection."""
        first = self.events[0]
        if isinstance(first, StoppedEvent):
            if len(self.events) > 1:
                raise ValueError("expected one event of a randomly stopped sweep")
            return first.events
        return [event for event in self.events if not isinstance(event, StoppedEvent)]

    def _score(self, trained: Sequence[PlainEventFacts]) -> list[dict[str, Any]]:
        """The event that noised figures were charged as: two figures a measure, all alike; in a
        selection the score of a repetition, which is not let out."""
        if self.selection is not None:
            if any(entry.paid is not None for entry in self.utility):
                raise ValueError("expected a selection to let out no noised figure")
            return [event.model_dump() for event in trained[1:]]  # `_selections` holds it
        paid = [entry.paid.noise_multiplier for entry in self.utility if entry.paid is not None]
        if len(set(paid)) > 1:
            raise ValueError("expected noised figures of one noise multiplier")
        return [Event(noise_multiplier=paid[0], count=2 * len(paid)).to_dict()] if paid else []

    def accounting_events(self) -> tuple[AnyEvent, ...]:
        """What this run charged, as the accountants take it."""
        return tuple(event_from_dict(event.model_dump()) for event in self.events)

    def earlier_events(self) -> tuple[AnyEvent, ...]:
        """What was charged to the same data before this run."""
        return tuple(event_from_dict(event.model_dump()) for event in self.ledger.spent_events)
