"""What an audit attacks, how hard, and what fails the run: suites, typed and strict.

A suite is a YAML file in `audits/`.  All of it is fixed before the run: which kinds of canary,
how many, how many guesses, at which significance, which findings fail the run.  Nothing in it may
depend on scores, because that is what the bounds assume (`audit.bounds`).  Unknown fields are
errors, and the SHA-256 over the file's bytes goes into the ledger and the report, so
`sha256sum audits/quick.yaml` tells an auditor which suite was used.

Significance.  `significance` is for the run as a whole: every kind, score, number of guesses and
method, and every repetition of the audit.  The first audit of a run gets `first_audit_share` of
it, the second that share of what is left, and so on, so that any number of audits adds up to no
more than the whole.  Within one audit each test gets an equal part (`Suite.test_significance`).

    version: 1
    name: quick
    purpose: one line for the report
    significance: 0.05
    first_audit_share: 0.8
    canaries:
      causal-lm:
        - {kind: rare-words, count: 64, words: 8, guesses: [16, 64], score: loss-drop}
      sequence-classification: [...]
    candidates: 32
    control: {epochs: 60, others: 64, epsilon_lower_at_least: 0.5}
    membership: {units: 200, bootstrap: 400, false_positive_rates: [0.01, 0.001]}
    selfcheck: {noise_multiplier: 1.0, steps: 4, runs: 16, canaries: 128, significance: 1.0e-4,
      share_of_theory: 0.8}
    fails_on: [bound-above-claim, curve-contradicted, control-failed, selfcheck-failed]
"""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from privft.budget.entries import Finding
from privft.errors import ConfigError
from privft.strictyaml import Strict, read_text, validate

Task = Literal["causal-lm", "sequence-classification"]
Kind = Literal["rare-words", "random-words", "secret", "mislabelled", "synthetic"]
Score = Literal["loss-drop", "loss"]

METHODS = ("one-run (epsilon, delta)", "one-run f-DP")
"""Every count of right guesses is tested in these ways, each at its own part of significance."""

_Share = Annotated[float, Field(gt=0, lt=1)]
_Positive = Annotated[int, Field(ge=1)]


class CanarySpec(Strict):
    """One kind of canary.

    count: canaries made; each is in the run by its own fair coin.
    words: words in the part that is to be remembered.
    guesses: numbers of guesses, all even: half of them "in" for the highest scores, half "out"
        for the lowest.  Few guesses suit an attack that is sure of a few, many one that is a
        little better than chance on all.
    score: `loss-drop` is the loss before training minus the loss after; `loss` is minus the
        loss after (for comparison: the base model's own surprise is noise to it).
    """

    kind: Kind
    count: Annotated[int, Field(ge=8, le=100_000)]
    words: Annotated[int, Field(ge=1, le=200)] = 8
    guesses: Annotated[list[int], Field(min_length=1, max_length=8)]
    score: Score = "loss-drop"

    @model_validator(mode="after")
    def _guesses_fit(self) -> CanarySpec:
        for guesses in self.guesses:
            if not 2 <= guesses <= self.count or guesses % 2:
                raise ValueError(
                    f"expected an even number of guesses from 2 to {self.count}, got {guesses}"
                )
        if len(set(self.guesses)) != len(self.guesses):
            raise ValueError(f"expected each number of guesses once, got {self.guesses}")
        return self


class CanarySpecs(Strict):
    """The kinds of canary for each task."""

    causal_lm: Annotated[list[CanarySpec], Field(min_length=1, alias="causal-lm")]
    sequence_classification: Annotated[
        list[CanarySpec], Field(min_length=1, alias="sequence-classification")
    ]


class ControlSpec(Strict):
    """The leaky twin: how long it is trained and what the attacks must reach on it."""

    epochs: Annotated[int, Field(ge=1, le=2000)]
    others: Annotated[int, Field(ge=0, le=10_000)]
    epsilon_lower_at_least: Annotated[float, Field(gt=0)]


class MembershipSpec(Strict):
    """The attack on real units, for a person inside the enclave."""

    units: _Positive
    bootstrap: Annotated[int, Field(ge=50, le=100_000)]
    false_positive_rates: Annotated[list[_Share], Field(min_length=1)]


