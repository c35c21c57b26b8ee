"""privft epsilon, noise, tradeoff, bound: calculators that need no workspace."""

from __future__ import annotations

import json
from pathlib import Path

import click

from privft.budget.mechanism import Event
from privft.cli.session import FILE, json_option, print_json, table
from privft.errors import ConfigError, UsageError

_PROBABILITY = click.FloatRange(0, 1, min_open=True)
_OPEN = click.FloatRange(0, 1, min_open=True, max_open=True)
_POSITIVE = click.FloatRange(0, min_open=True)
_ADJACENCY = click.Choice(["add-remove", "substitute"])


def _events(
    file: Path | None, noise: float | None, probability: float | None, steps: int | None
) -> list[Event]:
    """The events of a file, or the one event of the options."""
    given = (noise, probability, steps)
    if file is None:
        if None in given:
            raise UsageError(
                "expected --noise-multiplier, --sampling-probability and --steps, or --events FILE"
            )
        assert noise is not None
        assert probability is not None
        assert steps is not None
        return [Event(noise_multiplier=noise, sampling_probability=probability, count=steps)]
    if any(value is not None for value in given):
        raise UsageError("expected --events or the parameters of one event, not both")
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{file}: expected a list of events, as in the ledger")
    return [Event.from_dict(row) for row in rows]


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
    adjacency: str,
    as_json: bool,
) -> None:
    """Epsilon of DP-SGD with given parameters."""
    from privft.budget.accounting import cost

    events = _events(file, noise_multiplier, sampling_probability, steps)
    found = cost(events, delta, adjacency=adjacency)  # type: ignore[arg-type]
    if as_json:
        print_json({"pld": found.epsilon_pld, "rdp": found.epsilon_rdp, **found.to_dict()})
        return
    click.echo(f"epsilon {found.epsilon_pld:.6f} (PLD) at delta {delta:g}, {adjacency}")
    if found.epsilon_rdp is None:
        click.echo(f"RDP: {found.rdp_note}")
    else:
        edge = ", at the edge of its grid of orders" if found.order_at_edge else ""
        click.echo(f"epsilon {found.epsilon_rdp:.6f} (RDP, order {found.best_order:g}{edge})")


@click.command("noise")
@click.option("--target-epsilon", type=_POSITIVE, required=True)
@click.option("--sampling-probability", type=_PROBABILITY, required=True)
@click.option("--steps", type=click.IntRange(min=1), required=True)
@click.option("--delta", type=_OPEN, required=True)
@click.option("--adjacency", type=_ADJACENCY, default="add-remove", show_default=True)
@json_option
def noise_command(
    target_epsilon: float,
    sampling_probability: float,
    steps: int,
    delta: float,
    adjacency: str,
    as_json: bool,
) -> None:
    """Noise multiplier for a target epsilon."""
    from privft.budget.accounting import calibrate_noise, cost

    noise = calibrate_noise(
        target_epsilon=target_epsilon,
        delta=delta,
        sampling_probability=sampling_probability,
        steps=steps,
        adjacency=adjacency,  # type: ignore[arg-type]
    )
    event = Event(noise_multiplier=noise, sampling_probability=sampling_probability, count=steps)
    found = cost([event], delta, adjacency=adjacency)  # type: ignore[arg-type]
    if as_json:
        print_json({"noise_multiplier": noise, "pld": found.epsilon_pld, "rdp": found.epsilon_rdp})
    else:
        click.echo(f"noise multiplier {noise:.6f} gives epsilon {found.epsilon_pld:.6f} (PLD)")


@click.command("tradeoff")
@click.option("--noise-multiplier", type=_POSITIVE)
@click.option("--sampling-probability", type=_PROBABILITY)
@click.option("--steps", type=click.IntRange(min=1))
@click.option("--events", "file", type=FILE, help="JSON list of events, for composition.")
@click.option("--adjacency", type=_ADJACENCY, default="add-remove", show_default=True)
@json_option
def tradeoff_command(
    noise_multiplier: float | None,
    sampling_probability: float | None,
    steps: int | None,
    file: Path | None,
    adjacency: str,
    as_json: bool,
) -> None:
    """The best ROC curve that any attack can have."""
    from privft.budget.accounting import tradeoff

    events = _events(file, noise_multiplier, sampling_probability, steps)
    curve = tradeoff(events, adjacency)  # type: ignore[arg-type]
    if as_json:
        print_json({**curve.to_dict(), "max_accuracy": curve.max_accuracy})
        return
    rates = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5)
    rows = [
        [f"{rate:g}", f"{curve.tpr_bound(rate):.4f}", _bar(curve.tpr_bound(rate))] for rate in rates
    ]
    table("No attack does better", ["false positives", "true positives at most", ""], rows)
    click.echo(f"of 100 even bets on whether a unit was in, at most {100 * curve.max_accuracy:.1f}")


def _bar(share: float) -> str:
    return "█" * round(40 * share)


@click.command("bound")
@click.option("--canaries", type=click.IntRange(min=1), required=True)
@click.option("--guesses", type=click.IntRange(min=1), required=True)
@click.option("--correct", type=click.IntRange(min=0), required=True)
@click.option("--delta", type=click.FloatRange(0, 1, max_open=True), required=True)
@click.option("--significance", type=_OPEN, default=0.05, show_default=True)
@json_option
def bound_command(
    canaries: int, guesses: int, correct: int, delta: float, significance: float, as_json: bool
) -> None:
    """Lower bound on epsilon from an attack's guesses."""
    from privft.audit.bounds import one_run_ceiling, one_run_epsilon

    if not correct <= guesses <= canaries:
        raise UsageError(
            f"expected correct <= guesses <= canaries, got {correct}, {guesses}, {canaries}"
        )
    lower = one_run_epsilon(
        canaries=canaries,
        guesses=guesses,
        correct=correct,
        delta=delta,
        significance=significance,
    )
    ceiling = one_run_ceiling(
        canaries=canaries, guesses=guesses, delta=delta, significance=significance
    )
    if as_json:
        print_json({"epsilon_lower": lower, "ceiling": ceiling})
    else:
        click.echo(f"epsilon is at least {lower:.6f} at {100 * (1 - significance):g}% confidence")
        click.echo(f"a perfect attack would have shown {ceiling:.6f}")
