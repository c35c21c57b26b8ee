"""Starting the ranks of a run on this host: torchrun's own agent, inside of this process.

`privft train PLAN --launcher torchrun -- ARGUMENTS` hands the arguments to torchrun's parser and
runs its agent here, in the locked-down process (`hardening`), instead of in a program of its own.
The agent starts `--nproc-per-node` processes of `privft.cli.rank`, watches them, and when one ends
badly ends the others: SIGTERM, and SIGKILL after `--shutdown-timeout` seconds (30).

**What the ranks are told** (`Order`), a passphrase or PIN among it, never stands in arguments or
environment.  Each rank reads one message from a socket pair that it finds as descriptor 0: the
kernel hands it over once, keeps it out of swap, and no path in /proc opens it.  The operator is
asked once, whatever the number of ranks; each rank then opens the vault itself.  Key files are
named, not sent.

**One host** (`--nproc-per-node N` and nothing more).  Nobody outside has a part in it, so nobody
outside is listened to.  torchrun's own meeting places open a TCP port to everyone, so none of
them is used: the agent, being alone, meets itself (`_OneHost`), and the ranks find each other
through a file in a folder of mode 0700.  gloo and NCCL are bound to the loopback device.  Who else
has an account on the host could still try to step between two sockets there, since torch does not
authenticate: a host for private runs has no such accounts.

**Several hosts** (`--nnodes M --node-rank K --master-addr HOST --master-port PORT`, the same on
each).  Refused unless the config says in `ranks.link` which interface leads to the others and what
protects it; gloo and NCCL are bound to that interface, and the report repeats the operator's word.
torchrun's port of meeting is open on all interfaces of its host, and whoever reaches it can
misdirect the others: a firewall has to leave it to the link.  The host with node rank 0 has rank 0:
it keeps the run's folder and writes the ledger, which is why it must be named, and why rendezvous
that deal out ranks by themselves (c10d) are refused.

**Restarts are refused** (`--max-restarts`), and numbers of hosts that change (`--nnodes 1:4`): a
run goes on by `privft train --resume`, which looks at journal and charge, and by nothing else.  Nor
may torchrun write the ranks' output to files.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import socket
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.distributed import FileStore, HashStore, PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.launcher.api import elastic_launch

from privft.config import RunConfig
from privft.errors import PrivftError, UsageError

if TYPE_CHECKING:  # torch.distributed offers it, but not to type checkers
    from torch._C._distributed_c10d import Store

RANK_MODULE = "privft.cli.rank"
_LOOPBACK = "lo"
_ONE_HOST = "one-host"
_LARGEST_ORDER_BYTES = 1 << 16
_REFUSED = {
    # torchrun's name of it: (what it must be, what to do instead)
    "max_restarts": (0, "privft train --resume goes on with a run that stopped"),
    "module": (False, "privft itself is what the ranks run"),
    "no_python": (False, "privft itself is what the ranks run"),
    "run_path": (False, "privft itself is what the ranks run"),
    "log_dir": (None, "privft writes no logs"),
    "redirects": ("0", "privft writes no logs"),
    "tee": ("0", "privft writes no logs"),
    "logs_specs": (None, "privft writes no logs"),
    "event_log_handler": ("null", "privft writes no logs"),
}


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a rank is told: the command that was typed, in the words of `cli.session.Acting`.

    secret: a passphrase or PIN in hex.  store: the file through which the ranks of one host find
    each other; None where torchrun's environment names a place.  parent: whom not to outlive.
    """

    workspace: str
    ledger_password: str | None
    plan: str | None
    run: str | None
    config_folder: str | None
    name: str | None
    key_file: str | None
    service: str | None
    token: str | None
    secret: str | None
    show_private: bool
    as_json: bool
    store: str | None = None
    parent: int = 0

    def to_bytes(self) -> bytes:
        """As one message."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @staticmethod
    def received() -> Order:
        """The message on descriptor 0, which is closed thereafter."""
        with socket.socket(fileno=os.dup(0)) as place:
            message = place.recv(_LARGEST_ORDER_BYTES)
        empty = os.open(os.devnull, os.O_RDONLY)
        os.dup2(empty, 0)
        os.close(empty)
        return Order(**json.loads(message))


def meeting_place(order: Order, size: int) -> Store:
    """Where a rank finds the others."""
    if order.store is not None:
        return FileStore(order.store, size)
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agents = TCPStore(host, port, is_master=False, timeout=timedelta(minutes=10))
    return PrefixStore("privft", agents)


def launch(order: Order, arguments: Sequence[str], config: RunConfig) -> int:
    """Start this host's ranks and wait for their end; the exit code that they came to.

    arguments: torchrun's, but for what it is to run.
    Errors: `UsageError` before anything is started; `PrivftError` when a rank was killed.
    """
    if config.selection is not None:
        raise UsageError(
            "a randomly stopped sweep is trained by one process",
            hint="privft train PLAN without --launcher",
        )
    wanted = _parsed(arguments)
    hosts = _hosts(wanted, config)
    link = config.ranks.link
    interface = _LOOPBACK if hosts == 1 or link is None else link.interface
    if interface not in (name for _, name in socket.if_nameindex()):
        raise UsageError(
            f"this host has no network interface {interface}",
            hint="ranks.link.interface in the config names the one that leads to the other hosts",
        )
    if hosts == 1:
        rendezvous_handler_registry.register(_ONE_HOST, _OneHost)
        wanted.rdzv_backend, wanted.rdzv_endpoint, wanted.rdzv_id = _ONE_HOST, "", _ONE_HOST
    elif wanted.master_port is None:
        wanted.master_port = 29500  # torchrun's own
    with _meeting_folder() as folder, _environment(interface, config, wanted):
        store = os.fspath(folder / "store") if hosts == 1 else None
        wanted.log_dir = os.fspath(folder)  # empty folders of its own; nothing is written there
        settings, _, _ = torchrun.config_from_args(wanted)
        order = dataclasses.replace(order, store=store, parent=os.getpid())
        _lay_out(order, settings.nproc_per_node)
        try:
            elastic_launch(settings, sys.executable)("-P", "-u", "-m", RANK_MODULE)
        except ChildFailedError as failed:
            return _code({rank: each.exitcode for rank, each in failed.failures.items()})
        except SignalException as stopped:
            if stopped.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise PrivftError(
                f"stopped by {stopped.sigval.name}, and all ranks of this host with it",
                hint=_RESUME,
            ) from None
        except RuntimeError as error:  # torch.distributed's own are among them
            raise PrivftError(
                f"the ranks of this host did not meet those of {hosts - 1} others",
                hint="are --master-addr and --master-port the same everywhere, and can they be "
                "reached over the link?",
            ) from error
    return 0


_RESUME = "privft runs list names the run, privft train --resume RUN goes on with it"


def _parsed(arguments: Sequence[str]) -> Namespace:
    """torchrun's reading of the arguments; raises `UsageError` for what privft does not allow."""
    wanted: Namespace = torchrun.parse_args(  # type: ignore[no-untyped-call]
        [*arguments, RANK_MODULE]
    )
    if wanted.training_script != RANK_MODULE or wanted.training_script_args:
        raise UsageError(
            f"torchrun is told to run {wanted.training_script}",
            hint="after -- stand options alone, as in: -- --nproc-per-node 2",
        )
    for name, (allowed, hint) in _REFUSED.items():
        if getattr(wanted, name) != allowed:
            raise UsageError(f"--{name.replace('_', '-')} of torchrun is refused", hint=hint)
    return wanted


