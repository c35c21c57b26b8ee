"""privft epsilon, noise, tradeoff, bound: calculators that need no workspace."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from privft.budget.mechanism import Adjacency, Event
from privft.budget.selection import AnyEvent, event_from_dict, is_single
from privft.cli.session import FILE, json_option, print_json, say, table
from privft.errors import AccountingError, ConfigError, UsageError


class _Range(click.FloatRange):
    """click's range, which NaN and an endless infinity would pass."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


_PROBABILITY = _Range(0, 1, min_open=True)
_OPEN = _Range(0, 1, min_open=True, max_open=True)
_POSITIVE = _Range(0, min_open=True)
_ADJACENCY = click.Choice(["add-remove", "substitute"])


def _rows(file: Path) -> list[dict[str, Any]]:
    """The JSON list in a file of events."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(
            f"{file}: expected a list of events, as in the ledger",
            hint='[{"kind": "poisson-gaussian", "noise_multiplier": 1.1, '
            '"sampling_probability": 0.01, "count": 100}]',
        )
    return rows


def _events(
    file: Path | None, noise: float | None, probability: float | None, steps: int | None
) -> list[AnyEvent]:
    """The events of a file, or the one event of the options."""
    given = (noise, probability, steps)
    if file is None:
        if noise is None or probability is None or steps is None:
            raise UsageError(
                "expected --noise-multiplier, --sampling-probability and --steps, or --events FILE"
            )
        return [Event(noise_multiplier=noise, sampling_probability=probability, count=steps)]
    if any(value is not None for value in given):
        raise UsageError("expected --events or the parameters of one event, not both")
    return [event_from_dict(row) for row in _rows(file)]


def _plain(events: Sequence[AnyEvent]) -> list[Event]:
    """The events, where no selection is among them; raises `AccountingError` otherwise."""
    if is_single(events):
        raise AccountingError("calibration is not known for random stopping")
    return [event for event in events if isinstance(event, Event)]


@click.command("epsilon")
@click.option("--noise-multiplier", type=_POSITIVE)
@click.option("--sampling-probability", type=_PROBABILITY)
@click.option("--steps", type=click.IntRange(min=1))
@click.option("--events", "file", type=FILE, help="JSON list of events, for composition.")
@click.option("--delta", type=_OPEN, required=True)
@click.option("--adjacency", type=_ADJACENCY, default="add-remove", show_default=True)
@json_option
def epsilon_command(
    noise_multiplier: float | None,
    sampling_probability: float | None,
    steps: int | None,
    file: Path | None,
    delta: float,
    adjacency: Adjacency,
    as_json: bool,
) -> None:
    """Epsilon of DP-SGD with given parameters."""
    from privft.budget.accounting import cost

    events = _events(file, noise_multiplier, sampling_probability, steps)
    found = cost(events, delta, adjacency=adjacency)
    if as_json:
        print_json({"pld": found.epsilon_pld, "rdp": found.epsilon_rdp, **found.to_dict()})
        return
    if found.epsilon_pld is not None:
        click.echo(f"epsilon {found.epsilon_pld:.6f} (PLD) at delta {delta:g}, {adjacency}")
    if found.epsilon_rdp is not None:
        edge = ", at the edge of its grid of orders" if found.order_at_edge else ""
        click.echo(f"epsilon {found.epsilon_rdp:.6f} (RDP, order {found.best_order:g}{edge})")
    if found.note:
        click.echo(found.note)


@click.command("noise")
@click.option("--target-epsilon", type=_POSITIVE, required=True)
@click.option("--sampling-probability", type=_PROBABILITY)
@click.option("--steps", type=click.IntRange(min=1))
@click.option(
    "--events",
    "file",
    type=FILE,
    help="JSON list of events: those without a noise multiplier share the one that is sought; "
    "where all have one, all are scaled by one factor.",
)
@click.option("--delta", type=_OPEN, required=True)
@click.option("--adjacency", type=_ADJACENCY, default="add-remove", show_default=True)
@json_option
def noise_command(
    target_epsilon: float,
    sampling_probability: float | None,
    steps: int | None,
    file: Path | None,
    delta: float,
    adjacency: Adjacency,
    as_json: bool,
) -> None:
    """Noise multiplier for a target epsilon."""
    from privft.budget.accounting import calibrate_noise, cost

    if file is not None:
        if (sampling_probability, steps) != (None, None):
            raise UsageError("expected --events or the parameters of one event, not both")
        _noise_of_list(_rows(file), target_epsilon, delta, adjacency, as_json)
        return
    if sampling_probability is None or steps is None:
        raise UsageError("expected --sampling-probability and --steps, or --events FILE")
    noise = calibrate_noise(
        target_epsilon=target_epsilon,
        delta=delta,
        sampling_probability=sampling_probability,
        steps=steps,
        adjacency=adjacency,
    )
    event = Event(noise_multiplier=noise, sampling_probability=sampling_probability, count=steps)
    found = cost([event], delta, adjacency=adjacency)
    if as_json:
        print_json({"noise_multiplier": noise, "pld": found.epsilon_pld, "rdp": found.epsilon_rdp})
    else:
        click.echo(f"noise multiplier {noise:.6f} gives epsilon {found.epsilon_pld:.6f} (PLD)")


def _noise_of_list(
    rows: Sequence[dict[str, Any]],
    target_epsilon: float,
    delta: float,
    adjacency: Adjacency,
    as_json: bool,
) -> None:
    from privft.budget.accounting import cost
    from privft.budget.calibration import calibrate_list

    gaps = [row for row in rows if "noise_multiplier" not in row]

    def events_at(value: float) -> list[Event]:
        filled = [{**row, "noise_multiplier": value} if row in gaps else row for row in rows]
        events = _plain([event_from_dict(row) for row in filled])
        if gaps:
            return events
        return [replace(each, noise_multiplier=each.noise_multiplier * value) for each in events]

    value = calibrate_list(
        events_at, target_epsilon=target_epsilon, delta=delta, adjacency=adjacency
    )
    events = events_at(value)
    found = cost(events, delta, adjacency=adjacency)
    if as_json:
        print_json(
            {
                "noise_multiplier": value if gaps else None,
                "factor": None if gaps else value,
                "events": [event.to_dict() for event in events],
                "pld": found.epsilon_pld,
                "rdp": found.epsilon_rdp,
            }
        )
        return
    what = f"noise multiplier {value:.4f} for {len(gaps)}" if gaps else f"factor {value:.4f} on all"
    click.echo(f"{what} of {len(events)} events gives epsilon {found.epsilon_pld:.6f} (PLD)")


@click.command("tradeoff")
@click.option("--noise-multiplier", type=_POSITIVE)
@click.option("--sampling-probability", type=_PROBABILITY)
@click.option("--steps", type=click.IntRange(min=1))
@click.option("--events", "file", type=FILE, help="JSON list of events, for composition.")
@click.option("--adjacency", type=_ADJACENCY, default="add-remove", show_default=True)
@click.option("--svg", type=FILE, help="Draw it into this file instead of the terminal.")
@json_option
def tradeoff_command(
    noise_multiplier: float | None,
    sampling_probability: float | None,
    steps: int | None,
    file: Path | None,
    adjacency: Adjacency,
    svg: Path | None,
    as_json: bool,
) -> None:
    """The best ROC curve that any attack can have."""
    from privft.budget.accounting import tradeoff

    events = _events(file, noise_multiplier, sampling_probability, steps)
    curve = tradeoff(events, adjacency)
    if svg is not None:
        from privft.report import plots

        bound = [(fpr, 1 - fnr) for fpr, fnr in zip(curve.fpr, curve.fnr, strict=True)]
        drawn = plots.standalone(plots.roc(bound, None, tested=0))
        svg.write_text(drawn, encoding="utf-8")
        say(f"drawn in {svg}")
    if as_json:
        print_json({**curve.to_dict(), "max_accuracy": curve.max_accuracy})
        return
    rates = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5)
    if svg is None:
        for line in _drawing(curve.tpr_bound):
            click.echo(line)
    rows = [[f"{rate:g}", f"{curve.tpr_bound(rate):.4f}"] for rate in rates]
    table("No attack does better", ["false positives", "true positives at most"], rows)
    click.echo(f"of 100 even bets on whether a unit was in, at most {100 * curve.max_accuracy:.1f}")
    click.echo(
        f"nearest Gaussian mechanism: mu {curve.mu_nearest:.4f}, {curve.mu_gap:.2g} away at most"
    )


_WIDE, _HIGH = 60, 20


def _drawing(tpr_bound: Callable[[float], float]) -> list[str]:
    """The curve in braille dots, two by four a character, over the line of guessing (dotted)."""
    dots = [[False] * (2 * _WIDE) for _ in range(4 * _HIGH)]
    bits = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))

    def height(share: float) -> int:
        return min(4 * _HIGH - 1, round((1 - share) * (4 * _HIGH - 1)))

    last = None
    for x in range(2 * _WIDE):
        fpr = x / (2 * _WIDE - 1)
        at = height(tpr_bound(fpr))
        for y in range(min(at, at if last is None else last), max(at, last or at) + 1):
            dots[y][x] = True
        last = at
        if x % 4 == 0:
            dots[height(fpr)][x] = True
    lines = ["true positive rate"]
    for row in range(_HIGH):
        cells = [
            chr(
                0x2800
                + sum(
                    bits[y][x]
                    for y in range(4)
                    for x in range(2)
                    if dots[4 * row + y][2 * column + x]
                )
            )
            for column in range(_WIDE)
        ]
        label = {0: "1.0", _HIGH // 2: "0.5", _HIGH - 1: "0.0"}.get(row, "   ")
        lines.append(f"{label} │{''.join(cells)}")
    return [
        *lines,
        f"    └{'─' * _WIDE}",
        f"     0.0{'false positive rate':^{_WIDE - 6}}1.0",
        "     the curve: no attack gets above it; the dotted line: guessing",
    ]


@click.command("bound")
@click.option("--canaries", type=click.IntRange(min=1), required=True)
@click.option("--guesses", type=click.IntRange(min=1), required=True)
@click.option("--correct", type=click.IntRange(min=0), required=True)
@click.option("--delta", type=_Range(0, 1, max_open=True), required=True)
@click.option("--significance", type=_OPEN, default=0.05, show_default=True)
@json_option
def bound_command(
    canaries: int, guesses: int, correct: int, delta: float, significance: float, as_json: bool
) -> None:
    """Lower bound on epsilon from an attack's guesses."""
    from privft.audit.bounds import bound_report

    if not correct <= guesses <= canaries:
        raise UsageError(
            f"expected correct <= guesses <= canaries, got {correct}, {guesses}, {canaries}"
        )
    found = bound_report(
        canaries=canaries,
        guesses=guesses,
        correct=correct,
        delta=delta,
        significance=significance,
    )
    if as_json:
        print_json(found)
        return
    lower, ceiling = found["epsilon_lower"], found["ceiling"]
    click.echo(f"epsilon is at least {lower:.6f} at {100 * (1 - significance):g}% confidence")
    click.echo(f"a perfect attack would have shown {ceiling:.6f}")
    if found["gaussian_ceiling"] is not None:
        lower, ceiling = found["gaussian_epsilon_lower"], found["gaussian_ceiling"]
        click.echo(
            f"were the mechanism's trade-off curve Gaussian (f-DP): {lower:.6f} and {ceiling:.6f}"
        )
