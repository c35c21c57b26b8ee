"""Published numbers that the accountants have to reproduce, and the self-test that asks for them.

`run_selftest` needs no network and no other file and takes seconds: `privft selftest` runs it
inside the enclave, and reports quote how many of how many held.  Each row restates a single number
from somebody else's paper, documentation or test, with its source, and says what is asked:

    pld, rdp   epsilon of the events at delta, by that accountant
    delta      delta of the events at `at`, which is an epsilon, by PLD
    noise      the calibrated noise multiplier for epsilon `at` (one event gives the other numbers)
    steps      the most steps for epsilon `at`

Microsoft's PRV accountant publishes upper bounds that include its own error of 0.01, which is taken
off in `expected` (`less=0.01`) so that a difference in either direction fails.

A row that fails means that this installation must not price anything: another version of a library,
a broken floating-point unit, an edited file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from privft.budget import accounting
from privft.budget.mechanism import Adjacency, Event
from privft.errors import AccountingError

_TF = "tensorflow_privacy compute_dp_sgd_privacy_test.py"
_PLDA = "DPBayes/PLD-Accountant tests/test_compute_epsilon.py"
_MSR = "microsoft/prv_accountant, as in opacus tests/prv_accountant.py"
_JAX = "jax_privacy accounting.py, doctest"
_RDP = "dp_accounting rdp_privacy_accountant_test.py"
_PLD = "dp_accounting pld_privacy_accountant_test.py"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One published number; see the module's docstring."""

    quantity: Literal["pld", "rdp", "delta", "noise", "steps"]
    events: tuple[Event, ...]
    expected: float
    tolerance: float
    source: str
    delta: float = 1e-6
    at: float = 0.0
    less: float = 0.0
    adjacency: Adjacency = "add-remove"

    @property
    def name(self) -> str:
        """The question in one line."""
        first = self.events[0]
        more = f" and {len(self.events) - 1} more" if len(self.events) > 1 else ""
        at = f" at epsilon {self.at:g}" if self.at else ""
        return (
            f"{self.quantity}{at}: noise {first.noise_multiplier:.6g}, sampling "
            f"{first.sampling_probability:g}, {first.count} steps{more}, delta {self.delta:g}, "
            f"{self.adjacency}"
        )

    def compute(self) -> float:
        """The same number from this installation."""
        first = self.events[0]
        if self.quantity == "pld":
            return accounting.cost(self.events, self.delta, adjacency=self.adjacency).epsilon
        if self.quantity == "rdp":
            value = accounting.cost(self.events, self.delta, adjacency=self.adjacency).epsilon_rdp
            return float("nan") if value is None else value
        if self.quantity == "delta":
            return accounting.delta_for(self.events, self.at, adjacency=self.adjacency)
        if self.quantity == "noise":
            return accounting.calibrate_noise(
                target_epsilon=self.at,
                delta=self.delta,
                sampling_probability=first.sampling_probability,
                steps=first.count,
                adjacency=self.adjacency,
            )
        return accounting.max_steps(
            target_epsilon=self.at,
            delta=self.delta,
            noise_multiplier=first.noise_multiplier,
            sampling_probability=first.sampling_probability,
            adjacency=self.adjacency,
        )


def _one(noise: float, probability: float, steps: int) -> tuple[Event, ...]:
    return (Event(noise_multiplier=noise, sampling_probability=probability, count=steps),)


def _row(
    quantity: Literal["pld", "rdp", "delta", "noise", "steps"],
    events: Sequence[Event],
    expected: float,
    tolerance: float,
    source: str,
    **more: Any,
) -> Reference:
    return Reference(
        quantity=quantity,
        events=tuple(events),
        expected=expected,
        tolerance=tolerance,
        source=source,
        **more,
    )


_OPACUS = _one(1.5, 0.04, 2250)
_RAMP = [
    Event(noise_multiplier=1.6 + 0.2 * at / 9, sampling_probability=0.05 + 0.01 * at / 9, count=10)
    for at in range(10)
]