def _hosts(wanted: Namespace, config: RunConfig) -> int:
    """How many hosts; raises `UsageError` unless the link between them is spoken for."""
    least, _, most = wanted.nnodes.partition(":")  # torchrun's own default is 1:1
    if not least.isdigit() or int(least) < 1 or most not in ("", least):
        raise UsageError(
            f"expected a fixed number of hosts, got --nnodes {wanted.nnodes}",
            hint="a run has the ranks that it began with; --resume may have others, see the README",
        )
    hosts = int(least)
    if hosts == 1:
        named = (wanted.rdzv_endpoint or wanted.master_addr).rpartition(":")
        if (named[0] or named[2]) not in ("localhost", "127.0.0.1"):
            raise UsageError(
                f"one host, and a rendezvous at {wanted.rdzv_endpoint or wanted.master_addr}",
                hint="--nnodes says how many hosts take part; one alone needs no rendezvous",
            )
        return hosts
    if config.ranks.link is None:
        raise UsageError(
            f"{hosts} hosts, and the config does not say what protects the link between them",
            hint="ranks: {link: {interface: wg0, protected_by: WireGuard between both enclaves}}; "
            "sums without noise cross it",
        )
    if wanted.rdzv_backend != "static" or wanted.standalone:
        raise UsageError(
            f"a rendezvous of kind {wanted.rdzv_backend} deals out ranks by itself",
            hint="name the host that keeps the run: --node-rank 0 there, --node-rank 1 and so on "
            "elsewhere, --master-addr HOST --master-port PORT",
        )
    return hosts


