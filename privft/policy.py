"""Policy: what an organisation allows, and whether a plan stays within it.

A policy is a YAML file in which every rule is a value with the reason for it and where that comes
from, because people who did not write it must decide by it:

    version: 1
    name: hospital
    purpose: patients' notes inside a hospital's enclave
    max_epsilon_per_run: {value: 3.0, why: one model must ..., source: arXiv 2303.00654}
    total_epsilon:       {value: 6.0, why: ..., source: ...}   # and so on

Every rule must be there: a policy with gaps, or an empty one, is no policy.  Shipped ones are named
(`default`, `hospital`, `bank`, `research`); others are files.

An **overlay** starts from another policy and may only tighten it, so an organisation can stand on
`hospital` and a team on the organisation:

    version: 1
    name: ward-7
    extends: hospital              # or a file beside this one
    purpose: notes of one ward
    max_epsilon_per_run: {value: 2.0, why: ..., source: ward committee, 2026-03-02}

What counts as tighter stands in `_TIGHTER`, one line a rule; others may not be overlaid at all.

`check` compares the public facts of a plan with every rule and answers for each, kept or broken,
with what to do; `enforce` turns the broken ones into a refusal.  Two questions are not asked here:
whether the budget has room is the filter's (budget.filter), under the `Cap` that the policy gave
the data set when it was created, with which two rules compare the policy of today; and who
countersigned the report is known only after the audit (report.countersigned).
"""

from __future__ import annotations

import difflib
import hashlib
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

from pydantic import Field, create_model

from privft.budget.filter import Cap
from privft.budget.mechanism import auto_delta
from privft.errors import ConfigError, PolicyRefused
from privft.signing import canonical_json
from privft.strictyaml import Document, Strict, read_path, validate

SUITES = ("quick", "standard", "strict")
"""Audit suites, the weakest first."""
_MAX_OVERLAYS = 4

Unit = Literal["record", "subject"]
RecipientKind = Literal["passphrase", "x25519", "service"]
Output = Literal["adapter", "report", "canary-scores", "public-evaluation", "noised-evaluation"]
ValueT = TypeVar("ValueT")
_Positive = Annotated[float, Field(gt=0)]
_Order = Annotated[int, Field(ge=2)]
_Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,40}$")]


def let_out(*, noised: bool) -> tuple[str, ...]:
    """What a run lets out, with a score on held-out units (noised and charged) or without."""
    return get_args(Output) if noised else get_args(Output)[:-1]


class Age(Strict):
    """How many ledger entries, or days, may lie behind."""

    entries: Annotated[int, Field(ge=1)]
    days: _Positive


class Rule(Strict, Generic[ValueT], use_attribute_docstrings=False):  # 10 ms a kind of value
    """A value, why it is what it is, and where that comes from."""

    value: ValueT
    why: Annotated[str, Field(min_length=20, max_length=600)]
    source: Annotated[str, Field(min_length=4, max_length=300)]