class SelfcheckSpec(Strict):
    """The attack on the mechanism: tiny runs at full batch with gradient canaries."""

    noise_multiplier: Annotated[float, Field(gt=0)]
    steps: _Positive
    runs: _Positive
    canaries: Annotated[int, Field(ge=2)]
    significance: Annotated[float, Field(gt=0, le=0.01)]
    share_of_theory: _Share


class Suite(Strict):
    """One audit suite; the module's docstring shows the file."""

    version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,40}$")]
    purpose: Annotated[str, Field(min_length=10, max_length=300)]
    significance: Annotated[float, Field(gt=0, le=0.1)]
    first_audit_share: _Share
    canaries: CanarySpecs
    candidates: Annotated[int, Field(ge=0, le=100_000)]
    control: ControlSpec
    membership: MembershipSpec
    selfcheck: SelfcheckSpec
    fails_on: Annotated[list[Finding], Field(min_length=1)]

    @model_validator(mode="after")
    def _fails_on_what_it_must(self) -> Suite:
        missing = {*get_args(Finding)} - {*self.fails_on}
        if missing:
            raise ValueError(f"expected fails_on to hold {sorted(missing)} as well")
        for specs in (self.canaries.causal_lm, self.canaries.sequence_classification):
            kinds = [spec.kind for spec in specs]
            if len(set(kinds)) != len(kinds):
                raise ValueError(f"expected each kind of canary once a task, got {kinds}")
        if any(spec.kind == "mislabelled" for spec in self.canaries.causal_lm):
            raise ValueError("expected mislabelled canaries for classification only")
        return self

    def specs(self, task: Task) -> tuple[CanarySpec, ...]:
        """The kinds of canary for one task."""
        chosen = {
            "causal-lm": self.canaries.causal_lm,
            "sequence-classification": self.canaries.sequence_classification,
        }
        return tuple(chosen[task])

    def audit_significance(self, attempt: int) -> float:
        """What the `attempt`-th audit of one run may spend; all attempts add up to the whole."""
        if attempt < 1:
            raise ValueError(f"expected attempt >= 1, got {attempt}")
        share = self.first_audit_share
        return self.significance * share * (1 - share) ** (attempt - 1)

    def test_significance(self, task: Task, attempt: int = 1) -> float:
        """What one test of one audit may spend (Bonferroni over kinds, guesses and methods)."""
        tests = sum(len(spec.guesses) for spec in self.specs(task)) * len(METHODS)
        return self.audit_significance(attempt) / tests


def _shipped() -> Any:
    """The folder of shipped suites: installed as `privft.audits`, or beside the package."""
    try:
        installed = resources.files("privft.audits")
        if any(entry.name.endswith(".yaml") for entry in installed.iterdir()):
            return installed
    except ModuleNotFoundError:
        pass
    return Path(__file__).resolve().parents[2] / "audits"


def shipped_suites() -> tuple[str, ...]:
    """Names of the suites that come with privft, sorted."""
    names = (entry.name for entry in _shipped().iterdir())
    return tuple(sorted(name[:-5] for name in names if name.endswith(".yaml")))


def load_suite(name: str) -> tuple[Suite, str]:
    """A shipped suite and the SHA-256 of its file.  Errors: ConfigError on an unknown name."""
    known = shipped_suites()
    if name not in known:
        raise ConfigError(f"there is no audit suite {name!r}", hint=f"one of {', '.join(known)}")
    content: bytes = (_shipped() / f"{name}.yaml").read_bytes()
    suite, digest = parse_suite(content, source=f"{name}.yaml")
    if suite.name != name:
        raise ConfigError(f"audit suite {name}: its file calls itself {suite.name!r}")
    return suite, digest


def parse_suite(content: bytes, *, source: str = "audit suite") -> tuple[Suite, str]:
    """A suite from the bytes of its file, and their SHA-256.

    source: how errors call the file.
    Errors: ConfigError that names the line and the field at fault.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: not UTF-8 at byte {error.start}") from None
    return validate(Suite, read_text(text, source=source)), hashlib.sha256(content).hexdigest()
