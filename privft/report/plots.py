"""The charts of the report, as SVG text.

They are written by hand and not by a plotting library, because `privft verify` renders the page
again and compares bytes: a chart must come out the same on every machine, in every year, whatever
is installed there.  What a library would add (its version, clip ids, glyph outlines) would make an
honest report look altered.  The whole page renders in milliseconds, too.

Every chart is an inline `<svg role="img">` with a title and a description that says in words what
the picture shows.  Colours are CSS variables with a fallback, so that the page's dark mode and its
print style reach into the picture; no meaning hangs on colour alone (line styles, fills and labels
differ as well).  Text is real text, and every caller's string is escaped.

Coordinates are SVG user units, rounded to a hundredth; a chart is 440 units wide, so that its text
stays legible on a phone.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

INK, MUTED, GRID = "var(--ink,#1c2430)", "var(--muted,#566171)", "var(--line,#d5dae1)"
ACCENT, GOOD, BAD = "var(--accent,#1f5fbf)", "var(--good,#17744a)", "var(--bad,#b3261e)"
SOFT, PAPER = "var(--soft,#dbe7fa)", "var(--card,#ffffff)"
WIDTH = 440


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Values from `low` to `high` laid on the coordinates from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The coordinate of a value; values outside are moved to the nearer end."""
        inside = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(inside / self.low) / math.log(self.high / self.low)
        else:
            share = (inside - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def number(value: float) -> str:
    """A coordinate: at most two decimals, no trailing zeros, never minus zero."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def odds(percent: int) -> str:
    """A hundred bets as dots: what a coin wins, what the data adds at most, what stays lost."""
    dots = []
    for i in range(100):
        x, y = 14 + (i % 20) * 21.6, 14 + (i // 20) * 21.6
        if i < min(50, percent):
            style = f'fill="{MUTED}"'
        elif i < percent:
            style = f'fill="{ACCENT}"'
        else:
            style = f'fill="none" stroke="{MUTED}" stroke-width="1.3"'
        dots.append(f'<circle cx="{number(x)}" cy="{number(y)}" r="7.4" {style}/>')
    description = (
        f"100 dots, one for each bet. 50 are won by tossing a coin, at most {max(percent - 50, 0)} "
        f"more because of the trained model, and at least {100 - percent} are lost."
    )
    return _svg("odds", "A hundred bets", description, 114, dots)


def roc(
    bound: Sequence[tuple[float, float]],
    attack: Sequence[tuple[float, float]] | None,
    *,
    tested: int,
) -> str:
    """True against false positive rate, both logarithmic, with the proven bound over the attack.

    bound, attack: (false positive rate, true positive rate) in rising order.  tested: how many
    canaries the attack's curve rests on, which says how far to the left it can mean anything.
    """
    low = 1e-3
    x = Axis(low=low, high=1.0, start=54, end=426, log=True)
    y = Axis(low=low, high=1.0, start=296, end=16, log=True)
    limit = [(f, t) for f, t in bound if f >= low] or [(low, low), (1.0, 1.0)]
    if limit[0][0] > low:
        limit.insert(0, (low, limit[0][1]))
    limit_points = [(x.at(f), y.at(t)) for f, t in limit]
    forbidden = [*limit_points, (x.end, y.end), (x.start, y.end)]
    parts = _log_grid(x, y)
    parts.append(f'<polygon points="{_points(forbidden)}" fill="{SOFT}" opacity="0.75"/>')
    parts.append(
        f'<path d="M{_points([(x.at(low), y.at(low)), (x.at(1), y.at(1))], "L")}" fill="none" '
        f'stroke="{MUTED}" stroke-width="1.4" stroke-dasharray="5 4"/>'
    )
    parts.append(_line(limit_points, ACCENT, 2.4))
    words = "No attack curve was recorded."
    if attack:
        steps: list[tuple[float, float]] = []
        for f, t in attack:
            point = (x.at(f), y.at(t))
            if steps and point[0] != steps[-1][0]:
                steps.append((point[0], steps[-1][1]))
            steps.append(point)
        parts.append(_line(steps, BAD, 2))
        words = f"The red line is what the attack on {tested} planted canaries achieved."
    parts.append(_text(x.start + 8, y.end + 17, "no attack can reach this area", ACCENT, 12))
    parts.append(_text(240, 336, "false positive rate", MUTED, 12, "middle"))
    parts.append(
        f'<text transform="translate(13 156) rotate(-90)" text-anchor="middle" font-size="12" '
        f'fill="{MUTED}">true positive rate</text>'
    )
    key = [(ACCENT, "proven bound", ""), (MUTED, "guessing", "5 4")]
    if attack:
        key.insert(1, (BAD, "attack", ""))
    parts += _key(key, 362)
    description = (
        "Both axes are logarithmic, from one in a thousand to one. The blue line is the highest "
        f"true positive rate that any attack can have. {words} The dashed line is guessing."
    )
    return _svg("roc", "Attack and proven bound", description, 372, parts)


def claim_and_attacks(
    epsilon: float, tests: Sequence[tuple[str, float, float]], *, width: int = WIDTH
) -> str:
    """The claimed epsilon against what each attack proved and could have proved at best.

    tests: (label, epsilon_lower, ceiling).
    """
    high = _round_up(max([epsilon, *(max(low, top) for _, low, top in tests)]) * 1.08)
    x = Axis(low=0, high=high, start=12, end=width - 14)
    bottom = 34 + 50 * len(tests)
    parts = []
    for tick in _ticks(high):
        at = number(x.at(tick))
        parts.append(f'<path d="M{at} 26V{bottom}" stroke="{GRID}"/>')
        parts.append(_text(x.at(tick), bottom + 17, _short(tick), MUTED, 12, "middle"))
    for i, (label, lower, ceiling) in enumerate(tests):
        top = 34 + 50 * i
        parts.append(_text(x.start, top + 12, _clip(label, 46), INK, 12.5))
        reach = number(max(x.at(ceiling) - x.start, 1))
        parts.append(
            f'<rect x="{number(x.start)}" y="{top + 19}" width="{reach}" height="15" rx="2" '
            f'fill="{SOFT}" stroke="{ACCENT}" stroke-dasharray="3 3"/>'
        )
        shown = number(max(x.at(lower) - x.start, 0))
        colour = BAD if lower > epsilon else INK
        parts.append(
            f'<rect x="{number(x.start)}" y="{top + 22}" width="{shown}" height="9" '
            f'fill="{colour}"/>'
        )
    claim = x.at(epsilon)
    parts.append(f'<path d="M{number(claim)} 20V{bottom}" stroke="{ACCENT}" stroke-width="2.4"/>')
    anchor = "end" if claim > width * 0.6 else "start"
    parts.append(
        _text(
            claim, 14, f"claimed: {math.ceil(epsilon * 100 - 1e-9) / 100:.2f}", ACCENT, 12.5, anchor
        )
    )
    parts.append(_text(width / 2, bottom + 36, "epsilon", MUTED, 12, "middle"))
    y = bottom + 47
    parts.append(f'<rect x="{number(x.start)}" y="{y}" width="16" height="9" fill="{INK}"/>')
    parts.append(_text(x.start + 22, bottom + 56, "proven by the attack", INK, 12))
    parts.append(
        f'<rect x="{number(x.start + 176)}" y="{y}" width="16" height="9" rx="2" fill="{SOFT}" '
        f'stroke="{ACCENT}" stroke-dasharray="3 3"/>'
    )
    parts.append(_text(x.start + 198, bottom + 56, "most it could have proven", ACCENT, 12))
    told = "; ".join(
        f"{label}: proved at least {lower:.2f}, could have proved {ceiling:.2f} at most"
        for label, lower, ceiling in tests
    )
    description = f"The claimed epsilon is {epsilon:.2f}. {told}."
    return _svg("claim", "Claim against attacks", description, bottom + 66, parts)


def burn_down(
    cap: float,
    history: Sequence[tuple[str, float]],
    *,
    key: str = "burn",
    mark_last: str = "this run",
    exhausted: bool = False,
) -> str:
    """What is left of the budget after each run; the last one is marked.

    cap: the whole budget.  history: (run, epsilon spent after it), in order of time.  exhausted:
    a recovery of the ledger used up the rest, and is marked instead.
    """
    if exhausted:
        history, mark_last = [*history, ("recovery", cap)], "recovery"
    left = [cap] + [max(cap - spent, 0.0) for _, spent in history]
    high = _round_up(cap)
    x = Axis(low=0, high=len(history) + 1, start=44, end=426)
    y = Axis(low=0, high=high, start=216, end=20)
    parts = []
    for tick in _ticks(high):
        parts.append(f'<path d="M44 {number(y.at(tick))}H426" stroke="{GRID}"/>')
        parts.append(_text(38, y.at(tick) + 4, _short(tick), MUTED, 12, "end"))
    outline: list[tuple[float, float]] = []
    for i, value in enumerate(left):
        outline += [(x.at(i), y.at(value)), (x.at(i + 1), y.at(value))]
    area = [(x.start, y.start), *outline, (x.end, y.start)]
    parts.append(f'<polygon points="{_points(area)}" fill="{SOFT}" opacity="0.75"/>')
    parts.append(_line(outline, ACCENT, 2.4))
    last = len(history)
    fall = (x.at(last), y.at(left[-2]), y.at(left[-1]))
    parts.append(
        f'<path d="M{number(fall[0])} {number(fall[1])}V{number(fall[2])}" stroke="{BAD}" '
        f'stroke-width="4"/>'
    )
    side = "end" if last > 2 else "start"
    shift = -8 if side == "end" else 8
    parts.append(_text(fall[0] + shift, (fall[1] + fall[2]) / 2 + 4, mark_last, BAD, 12.5, side))
    every = max(1, math.ceil(len(history) / 6))
    room = 16 if len(history) <= 2 else 7
    for i, (run, _) in enumerate(history, start=1):
        if i == last or (i % every == 0 and last - i >= every):
            parts.append(_text(x.at(i), 234, _clip(run, room, "…"), MUTED, 11.5, "middle"))
    parts.append(_text(x.start + 3, 234, "start", MUTED, 11.5, "start"))
    parts.append(
        _text(235, 254, "epsilon left after each run, as the filter counts", MUTED, 12, "middle")
    )
    description = f"The budget starts at {cap:.2f}. " + " ".join(
        f"After {run}: {max(cap - spent, 0):.2f} left." for run, spent in history[-6:]
    )
    return _svg(key, "Budget left after each run", description, 264, parts)


def frontier(
    measure: str, points: Sequence[tuple[str, float, float]], *, key: str = "frontier"
) -> str:
    """What each epsilon bought: (run, epsilon, measure on the trained model), one dot a run."""
    values = [value for _, _, value in points]
    margin = (max(values) - min(values)) * 0.15 or abs(values[0]) * 0.1 or 1.0
    high = _round_up(max(epsilon for _, epsilon, _ in points) * 1.1)
    x = Axis(low=0, high=high, start=52, end=426)
    y = Axis(low=min(values) - margin, high=max(values) + margin, start=216, end=20)
    parts = []
    for tick in _ticks(high):
        parts.append(f'<path d="M{number(x.at(tick))} 20V216" stroke="{GRID}"/>')
        parts.append(_text(x.at(tick), 234, _short(tick), MUTED, 12, "middle"))
    for share in (0.0, 0.5, 1.0):
        value = y.low + share * (y.high - y.low)
        parts.append(f'<path d="M52 {number(y.at(value))}H426" stroke="{GRID}"/>')
        parts.append(_text(46, y.at(value) + 4, _short(value), MUTED, 12, "end"))
    for run, epsilon, value in points:
        parts.append(_circle(x.at(epsilon), y.at(value), ACCENT, PAPER))
        side = "end" if x.at(epsilon) > 320 else "start"
        shift = -10 if side == "end" else 10
        if len(points) <= 12:
            parts.append(
                _text(x.at(epsilon) + shift, y.at(value) + 4, _clip(run, 16, "…"), INK, 11.5, side)
            )
    parts.append(_text(239, 254, "epsilon of the run", MUTED, 12, "middle"))
    told = "; ".join(f"{run}: epsilon {e:.2f}, {_short(v)}" for run, e, v in points)
    return _svg(key, f"{measure} against epsilon", f"{told}.", 264, parts)


def dumbbells(
    title: str,
    unit: str,
    rows: Sequence[tuple[str, float, float, tuple[float, float] | None]],
    *,
    key: str = "utility",
) -> str:
    """From base to trained model, one line a row: (label, base, trained, interval of trained)."""
    values = [v for _, b, t, i in rows for v in (b, t, *(i or ()))]
    low, high = min(values), max(values)
    margin = (high - low) * 0.12 or abs(high) * 0.1 or 1.0
    x = Axis(low=low - margin, high=high + margin, start=14, end=426)
    parts = []
    for i, (label, base, trained, interval) in enumerate(rows):
        y = 36 + 58 * i
        parts.append(_text(14, y - 14, _clip(label, 56), INK, 12.5))
        parts.append(f'<path d="M14 {y}H426" stroke="{GRID}"/>')
        parts.append(_line([(x.at(base), y), (x.at(trained), y)], ACCENT, 3))
        if interval:
            a, b = number(x.at(interval[0])), number(x.at(interval[1]))
            parts.append(
                f'<path d="M{a} {y - 6}V{y + 6}M{a} {y}H{b}M{b} {y - 6}V{y + 6}" '
                f'stroke="{INK}" stroke-width="1.5"/>'
            )
        parts.append(_circle(x.at(base), y, PAPER, MUTED))
        parts.append(_circle(x.at(trained), y, ACCENT, ACCENT))
        first = "end" if base > trained else "start"
        other = "start" if base > trained else "end"
        parts.append(_text(x.at(base), y + 20, _short(base), MUTED, 12, first))
        parts.append(_text(x.at(trained), y + 20, _short(trained), ACCENT, 12, other))
    bottom = 36 + 58 * len(rows)
    parts.append(_circle(20, bottom - 2, PAPER, MUTED))
    parts.append(_text(32, bottom + 2, "base", MUTED, 12))
    parts.append(_circle(84, bottom - 2, ACCENT, ACCENT))
    parts.append(_text(96, bottom + 2, f"trained ({unit})" if unit else "trained", MUTED, 12))
    told = "; ".join(f"{label}: {_short(b)} before, {_short(t)} after" for label, b, t, _ in rows)
    return _svg(key, title, f"{told} ({unit}).", bottom + 12, parts)


def standalone(svg: str) -> str:
    """The same chart as a file of its own, in colours that need no page around it."""
    return re.sub(r"var\(--\w+,(#[0-9a-f]+)\)", r"\1", svg) + "\n"


def _svg(key: str, title: str, description: str, height: float, parts: Sequence[str]) -> str:
    name = f"plot-{key}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {number(height)}" role="img" '
        f'aria-labelledby="{name}-t {name}-d" xmlns="http://www.w3.org/2000/svg">'
        f'<title id="{name}-t">{html.escape(title)}</title>'
        f'<desc id="{name}-d">{html.escape(description)}</desc>' + "".join(parts) + "</svg>"
    )


def _text(x: float, y: float, words: str, colour: str, size: float, anchor: str = "start") -> str:
    return (
        f'<text x="{number(x)}" y="{number(y)}" font-size="{number(size)}" fill="{colour}" '
        f'text-anchor="{anchor}">{html.escape(words)}</text>'
    )


def _circle(x: float, y: float, fill: str, stroke: str) -> str:
    return (
        f'<circle cx="{number(x)}" cy="{number(y)}" r="6" fill="{fill}" stroke="{stroke}" '
        'stroke-width="2"/>'
    )


def _line(points: Sequence[tuple[float, float]], colour: str, width: float) -> str:
    return (
        f'<path d="M{_points(points, "L")}" fill="none" stroke="{colour}" '
        f'stroke-width="{number(width)}" stroke-linejoin="round"/>'
    )


def _points(points: Sequence[tuple[float, float]], joint: str = " ") -> str:
    return joint.join(f"{number(x)},{number(y)}" for x, y in points)


def _key(entries: Sequence[tuple[str, str, str]], y: float) -> list[str]:
    parts, x = [], 54.0
    for colour, words, dashes in entries:
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        parts.append(
            f'<path d="M{number(x)} {number(y - 4)}h24" stroke="{colour}" stroke-width="2.4"'
            f"{dashed}/>"
        )
        parts.append(_text(x + 30, y, words, INK, 12))
        x += 48 + 7.0 * len(words)
    return parts


def _log_grid(x: Axis, y: Axis) -> list[str]:
    parts = []
    for tick, words in ((1e-3, "0.001"), (1e-2, "0.01"), (1e-1, "0.1"), (1.0, "1")):
        at, across = number(x.at(tick)), number(y.at(tick))
        parts.append(f'<path d="M{at} {number(y.end)}V{number(y.start)}" stroke="{GRID}"/>')
        parts.append(f'<path d="M{number(x.start)} {across}H{number(x.end)}" stroke="{GRID}"/>')
        parts.append(_text(x.at(tick), y.start + 17, words, MUTED, 12, "middle"))
        parts.append(_text(x.start - 6, y.at(tick) + 4, words, MUTED, 12, "end"))
    return parts


def _round_up(value: float) -> float:
    """The next of 1, 1.5, 2, 3, 4, 5, 6, 8, 10 times a power of ten."""
    if value < 1e-12:  # nothing to see, and no room for logarithms
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    steps = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)
    return next((step * power for step in steps if step * power >= value), 10 * power)


def _ticks(high: float) -> list[float]:
    parts = next(n for n in (4, 3, 5, 2) if _is_short(high / n) or n == 2)
    return [high * i / parts for i in range(parts + 1)]


def _is_short(value: float) -> bool:
    return len(_short(value)) <= 3


def _short(value: float) -> str:
    return f"{value:.3g}"


def _clip(words: str, length: int, mark: str = " …") -> str:
    return words if len(words) <= length else words[:length].rstrip() + mark
