"""privft vault inspect, privft vault verify: what a vault is, and whether it is whole."""

from __future__ import annotations

import click

from privft.cli.opened import opened_vault, plain
from privft.cli.session import Acting, json_option, opening, print_json, say, session, table
from privft.errors import UsageError
from privft.stages import data
from privft.vault import store


@click.command("inspect")
@click.argument("dataset")
@click.option("--private", is_flag=True, help="Also what only the key shows.")
@json_option
@opening
@click.pass_context
def inspect(
    ctx: click.Context,
    dataset: str,
    private: bool,
    as_json: bool,
    who: Acting,
) -> None:
    """What a vault is: files, recipients, epoch, root, last checkpoint."""
    opened = session(ctx)
    if private:
        with opened_vault(opened, dataset, who) as (_, vault):
            facts = vault.inspect()
    else:
        with opened.ledger() as ledger:
            data.dataset_entry(ledger, dataset)
            facts = store.inspect(
                opened.workspace.vault_path(dataset),
                signer_keys=opened.workspace.signer_keys(ledger),
            )
    if as_json:
        print_json(facts)
        return
    # a checkpoint is a signed note: whose ledger, how many entries, their root, signatures
    origin, entries, root = facts["checkpoint"].splitlines()[:3]
    facts["checkpoint"] = f"{entries} entries of {origin}, root {root}"
    rows = [[key, plain(value)] for key, value in facts.items()]
    table(f"Vault {dataset}", ["what", "value"], rows)


@click.command("verify")
@click.argument("dataset")
@click.option(
    "--adopt", is_flag=True, help="Complete a change that was killed before its ledger entry."
)
@click.option(
    "--without-key", is_flag=True, help="Check signature and files alone; nobody need open it."
)
@opening
@click.pass_context
def verify(
    ctx: click.Context,
    dataset: str,
    adopt: bool,
    without_key: bool,
    who: Acting,
) -> None:
    """Check every file and cell of a vault, and that it is the version the ledger names."""
    opened = session(ctx)
    if adopt and without_key:
        raise UsageError("--adopt needs the key", hint="leave out --without-key")
    if adopt:
        actor, opener = opened.identity(who), opened.opener(who)
        with opened.ledger() as ledger:
            completed = data.adopt(opened.workspace, ledger, dataset, opener, actor=actor)
        if completed is None:
            say("nothing was missing")
        else:
            say(f"the interrupted change is complete: the ledger has its {completed} entry")
        if completed == "vault-erased":
            say(f"the certificate of the erasure is in {opened.workspace.folder / 'certificates'}")
        return
    if without_key:
        with opened.ledger() as ledger:
            check = data.verify_files(opened.workspace, ledger, dataset)
    else:
        with opened_vault(opened, dataset, who) as (_, vault):
            check = vault.verify()
    what = "files are whole" if without_key else "whole"
    click.echo(
        f"{dataset}: {what} (version {check.sequence}, {check.files} files, epoch {check.epoch}, "
        f"root {check.root[:16]})"
    )
    if check.strangers:
        say(f"{len(check.strangers)} files do not belong to it; the next change removes them")
