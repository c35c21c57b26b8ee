"""What must not be overlooked, in sentences for renderings that have no markup of their own.

The HTML page says the same with headings and links (`templates/report.html`).
"""

from __future__ import annotations

from privft.report.facts import Facts


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
        f"{max(lost.seen - lost.kept, 0)} or more entries are lost. {lost.reason} "
        + (
            "The budget of these data counts as used up since then."
            if lost.exhausted
            else "The budget of these data is younger than that."
        )
        for lost in facts.ledger.recoveries
    ]


def secrets(facts: Facts) -> list[str]:
    """What became of the planted secrets."""
    out, bits, lines = facts.audit.extraction, facts.audit.exposure, []
    if out is not None:
        lines.append(
            f"Given its beginning, the model wrote out {out.extracted_of_included} of "
            f"{out.included} planted secrets, and {out.extracted_of_excluded} of {out.excluded} "
            "that were never in."
        )
    if bits is not None:
        lines.append(
            f"Planted secrets stand out by {bits.mean_bits_included:.2f} bits on average, those "
            f"that were never in by {bits.mean_bits_excluded:.2f}; a secret that the model does "
            f"not know has 1.44, and {bits.ceiling_bits:.2f} is the most that could show."
        )
    return lines
