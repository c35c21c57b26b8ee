"""What a run's config says of several processes: the link between their hosts, and how patient they
are with each other.

How many there are stands on the command line (`privft train --launcher`), because neither plan nor
price depends on it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from privft.strictyaml import Strict


class LinkConfig(Strict):
    """What lies between the hosts of a run, in the operator's word, which the report repeats.

    Sums of clipped gradients cross it before noise is added, and torch neither encrypts nor
    authenticates what it sends: the link must do both, or nobody else may be on it.
    """

    interface: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$")]
    """The network interface that leads there, by the same name on every host (wg0)."""
    protected_by: Annotated[str, Field(pattern=r"^\S[^\n]{2,199}$")]
    """What protects it (WireGuard between the two enclaves)."""


class RanksConfig(Strict):
    """Several processes for one run (`privft train --launcher`); accounting never sees them."""

    link: LinkConfig | None = None
    """Needed for more than one host."""
    timeout_s: Annotated[int, Field(ge=1, le=86400)] = 600
    """How long a rank waits for another before the run stops: longer than the slowest step."""
    shard_base: bool = False
    """Each rank keeps one part of the frozen base and gathers a layer when it runs (FSDP2): less
    memory for more messages, and the same bits."""
