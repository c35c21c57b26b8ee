"""One rank of `privft train --launcher`: what torchrun starts, and nobody by hand.

    python -m privft.cli.rank        with an `Order` on descriptor 0 and torchrun's RANK and so on

Rank 0 is the command that was typed: it trains and says so.  The others follow it in silence.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from privft import gate
from privft.cli import exit_code_of
from privft.cli.session import Acting, Session
from privft.cli.train import the_plan, train_here
from privft.errors import UsageError
from privft.hardening import die_with, lock_down
from privft.workspace import Workspace


def work() -> None:
    """Take part, to the end."""
    from privft.stages.launching import Order, meeting_place
    from privft.training.ranks import joined

    order = Order.received()
    die_with(order.parent)
    workspace = Workspace.open(Path(order.workspace), ledger_password=order.ledger_password)
    opened = Session(workspace=workspace, no_input=True)
    who = Acting(
        name=order.name,
        key_file=None if order.key_file is None else Path(order.key_file),
        service=order.service,
        token=order.token,
    )
    secret = None if order.secret is None else bytes.fromhex(order.secret)
    opener = opened.opener_with(who, secret)
    plan_file = None if order.plan is None else Path(order.plan)
    folder = None if order.config_folder is None else Path(order.config_folder)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    actor = opened.identity(who)
    plan = the_plan(opened, plan_file, order.run, by=None if rank else actor)
    with joined(
        meeting_place(order, size),
        rank=rank,
        size=size,
        hosts=int(os.environ["GROUP_WORLD_SIZE"]),
        local_rank=int(os.environ["LOCAL_RANK"]),
        timeout_s=plan.the_config().ranks.timeout_s,
    ) as ranks:
        if rank == 0:
            train_here(
                opened,
                who,
                plan,
                plan_file=plan_file,
                run=order.run,
                config_folder=folder,
                show_private=order.show_private,
                as_json=order.as_json,
                opener=opener,
                ranks=ranks,
            )
            return
        with workspace.ledger(writable=False) as ledger:
            if folder is None and plan_file is not None:
                folder = plan_file.parent
            gate.follow(
                workspace,
                ledger,
                plan,
                config_folder=folder,
                actor=actor,
                opener=opener,
                ranks=ranks,
            )


def main() -> None:
    """Lock down, work, and end with the code that errors have."""
    if "RANK" not in os.environ:
        raise SystemExit(exit_code_of(_refuse))
    lock_down()
    sys.exit(exit_code_of(work))


def _refuse() -> None:
    raise UsageError(
        "ranks are started by a launcher", hint="privft train PLAN --launcher torchrun"
    )


if __name__ == "__main__":
    main()
