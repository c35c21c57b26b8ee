"""From a mechanism to the claim: what a statement's numbers are made with and checked with.

`guarantee` computes every number of the statement's `guarantee` from the events and delta,
`noised` those that go with a measure on held-out units, `budget` those of its `ledger` that the
filter counts, `recoveries` what it tells of lost entries; they are called when a statement is built
and when one is checked.  `compare` says where two of them differ by more than numerical noise:
accountants convolve by FFT, whose last digits differ between machines.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from privft.budget import accounting
from privft.budget.entries import Entry
from privft.budget.filter import Cap, admit, fits
from privft.budget.mechanism import Event, Unit
from privft.budget.selection import AnyEvent, is_single
from privft.budget.translog import Checkpoint
from privft.errors import IntegrityError
from privft.report.aside import HERE, Aside
from privft.signing import VerifyKey

RELATIVE = 1e-6  # what FFTs of different machines may differ by; seen: 1e-11
ABSOLUTE = 1e-8
FPR_GRID = (*(10 ** (-5 + i / 12) for i in range(60)), 1.0)


def guarantee(
    *,
    unit: Unit,
    events: Sequence[AnyEvent],
    delta: float,
    fprs: Sequence[float] = FPR_GRID,
    at_once: bool = False,
) -> dict[str, Any]:
    """The statement's `guarantee`, from public numbers alone; takes one or two seconds.

    fprs: the false positive rates at which the trade-off curve is stated.
    at_once: another process computes the second relation (for a process that is young and small).

    Guarantees: `epsilon` is the pessimistic PLD value under add/remove, or RDP's where that is the
    only accountant; no attack exceeds `odds_percent` or any point of `tpr_at_fpr`.  Raises
    `AccountingError` where the accountants disagree.
    """
    substituting = partial(accounting.cost, events, delta, adjacency="substitute")
    with Aside() if at_once else nullcontext(HERE) as aside:
        other = None if is_single(events) else aside.begin(substituting)
        cost = accounting.cost(events, delta)
        curve = accounting.tradeoff(events)
        substitute = other and other()
    return {
        "unit": unit,
        "adjacency": "add-remove",
        "epsilon": cost.epsilon,
        "delta": delta,
        "cost": cost.to_dict(),
        "substitute": substitute and substitute.to_dict(),
        "odds_percent": min(100.0, max(50.0, 100 * curve.max_accuracy)),
        "tpr_at_fpr": [[fpr, min(1.0, curve.tpr_bound(fpr))] for fpr in fprs],
        "mu": curve.mu_nearest,
    }


def noised(
    *, difference: float, units: int, noise_multiplier: float, bound: float, delta: float
) -> dict[str, Any]:
    """What follows, in a measure on held-out units, from the two figures and their noise.

    units: the declared number; bound: the most that a unit has of it (`training.heldout`).  The
    interval holds the difference of the two noisy sums' means with 95%, as far as noise goes.
    """
    half = 1.96 * math.sqrt(2) * noise_multiplier * (bound / 2) / units
    figures = Event(noise_multiplier=noise_multiplier, count=2)
    return {
        "difference": difference,
        "interval": [difference - half, difference + half],
        "paid": {
            "noise_multiplier": noise_multiplier,
            "bound": bound,
            "epsilon": accounting.cost([figures], delta).epsilon,
        },
    }


def budget(*, cap: Cap, spent: Sequence[AnyEvent], events: Sequence[AnyEvent]) -> dict[str, Any]:
    """What the filter counts before and after a run, as the statement's `ledger` holds it.

    spent: everything charged to the same lineage before this run.  events: what this run charged.
    Raises `IntegrityError` when the filter would not have admitted the run.
    """
    admission = admit(cap, spent, events)
    if not admission.admitted:
        raise IntegrityError(
            f"the filter does not admit this run: {admission.epsilon_after:.4g} of {cap.epsilon:g}"
        )
    return {
        "before": {
            "epsilon_spent": admission.epsilon_spent,
            "epsilon_left": admission.epsilon_left,
        },
        "after": {
            "epsilon_spent": admission.epsilon_after,
            "epsilon_left": max(0.0, cap.epsilon - admission.epsilon_after),
        },
        "cap": cap.to_dict(),
        "spent_events": [event.to_dict() for event in spent],
        "more_runs_like_this": fits(cap, [*spent, *events], *events),
    }


def recoveries(entries: Iterable[Entry], lineage: str, log_key: VerifyKey) -> list[dict[str, Any]]:
    """The recoveries of the ledger among these entries, as a statement on this lineage has them."""
    return [
        {
            "time": entry.time,
            "kept": entry.index,
            "seen": max(Checkpoint.open(note, log_key).size for note in entry.body["known"]),
            "exhausted": lineage in entry.body["lineages"],
            "reason": entry.body["reason"],
            "signers": [row["keyid"] for row in entry.body["signatures"]],
        }
        for entry in entries
        if entry.kind == "recovered"
    ]


def compare(stated: Any, computed: Any, where: str = "guarantee") -> list[str]:
    """Where the two differ: paths with both values, at most ten of them; empty when they agree."""
    if isinstance(stated, Mapping) and isinstance(computed, Mapping):
        if set(stated) != set(computed):
            return [f"{where}: fields {sorted(stated)} and {sorted(computed)}"]
        pairs = [(f"{where}.{key}", stated[key], computed[key]) for key in sorted(stated)]
    elif isinstance(stated, (list, tuple)) and isinstance(computed, (list, tuple)):
        if len(stated) != len(computed):
            return [f"{where}: {len(stated)} and {len(computed)} values"]
        pairs = [
            (f"{where}[{i}]", left, right)
            for i, (left, right) in enumerate(zip(stated, computed, strict=True))
        ]
    elif _is_number(stated) and _is_number(computed):
        close = abs(stated - computed) <= ABSOLUTE + RELATIVE * max(abs(stated), abs(computed))
        return [] if close else [f"{where}: states {stated!r}, computed {computed!r}"]
    else:
        return [] if stated == computed else [f"{where}: states {stated!r}, computed {computed!r}"]
    found: list[str] = []
    for path, left, right in pairs:
        found += compare(left, right, path)
    return found[:10]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
