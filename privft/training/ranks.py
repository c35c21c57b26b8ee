"""Several processes, one run: the same sample, the same noise, the same guarantee.

A *rank* is one of `size` processes, on one host or on several, that torchrun started and that
torch.distributed joins (gloo for tensors on the CPU, NCCL for those on CUDA devices).  Nothing that
the guarantee depends on knows of ranks: coins and noise are keyed by (secret, step, name), so that
every rank draws the same ones.  A step with ranks is the step of `loop` with three additions:

    rank 0 journals the digest of the state, durably
    all compare their digests           `agree`: nobody passes before rank 0's intent is durable,
                                        and nobody goes on beside a rank in another state
    all draw the same sample; each takes its part     `share`: balanced by padded tokens
    each clips and sums its part
    all add up their sums               `add_up`: one reduction of a flat tensor of each type
    all draw the same noise, once, and take the same optimiser step

Empty parts.  A rank without units has a sum of zeros and takes part in everything else: there is
no branch on data here either, so no rank waits for a message that another has no reason to send.

The same result.  Float64 sums depend on their order, so on N ranks a sum equals that of one process
up to rounding, and a step may be done again on N ranks only.  Whole numbers (`discrete`) do not:
there the result is the same to the last bit for any number of ranks, where a unit's own gradient is
(`kernels`; on CPUs).  `alike_on_any_number` says which of both a run is.

What crosses between ranks: digests; sums of clipped gradients *without noise*, which are private;
at the beginning, sealed bytes (`stages.ranked`).  torch's transports neither encrypt nor
authenticate, so the wire has to be private: on one host the loopback device, between hosts a link
that the config says is protected (`stages.launching` binds them to it).  Noise in shares, so many
for each rank, was not chosen: it would make the sum of the noise depend on the number of ranks.

A rank that is lost or stuck.  Every wait for another rank ends after `timeout_s`, with an error; a
peer that died is noticed at once.  Nothing is tried again: the run stops, as it does when a single
process dies, and `privft train --resume` goes on.  Before the first step waits may be longer:
ten minutes until all have come, and a day until rank 0 has checked data and mechanism.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from privft.budget.mechanism import Mechanism
from privft.errors import IntegrityError, PrivftError
from privft.training.examples import UnitExamples

if TYPE_CHECKING:  # torch.distributed offers it, but not to type checkers
    from torch._C._distributed_c10d import Store

_READY = "privft/ready"
_HERE = "privft/here"
_PREPARING = timedelta(days=1)
_GATHERING = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """All processes of a run, seen from the one with number `rank`.

    hosts: how many machines they are on.  store: torch's, None for a process alone.
    """

    rank: int = 0
    size: int = 1
    hosts: int = 1
    timeout_s: int = 600
    store: Store | None = None

    def share(self, units: Sequence[UnitExamples]) -> list[UnitExamples]:
        """The units of the sample that this rank computes, in the order of the sample."""
        return shares(units, self.size)[self.rank]

    def agree(self, step: int, digest: str) -> None:
        """Return when all ranks are in the state of this digest (SHA-256 in hex).

        Errors: `IntegrityError` when one is not.
        Guarantees: on return every rank has called it, for this state.
        """
        if self.size == 1:
            return
        own = torch.frombuffer(bytearray.fromhex(digest), dtype=torch.uint8)
        found = [torch.empty_like(own) for _ in range(self.size)]
        with self._waiting():
            dist.all_gather(found, own)
        strangers = [rank for rank, other in enumerate(found) if not torch.equal(other, found[0])]
        if strangers:
            raise IntegrityError(
                f"{len(strangers)} of {self.size} ranks are in another state than rank 0 at step "
                f"{step}: rank {', '.join(map(str, strangers))}",
                hint="all hosts need the same processor type, versions, threads, model and data",
            )

    def add_up(self, totals: Mapping[str, torch.Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, in place.

        totals: the same names, shapes and types (float64 or int64) on every rank.
        """
        if self.size == 1:
            return
        alike: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
        for total in totals.values():
            alike.setdefault((total.dtype, total.device), []).append(total)
        for group in alike.values():
            flat = torch.cat([total.flatten() for total in group])
            with self._waiting():
                dist.all_reduce(flat)
            parts = torch.split(flat, [total.numel() for total in group])
            for total, part in zip(group, parts, strict=True):
                total.copy_(part.view_as(total))

    def tell(self, messages: Sequence[bytes]) -> None:
        """Rank 0: give these messages to all others, who are in `hear`."""
        if self.store is None:
            return
        self.store.set(_READY, "1")
        with self._waiting():
            dist.broadcast(torch.tensor([len(message) for message in messages]), src=0)
            for message in messages:
                if message:
                    dist.broadcast(torch.frombuffer(bytearray(message), dtype=torch.uint8), src=0)

    def hear(self, count: int) -> list[bytes]:
        """All others: the `count` messages of rank 0, whenever it has checked what it must."""
        if self.store is None:
            raise ValueError("expected several ranks, got one that is alone")
        with self._waiting():
            self.store.wait([_READY], _PREPARING)
            lengths = torch.zeros(count, dtype=torch.int64)
            dist.broadcast(lengths, src=0)
            messages = [torch.empty(length, dtype=torch.uint8) for length in lengths.tolist()]
            for message in messages:
                if len(message):
                    dist.broadcast(message, src=0)
        return [message.numpy().tobytes() for message in messages]

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # torch.distributed's own are among them
            raise PrivftError(
                f"rank {self.rank} of {self.size} lost another rank, or waited for it longer than "
                f"{self.timeout_s} s",
                hint="privft runs list names the run, privft train --resume RUN goes on with it; "
                "ranks.timeout_s in the config is for steps that take longer",
            ) from error