class Policy(Strict):
    """All rules of one policy; the module's docstring shows the file."""

    version: Literal[1]
    name: _Name
    based_on: tuple[str, ...] = ()
    """The policies that this one overlays, the first of them shipped or self-contained."""
    purpose: Annotated[str, Field(min_length=10, max_length=300)]
    units: Rule[Annotated[tuple[Unit, ...], Field(min_length=1)]]
    """Whose data one guarantee may be about."""
    max_epsilon_per_run: Rule[_Positive]
    total_epsilon: Rule[_Positive]
    """The cap of a data set over all runs, for ever."""
    total_delta: Rule[Annotated[float, Field(gt=0, lt=1)]]
    """The most that the cap's delta may be; large data sets get less (`Policy.cap`)."""
    filter_orders: Rule[Annotated[tuple[_Order, ...], Field(min_length=1)]]
    """Whole orders of the Renyi filter, fixed when the data set is created."""
    delta_factor: Rule[Annotated[float, Field(gt=0, le=1)]]
    """A run's delta must stay below this over the declared number of units."""
    min_declared_units: Rule[Annotated[int, Field(ge=2)]]
    two_accountants: Rule[bool]
    """PLD and RDP must both have priced the run (they are compared wherever both exist)."""
    required_suite: Rule[Literal["quick", "standard", "strict"]]
    """The weakest audit suite that will do."""
    approvals: Rule[Annotated[int, Field(ge=0, le=5)]]
    """How many people must sign a plan before it runs."""
    four_eyes: Rule[bool]
    """Who runs the plan does not count among them, nor among those who countersign."""
    countersignatures: Rule[Annotated[int, Field(ge=0, le=5)]]
    """How many approvers must sign the audited report too before it is released."""
    secure_noise: Rule[bool]
    """Noise must be drawn so that floating point gives nothing away."""
    recipients_allowed: Rule[Annotated[tuple[RecipientKind, ...], Field(min_length=1)]]
    """How the keys of a vault may be held."""
    may_show_private_metrics: Rule[bool]
    """The operator's terminal may show numbers computed from real records."""
    retention_days: Rule[Annotated[int, Field(ge=1)] | None]
    """How long the sealed findings of attacks on real units are kept after the audit; null: as long
    as the run."""
    witness_within: Rule[Age | None]
    """How old the newest word of a witness may be when a run starts; null asks for none."""
    public_outputs: Rule[Annotated[tuple[Output, ...], Field(min_length=1)]]
    """What may leave the enclave."""

    def cap(self, declared_units: int) -> Cap:
        """The budget of a new data set.

        Its delta is `total_delta`, or `auto_delta(declared_units)` where that is smaller, so that
        it stays below 1/declared_units however large the data set is.
        """
        return Cap(
            epsilon=self.total_epsilon.value,
            delta=min(self.total_delta.value, auto_delta(declared_units)),
            orders=tuple(float(order) for order in self.filter_orders.value),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, fit for canonical JSON and the report."""
        return self.model_dump(mode="json")

    @property
    def digest(self) -> str:
        """SHA-256 in hex over the canonical JSON of `to_dict`."""
        return hashlib.sha256(canonical_json(self.to_dict())).hexdigest()


def _subset(new: Iterable[str], old: Iterable[str]) -> bool:
    return set(new) <= set(old)


def _later_suite(new: str, old: str) -> bool:
    return new in SUITES and SUITES.index(new) >= SUITES.index(old)


def _younger(new: Age | None, old: Age | None) -> bool:
    return old is None or bool(new and new.entries <= old.entries and new.days <= old.days)


def _sooner(new: int | None, old: int | None) -> bool:
    return old is None or (new is not None and new <= old)


_TIGHTER: dict[str, Callable[[Any, Any], bool]] = {
    "units": _subset,
    "max_epsilon_per_run": operator.le,
    "total_epsilon": operator.le,
    "total_delta": operator.le,
    "delta_factor": operator.le,
    "min_declared_units": operator.ge,
    "two_accountants": operator.ge,
    "required_suite": _later_suite,
    "approvals": operator.ge,
    "four_eyes": operator.ge,
    "countersignatures": operator.ge,
    "secure_noise": operator.ge,
    "recipients_allowed": _subset,
    "may_show_private_metrics": operator.le,
    "retention_days": _sooner,
    "witness_within": _younger,
    "public_outputs": _subset,
}

_overlaid: dict[str, Any] = {
    rule: (Policy.model_fields[rule].annotation | None, None)  # type: ignore[operator]
    for rule in _TIGHTER
}
Overlay = create_model(
    "Overlay",
    __base__=Strict,
    version=(Literal[1], ...),
    name=(_Name, ...),
    extends=(str, ...),
    purpose=(Policy.model_fields["purpose"].rebuild_annotation(), ...),
    **_overlaid,
)


@dataclass(frozen=True, kw_only=True)
class PlanFacts:
    """The public facts of a plan that rules are about.

    epsilon, delta: what the run is priced at, for `unit` and `declared_units`.
    two_accountants: whether two of them price it; random stopping has one.
    suite: the audit suite that the config asks for.
    secure_noise: whether the noise is safe in floating point.
    recipients: the kinds of key holder of the vault.  outputs: what the run is to let out.
    operator, approvers: names; `approvers` is None while nobody has been asked yet (at planning),
        and then the rules about approval are not checked.
    """

    epsilon: float
    delta: float
    two_accountants: bool
    unit: str
    declared_units: int
    suite: str
    secure_noise: bool
    recipients: tuple[str, ...]
    outputs: tuple[str, ...] = let_out(noised=False)
    operator: str
    approvers: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Check:
    """One rule held against one plan.  `fix` says how to keep the rule; `why` is the policy's."""

    rule: str
    limit: Any
    got: Any
    ok: bool
    fix: str
    why: str

    def to_dict(self) -> dict[str, Any]:
        """What the report shows."""
        return {"rule": self.rule, "limit": self.limit, "got": self.got, "ok": self.ok}


_OLDER = "the data set has a larger budget than this policy gives; only a new data set has less"
_FIX = {
    "units": "privacy.unit: {limit}",
    "max_epsilon_per_run": "privacy.target_epsilon: {limit} or less, or fewer steps",
    "total_epsilon": _OLDER,
    "total_delta": _OLDER,
    "delta_factor": "privacy.delta below {limit}",
    "min_declared_units": "a data set of at least {limit} units",
    "two_accountants": "a mechanism that two accountants can price: a sweep run by run",
    "required_suite": "audit.suite: {limit}",
    "secure_noise": "privacy.secure_noise: true",
    "recipients_allowed": "privft vault recipients: keep only {limit}",
    "public_outputs": "let out no more than {limit}",
    "approvals": "privft approve, by {limit} in all",
    "four_eyes": "privft approve, by somebody who does not run the plan",
}


def check(policy: Policy, facts: PlanFacts, cap: Cap) -> list[Check]:
    """Every rule of `policy` held against a plan on a data set whose budget is `cap`."""
    units, kinds = policy.units.value, policy.recipients_allowed.value
    per_run, fewest = policy.max_epsilon_per_run.value, policy.min_declared_units.value
    both, suite = policy.two_accountants.value, policy.required_suite.value
    secure, outputs = policy.secure_noise.value, policy.public_outputs.value
    below = policy.delta_factor.value / facts.declared_units
    today = policy.cap(facts.declared_units)
    kinds_kept = bool(facts.recipients) and _subset(facts.recipients, kinds)
    rows: list[tuple[str, Any, Any, bool]] = [
        ("units", units, facts.unit, facts.unit in units),
        ("max_epsilon_per_run", per_run, facts.epsilon, 0 < facts.epsilon <= per_run),
        ("total_epsilon", today.epsilon, cap.epsilon, cap.epsilon <= today.epsilon),
        ("total_delta", today.delta, cap.delta, cap.delta <= today.delta),
        ("delta_factor", below, facts.delta, 0 < facts.delta < below),
        ("min_declared_units", fewest, facts.declared_units, facts.declared_units >= fewest),
        ("two_accountants", both, facts.two_accountants, facts.two_accountants or not both),
        ("required_suite", suite, facts.suite, _later_suite(facts.suite, suite)),
        ("secure_noise", secure, facts.secure_noise, facts.secure_noise or not secure),
        ("recipients_allowed", kinds, facts.recipients, kinds_kept),
        ("public_outputs", outputs, facts.outputs, _subset(facts.outputs, outputs)),
    ]
    if facts.approvers is not None:
        needed, four_eyes = policy.approvals.value, policy.four_eyes.value
        others = set(facts.approvers) - {facts.operator}
        count = len(others if four_eyes else set(facts.approvers))
        alone = needed > 0 and not others
        rows.append(("approvals", needed, count, count >= needed))
        rows.append(("four_eyes", four_eyes, not alone, not (four_eyes and alone)))
    return [
        Check(
            rule=rule,
            limit=_plain(limit),
            got=_plain(got),
            ok=ok,
            fix=_FIX[rule].format(limit=_words(limit)),
            why=getattr(policy, rule).why,
        )
        for rule, limit, got, ok in rows
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def enforce(policy: Policy, checks: Sequence[Check]) -> None:
    """Raise `PolicyRefused` that names every broken rule, and how to keep each.

    Guarantees: an empty list of checks is refused too, since nothing was checked.
    """
    if not checks:
        raise PolicyRefused(f"policy {policy.name!r}: nothing was checked")
    broken = [each for each in checks if not each.ok]
    if broken:
        said = "; ".join(
            f"{each.rule} {_words(each.limit)}, and the plan has {_words(each.got)}"
            for each in broken
        )
        fixes = "; ".join(dict.fromkeys(each.fix for each in broken))
        raise PolicyRefused(f"policy {policy.name!r} wants {said}", hint=fixes)


def _words(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(each) for each in value) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower()


def _shipped() -> Any:
    """The folder of shipped policies: installed as `privft.policies`, or beside the package."""
    try:
        installed = resources.files("privft.policies")
        if any(entry.name.endswith(".yaml") for entry in installed.iterdir()):
            return installed
    except ModuleNotFoundError:
        pass
    return Path(__file__).resolve().parents[1] / "policies"


def policy_names() -> tuple[str, ...]:
    """Names of the policies that come with privft, sorted."""
    names = (entry.name for entry in _shipped().iterdir())
    return tuple(sorted(name[:-5] for name in names if name.endswith(".yaml")))


def load_policy(name_or_path: str | Path) -> Policy:
    """A shipped policy by name, or one in a file, with the policies that it `extends` beneath it.

    Errors: `ConfigError` for a file that is not a whole policy, and for an overlay that loosens.
    """
    return _load(name_or_path, Path(), depth=0)


def _load(name_or_path: str | Path, folder: Path, depth: int) -> Policy:
    document, base = _document(name_or_path, folder)
    if "based_on" in document.data:
        raise ConfigError(f"{document.source}: unknown key 'based_on'", hint="use extends")
    if "extends" not in document.data:
        return validate(Policy, document)
    if depth >= _MAX_OVERLAYS:
        raise ConfigError(f"{document.source}: more than {_MAX_OVERLAYS} overlays on one policy")
    overlay: Any = validate(Overlay, document)
    return _tighten(_load(overlay.extends, base, depth + 1), overlay, document)


def _document(name_or_path: str | Path, folder: Path) -> tuple[Document, Path]:
    name = str(name_or_path)
    if name in policy_names():
        with resources.as_file(_shipped() / f"{name}.yaml") as path:
            return read_path(path), path.parent
    path = folder / name
    if path.is_file():
        return read_path(path), path.parent
    close = difflib.get_close_matches(name, policy_names(), n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"a file, or {', '.join(policy_names())}"
    raise ConfigError(f"there is no policy {name!r}", hint=hint)


def _tighten(policy: Policy, overlay: Any, document: Document) -> Policy:
    changes: dict[str, Any] = {}
    for rule, tighter in _TIGHTER.items():
        changed = getattr(overlay, rule)
        if changed is None:
            continue
        old = getattr(policy, rule).value
        if not tighter(changed.value, old):
            raise ConfigError(
                f"{document.source} line {document.lines[(rule,)]}: {rule} "
                f"{_words(changed.value)} would loosen policy {policy.name!r}, which has "
                f"{_words(old)}",
                hint="an overlay may only tighten",
            )
        changes[rule] = changed
    return policy.model_copy(
        update={
            **changes,
            "name": overlay.name,
            "purpose": overlay.purpose,
            "based_on": (*policy.based_on, policy.name),
        }
    )


def json_schema() -> dict[str, Any]:
    """The JSON schema of a whole policy, for editors."""
    schema = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": schema, **Policy.model_json_schema()}
