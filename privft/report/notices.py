"""What must not be overlooked, in sentences that every rendering can print as they are.

Of waivers and recoveries the HTML page says the same with markup (`templates/report.html`).
"""

from __future__ import annotations

import math

from privft.audit.rates import Exposure, exposure_of_ranks, share_interval
from privft.report.countersigned import Countersigned
from privft.report.facts import Facts
from privft.report.findings import AuditFacts
from privft.report.wording import round_up, unit_words


def incomplete(signed: Countersigned) -> list[str]:
    """That signatures which the policy asks for are not there yet."""
    if not signed.missing:
        return []
    return [
        f"Not complete yet: the policy asks for {signed.wanted} "
        f"countersignature{'' if signed.wanted == 1 else 's'} of this report and it has "
        f"{len(signed.names)}. Until then nothing may leave."
    ]


def waivers(facts: Facts) -> list[str]:
    """Who released in spite of a failed audit, why, and until when."""
    return [
        f"Waived until {waiver.expires[:10]} by "
        f"{' and '.join(row.name for row in waiver.signatures)}: {waiver.reason}"
        for waiver in facts.waivers
    ]


def recoveries(facts: Facts) -> list[str]:
    """Where the ledger has a gap."""
    return [
        f"The ledger has a gap: it was restored from a backup on {lost.time[:10]}, and "
        f"{max(lost.seen - lost.kept, 0)} or more entries are lost. "
        f"{len(lost.signers)} people took that on themselves: {lost.reason} "
        + (
            "The budget of these data counts as used up since then."
            if lost.exhausted
            else "The budget of these data is younger than that."
        )
        for lost in facts.ledger.recoveries
    ]


def limits(facts: Facts) -> list[str]:
    """What this report does not show: what the run said of itself, and what holds for every run."""
    many = unit_words(facts.guarantee.unit)["many"]
    return [
        *facts.limits,
        "The history of earlier runs is copied from the ledger. Only the entries of this run come "
        "with proofs; the whole ledger can be had by “privft ledger export”.",
        f"A group of k {many} whose texts resemble each other is protected k times less: for two, "
        f"epsilon is about {round_up(2 * facts.guarantee.epsilon)}.",
        "The guarantee is about what the model gives away. It says nothing on whether the model is "
        "right, fair, or fit for use.",
    ]


def secrets(audit: AuditFacts) -> list[str]:
    """What became of the planted secrets, with 95% intervals and what that does not say."""
    out, ranks, lines = audit.extraction, audit.exposure, []
    if out is not None:
        lines.append(
            "Shown the words before the number, and taking the likeliest next token each time, the "
            f"model wrote out {_share(out.extracted_of_included, out.included)} of the planted "
            f"secrets that were in the run, and {_share(out.extracted_of_excluded, out.excluded)} "
            "of those that were not."
        )
    if ranks is not None and ranks.ranks_included and ranks.ranks_excluded:
        inside = exposure_of_ranks(ranks.ranks_included, ranks.candidates)
        outside = exposure_of_ranks(ranks.ranks_excluded, ranks.candidates)
        lines.append(
            f"Among {ranks.candidates} sentences of the same form that were never in, those that "
            f"were in stand out by {_bits(inside)} on average, those that were not by "
            f"{_bits(outside)}; chance gives {inside.chance:.2f}, and {inside.ceiling:.2f} is the "
            "most that so few sentences can show."
        )
    if lines:
        lines.append(
            "Both describe and decide nothing. They hold for this way of asking: many tries, or "
            "other words, may get more out of the model."
        )
    return lines


def _share(successes: int, trials: int) -> str:
    if not trials:
        return "none"
    low, high = share_interval(successes, trials)
    around = f"{math.floor(100 * low)}% to {math.ceil(100 * high)}%"
    return f"{successes} of {trials} (95% interval {around})"


def _bits(found: Exposure) -> str:
    around = found.interval
    if around is None:
        return f"{found.bits:.2f} bits"
    return f"{found.bits:.2f} bits (95% interval {around[0]:.2f} to {around[1]:.2f})"