ALONE = Ranks()


def shares(units: Sequence[UnitExamples], size: int) -> list[list[UnitExamples]]:
    """The units dealt to `size` ranks: the largest first, each to the rank that has the fewest
    padded tokens so far; within a share in the order of `units`.

    Guarantees: every unit is in exactly one share; a function of the units alone, so all ranks
    come to the same; no share exceeds another by more than the tokens of its smallest unit.
    """
    loads = [(0, rank) for rank in range(size)]
    mine: list[list[int]] = [[] for _ in range(size)]
    for place in sorted(range(len(units)), key=lambda place: -_padded_tokens(units[place])):
        tokens, rank = loads[0]
        mine[rank].append(place)
        heapq.heapreplace(loads, (tokens + _padded_tokens(units[place]), rank))
    return [[units[place] for place in sorted(places)] for places in mine]


def _padded_tokens(unit: UnitExamples) -> int:
    return unit.bucket * len(unit.examples) if unit.examples else 0


def alike_on_any_number(mechanism: Mechanism, device: torch.device) -> bool:
    """Whether a step has the same bits on any number of ranks: its sums are of whole numbers, and
    companions do not change a unit's own."""
    return mechanism.noise == "discrete-gaussian" and device.type == "cpu"


@contextmanager
def joined(
    store: Store, *, rank: int, size: int, hosts: int, local_rank: int, timeout_s: int
) -> Iterator[Ranks]:
    """This process as rank `rank` of `size`, until all is done.

    store: where the ranks find each other.  local_rank: the CUDA device to take, if there are any.
    Errors: `PrivftError` when not all have come within ten minutes.
    """
    ranks = Ranks(rank=rank, size=size, hosts=hosts, timeout_s=timeout_s, store=store)
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(local_rank)
    with ranks._waiting():
        store.set(f"{_HERE}/{rank}", "1")  # hosts may start minutes apart
        store.wait([f"{_HERE}/{other}" for other in range(size)], _GATHERING)
        dist.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout_s),
        )
    yield ranks
    # After an error the process ends, and the group with it: to leave it in order would be to
    # wait for ranks that may be gone.
    dist.destroy_process_group()