class _OneHost(RendezvousHandler):
    """The meeting of an agent with itself, in memory."""

    def __init__(self, parameters: Any) -> None:
        self._name = str(parameters.run_id)

    def get_backend(self) -> str:
        return _ONE_HOST

    def next_rendezvous(self) -> RendezvousInfo:
        return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo("localhost", 0))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._name

    def shutdown(self) -> bool:
        return True


def _lay_out(order: Order, copies: int) -> None:
    """Put one copy of the order for each rank where descriptor 0 will lead them."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    message = order.to_bytes()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * copies * max(len(message), 4096))
    ours.setblocking(False)
    try:
        for _ in range(copies):
            ours.send(message)
    except BlockingIOError:
        raise UsageError(f"{copies} ranks on one host are more than can be told") from None
    os.dup2(theirs.fileno(), 0)
    theirs.close()
    ours.close()


@contextmanager
def _meeting_folder() -> Iterator[Path]:
    """A folder for the owner's eyes alone (mode 0700), gone at the end."""
    with tempfile.TemporaryDirectory(prefix="privft-ranks-") as folder:
        yield Path(folder)


@contextmanager
def _environment(interface: str, config: RunConfig, wanted: Namespace) -> Iterator[None]:
    """What the agent and the ranks go by: the interface, threads, and no look-up of names.

    The agent puts the full name of its host into event records that nobody reads, and would ask
    the domain name system for it: a look-up that no operator named.
    """
    os.environ.update(GLOO_SOCKET_IFNAME=interface, NCCL_SOCKET_IFNAME=interface)
    per_host = torchrun.determine_local_world_size(wanted.nproc_per_node)
    threads = config.performance.threads or max(1, (os.cpu_count() or 1) // per_host)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    full_name = socket.getfqdn
    socket.getfqdn = lambda name="": name or socket.gethostname()
    logging.disable(logging.CRITICAL)  # the agent's talk; what went wrong, the ranks say
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        socket.getfqdn = full_name


def _code(codes: dict[int, int]) -> int:
    """The exit code of the failure that was the first cause, as far as codes tell.

    codes: by rank; negative for a signal.  A rank that ends with 1 may only have lost another;
    one that ended by SIGTERM was ended by the agent.
    """
    own = [code for _, code in sorted(codes.items()) if code > 0]
    telling = [code for code in own if code != 1]
    if own:
        return (telling or own)[0]
    killed = {rank: -code for rank, code in codes.items() if -code != signal.SIGTERM} or codes
    rank = min(killed)
    raise PrivftError(
        f"rank {rank} was killed by signal {abs(killed[rank])}, and the run stopped", hint=_RESUME
    )
