"""The one value that says what a private run does.

A `Mechanism` feeds the sampler, the training loop, the accountant, the ledger and the report.
Nothing else carries these numbers, so what is run and what is accounted for cannot drift apart
(DESIGN.md, invariant 1).  What only changes speed lives in `training.loop.Performance`, which
accounting never sees.

An `Event` is the part of a mechanism that an accountant needs, typed and serialisable.  The two
kinds here are those that both accountants support:

    {"kind": "gaussian", "noise_multiplier": 4.0, "count": 1}
    {"kind": "poisson-gaussian", "noise_multiplier": 1.1, "sampling_probability": 0.03, "count": 40}

`noise_multiplier` is the standard deviation of the noise over the clip norm; the sensitivity of
the clipped sum is the clip norm under add/remove adjacency and at most twice that under
substitution, which is the accountant's business and not the event's.

Adaptive clipping publishes two things a step: the sum of clipped gradients, and how many units
were not clipped.  They are one event and not two (Andrew et al. 2021, "Differentially private
learning with adaptive clipping"): with b = 1 for a unit that was not clipped and 0 for one that
was, adding or removing a unit moves

    (sum of gradients / clip norm / g,  sum of (b - 1/2) / s)     by at most sqrt(1/g^2 + 1/(2s)^2)

where g is the gradients' noise multiplier and s = `count_noise` the standard deviation of the noise
on the centred count, whose sensitivity is 1/2 (that of the plain count is 1).  In these units the
noise is standard normal, so the event's `noise_multiplier` is (1/g^2 + 1/(2s)^2)^(-1/2), and
`Mechanism.gradient_noise_multiplier` gives the g that belongs to it.  The clip norm of the next
step is computed from what was published, so it costs nothing more.

Unknown kinds and unknown fields are errors: what is unknown is unsupported, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from privft.errors import AccountingError

Unit = Literal["record", "subject"]
Clipping = Literal["flat", "automatic", "per-layer", "adaptive"]
Adjacency = Literal["add-remove", "substitute"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class Event:
    """`count` adaptive compositions of a Gaussian mechanism on a Poisson sample.

    `sampling_probability` 1.0 is the plain Gaussian mechanism.  Only add/remove and substitution
    of one unit are meaningful relations for it.
    """

    noise_multiplier: float
    sampling_probability: float = 1.0
    count: int = 1

    def __post_init__(self) -> None:
        _require(
            math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0,
            f"expected a finite noise_multiplier > 0, got {self.noise_multiplier}",
        )
        _require(
            0 < self.sampling_probability <= 1,
            f"expected 0 < sampling_probability <= 1, got {self.sampling_probability}",
        )
        _require(
            isinstance(self.count, int) and not isinstance(self.count, bool) and self.count >= 1,
            f"expected a whole count >= 1, got {self.count!r}",
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, as in the module's docstring."""
        if self.sampling_probability == 1.0:
            return {
                "kind": "gaussian",
                "noise_multiplier": self.noise_multiplier,
                "count": self.count,
            }
        return {"kind": "poisson-gaussian", **asdict(self)}

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> Event:
        """The inverse of `to_dict`; raises `AccountingError` on anything that it does not know."""
        given = dict(value)
        kind = given.pop("kind", None)
        expected = {
            "gaussian": {"noise_multiplier", "count"},
            "poisson-gaussian": {"noise_multiplier", "sampling_probability", "count"},
        }.get(str(kind))
        if expected is None:
            raise AccountingError(f"expected a known kind of event, got {kind!r}")
        if set(given) != expected:
            raise AccountingError(
                f"expected the fields {sorted(expected)} in a {kind} event, got {sorted(given)}"
            )
        try:
            return Event(**given)
        except (ValueError, TypeError) as error:
            raise AccountingError(f"{kind} event: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """What one run does to the data, whole.

    unit: whose data one guarantee protects; also what is sampled, clipped, encrypted and erased.
    adjacency: the relation under which the guarantee is admitted (add or remove one unit).
    sampler: every unit is included in every step by its own coin of `sampling_probability`.
    noise_multiplier: standard deviation of the noise in units of `clip_norm`; with adaptive
        clipping that of gradients and count together (the module's docstring).
    clip_norm: largest l2 norm that one unit's gradient may have, over all trained parameters; with
        adaptive clipping that of the first step.
    steps: how many noisy steps there are, empty samples included.
    expected_batch_size: the divisor of the noisy sum; declared, never the realised size.
    normaliser: says so in words, because reports quote it.
    clipping: how a gradient is brought within `clip_norm` (`training.clipping`); the bound, which
        is all that accounting needs, is the same for each.
    count_noise: standard deviation of the noise on the centred count of unclipped units; None
        unless clipping is adaptive.
    noise: floating-point deviates, or whole numbers that are safe from attacks on low bits
        (`training.discrete` says why the same event accounts for both).
    """

    unit: Unit
    adjacency: Literal["add-remove"] = "add-remove"
    sampler: Literal["poisson"] = "poisson"
    sampling_probability: float
    noise_multiplier: float
    clip_norm: float
    steps: int
    expected_batch_size: float
    normaliser: Literal["expected-batch-size"] = "expected-batch-size"
    noise: Literal["gaussian", "discrete-gaussian"] = "gaussian"
    clipping: Clipping = "flat"
    count_noise: float | None = None

    def __post_init__(self) -> None:
        _require(self.unit in ("record", "subject"), f"expected a known unit, got {self.unit!r}")
        _require(
            (self.adjacency, self.sampler, self.normaliser)
            == ("add-remove", "poisson", "expected-batch-size"),
            "expected add-remove adjacency, a poisson sampler and the expected batch size as "
            f"divisor, got {self.adjacency!r}, {self.sampler!r}, {self.normaliser!r}",
        )
        _require(
            self.noise in ("gaussian", "discrete-gaussian"),
            f"expected gaussian or discrete-gaussian noise, got {self.noise!r}",
        )
        _require(
            self.clipping in get_args(Clipping),
            f"expected {', '.join(get_args(Clipping))} clipping, got {self.clipping!r}",
        )
        _require(
            (self.count_noise is not None) == (self.clipping == "adaptive"),
            "expected count_noise with adaptive clipping and with no other, got "
            f"{self.count_noise} with {self.clipping}",
        )
        _require(
            math.isfinite(self.clip_norm) and self.clip_norm > 0,
            f"expected a finite clip_norm > 0, got {self.clip_norm}",
        )
        _require(
            math.isfinite(self.expected_batch_size) and self.expected_batch_size > 0,
            f"expected expected_batch_size > 0, got {self.expected_batch_size}",
        )
        self.event()  # checks the other three
        _require(
            self.count_noise is None
            or (math.isfinite(self.count_noise) and 2 * self.count_noise > self.noise_multiplier),
            "expected count_noise above half the noise_multiplier "
            f"{self.noise_multiplier}, got {self.count_noise}",
        )

    @property
    def gradient_noise_multiplier(self) -> float:
        """Standard deviation of the noise on the sum of gradients, in units of the clip norm.

        With adaptive clipping it is larger than `noise_multiplier`, which also pays for the count.
        """
        if self.count_noise is None:
            return self.noise_multiplier
        # Written so that nothing cancels but what must; the hair covers the rounding.
        ratio = self.noise_multiplier / (2 * self.count_noise)
        return self.noise_multiplier / math.sqrt((1 - ratio) * (1 + ratio)) * (1 + 2.0**-48)

    def event(self) -> Event:
        """The whole run as one accounting event."""
        return Event(
            noise_multiplier=self.noise_multiplier,
            sampling_probability=self.sampling_probability,
            count=self.steps,
        )

    def to_dict(self) -> dict[str, Any]:
        """A plain mapping, fit for canonical JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> Mechanism:
        """The inverse of `to_dict`; unknown or missing fields are errors."""
        names = {field.name for field in fields(Mechanism)}
        if set(value) != names:
            raise AccountingError(
                f"expected the fields {sorted(names)} in a mechanism, got {sorted(value)}"
            )
        try:
            return Mechanism(**value)
        except (ValueError, TypeError) as error:
            raise AccountingError(f"mechanism: {error}") from error


def auto_delta(declared_units: int) -> float:
    """1/declared_units**1.1, rounded down to one significant digit.

    Guarantees: 0 < result < 1/declared_units.
    """
    if declared_units < 2:
        raise ValueError(f"expected declared_units >= 2, got {declared_units}")
    exact = declared_units**-1.1
    exponent = math.floor(math.log10(exact))
    # The nudge keeps exact powers (10**10 units: 1e-11) from falling to 9e-12 by rounding error.
    digit = max(1, math.floor(exact / 10.0**exponent * (1 + 1e-12)))
    return float(f"{digit}e{exponent}")
