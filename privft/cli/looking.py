"""privft vault inspect, verify, prove, check-proof: what a vault is, whether it is whole, and what
can be shown of it to others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from privft.cli.opened import opened_vault, plain
from privft.cli.session import FILE, Acting, json_option, opening, print_json, say, session, table
from privft.errors import IntegrityError, UsageError
from privft.report.trust import parse_trust
from privft.stages import data, trustroot
from privft.vault import proofs, store
from privft.vault.intake import identifier


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


@click.command("prove")
@click.argument("dataset")
@click.option("--unit-file", type=FILE, required=True, help="A file that holds the unit's id.")
@opening
@click.pass_context
def prove(ctx: click.Context, dataset: str, unit_file: Path, who: Acting) -> None:
    """Print a proof that a unit is, or is not, in the newest version of a vault."""
    unit = unit_in(unit_file)
    with opened_vault(session(ctx), dataset, who) as (_, vault):
        click.echo(vault.prove(unit))
    say("it betrays about how many units there are: give it to those who may know")


@click.command("check-proof")
@click.argument("proof", type=FILE)
@click.option(
    "--certificate", type=FILE, help="The erasure's certificate: is it about the same unit?"
)
@click.option("--trust", type=FILE, help="The trust root; by default the workspace around here.")
@json_option
@click.pass_context
def check_proof(
    ctx: click.Context, proof: Path, certificate: Path | None, trust: Path | None, as_json: bool
) -> None:
    """Check a proof about a unit, without the vault."""
    if trust is not None:
        keys = trustroot.vault_signers(parse_trust(_read(trust)))
    else:
        opened = session(ctx)
        with opened.ledger() as ledger:
            keys = opened.workspace.signer_keys(ledger)
    envelope = None if certificate is None else _envelope(_read(certificate))
    shown = proofs.check(_read(proof), keys, certificate=envelope)
    facts = {
        "present": shown.present,
        "certificate": shown.certificate is not None,
        "dataset": shown.manifest.dataset,
        "lineage": shown.manifest.lineage,
        "sequence": shown.manifest.sequence,
        "time": shown.manifest.time,
        "manifest_digest": shown.manifest.digest,
    }
    if as_json:
        print_json(facts)
        return
    unit = "a unit" if certificate is None else "the unit that the certificate says was erased"
    click.echo(
        f"{unit} {'is' if shown.present else 'is not'} in version {shown.manifest.sequence} of "
        f"{shown.manifest.dataset} ({shown.manifest.time}, manifest {shown.manifest.digest[:16]})"
    )


def unit_in(path: Path) -> str:
    """The id of a unit, from a file that holds nothing else, as an intake would have taken it."""
    try:
        return identifier(_read(path).decode())
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8", hint="one id, as text, and nothing else") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def _envelope(text: bytes) -> dict[str, Any]:
    try:
        envelope = json.loads(text)
    except (ValueError, RecursionError):
        envelope = None
    if not isinstance(envelope, dict):
        raise IntegrityError("a certificate that is no envelope")
    return envelope