REFERENCES: tuple[Reference, ...] = (
    _row("rdp", _OPACUS, 7.32911117143, 1e-3, "opacus tests/accountants_test.py", delta=1e-5),
    _row("pld", _OPACUS, 6.768787, 2e-3, "dp_accounting 0.6.0, grid 1e-4", delta=1e-5),
    _row(
        "pld",
        _OPACUS,
        6.777395712150674,
        2e-3,
        "opacus tests/accountants_test.py (PRV)",
        delta=1e-5,
        less=0.01,
    ),
    _row("rdp", _one(0.8, 0.001, 1000), 1.4619, 1e-3, "opacus RDP"),
    _row("pld", _one(0.8, 0.001, 1000), 0.467695, 2e-3, "dp_accounting 0.6.0, grid 1e-4"),
    _row("pld", _one(0.7, 0.01, 120), 2.4612381, 2e-3, _TF, delta=1e-5),
    _row("rdp", _one(0.7, 0.01, 120), 3.2392676, 2e-3, _TF, delta=1e-5),
    # n = 60000, batch 150, 15 epochs; n = 100000, batch 100, 30 epochs
    _row("rdp", _one(1.3, 150 / 60000, 6000), 0.7242234026109595, 1e-4, _TF, delta=1e-5),
    _row("rdp", _one(1.0, 100 / 100000, 30000), 1.4154988495444842, 1e-4, _TF, delta=1e-7),
    # two epochs without sampling; microbatches double the sensitivity, which halves the noise
    _row("pld", _one(0.7, 1.0, 2), 10.1224946, 1e-4, _TF, delta=1e-5),
    _row("rdp", _one(0.7, 1.0, 2), 10.8602036, 1e-4, _TF, delta=1e-5),
    _row("pld", _one(0.35, 1.0, 2), 24.7160779, 1e-4, _TF, delta=1e-5),
    _row("rdp", _one(0.35, 1.0, 2), 26.2880374, 1e-4, _TF, delta=1e-5),
    _row("pld", _one(0.35, 0.01, 120), 18.6977407, 1e-4, _TF, delta=1e-5),
    _row("rdp", _one(0.35, 0.01, 120), 22.6248601, 1e-4, _TF, delta=1e-5),
    # the printed statement: 10000 examples, batch 64, 5 epochs, noise 2, microbatches
    _row("pld", _one(1.0, 0.0064, 782), 1.199, 1.5e-3, _TF),
    _row("rdp", _one(1.0, 0.0064, 782), 1.616, 1.5e-3, _TF),
    _row("pld", _one(1.0, 1.0, 5), 12.595, 1.5e-3, _TF),
    _row("rdp", _one(1.0, 1.0, 5), 13.376, 1.5e-3, _TF),
    _row("pld", _one(3.0, 0.1, 512), 3.77, 1e-2, _JAX),
    _row("noise", _one(3.0, 0.1, 512), 9.66, 2e-2, _JAX, at=1.0),
    _row("steps", _one(3.0, 0.1, 512), 155, 0, _JAX, at=2.0),
    _row("pld", _one(2.0, 0.01, 10000), 2.446734, 1e-3, _PLDA),
    _row("pld", _one(2.0, 0.01, 10000), 4.907398, 1e-3, _PLDA, adjacency="substitute"),
    _row(
        "pld", _RAMP, 0.965823, 1e-3, "DPBayes/PLD-Accountant test_compute_eps_var.py", delta=1e-3
    ),
    _row("rdp", _one(4.530877117, 1.0, 1), 1.0, 1e-6, _RDP),
    _row(
        "rdp",
        [*_one(1.0, 1e-5, 10), *_one(3.0, 1e-4, 4)],
        0.336,
        1e-3,
        "opacus accountants/analysis/rdp.py, docstring",
        delta=1e-5,
    ),
    # Phi(-1/2) - e Phi(-3/2), by theorem 8 with noise and epsilon 1
    _row(
        "delta", _one(1.0, 1.0, 1), 0.126936737507, 1e-8, "Balle and Wang, arXiv 1805.06530", at=1.0
    ),
    # three Gaussians of noise sqrt(3) are one of noise 1; three sampled ones of noise 0.5
    _row("delta", _one(3**0.5, 1.0, 3), 0.126936, 1e-3, _PLD, at=1.0),
    _row("delta", _one(0.5, 0.2, 3), 0.15594, 1e-3, _PLD, at=1.0),
    *(
        _row("pld", _one(noise, probability, steps), published, 1.5e-3, _MSR, less=0.01)
        for noise, probability, steps, published in (
            (0.8, 0.001, 100, 0.270403364058),
            (2.0, 0.001, 100, 0.029104536948),
            (0.8, 0.05, 100, 6.741051939414),
            (1.5, 0.05, 100, 1.953853135684),
            (3.0, 0.05, 100, 0.767933789666),
            (0.8, 0.2, 100, 24.333664177923),
            (1.5, 0.2, 100, 8.498977859122),
            (2.0, 0.2, 100, 5.672055608824),
            (3.0, 0.2, 100, 3.381220510222),
            (0.8, 0.001, 1000, 0.477771266185),
            (1.5, 0.05, 1000, 6.209969246577),
            (2.0, 0.05, 1000, 4.172799866689),
            (3.0, 0.05, 1000, 2.527574326060),
            (1.5, 0.001, 1000, 0.099820660231),
            (1.5, 0.001, 20000, 0.437005108655),
            (3.0, 0.001, 20000, 0.194031030686),
            (3.0, 0.05, 20000, 13.961114699237),
            (0.8, 0.001, 50000, 2.034514807716),
            (2.0, 0.001, 50000, 0.491354910211),
            (0.8, 0.001, 100000, 2.924622119350),
        )
    ),
)


def run_selftest() -> list[dict[str, Any]]:
    """Every row as {name, expected, got, tolerance, ok, source}; an accountant's error is a row
    that failed, with `got` None."""
    return [_checked(row) for row in REFERENCES]


def _checked(row: Reference) -> dict[str, Any]:
    expected = row.expected - row.less
    try:
        got = row.compute()
    except AccountingError:
        got = None
    return {
        "name": row.name,
        "expected": expected,
        "got": got,
        "tolerance": row.tolerance,
        "ok": got is not None and abs(got - expected) <= row.tolerance,
        "source": row.source,
    }
