"""Checking a released folder: offline, without the data, without base weights, without torch.

What the folder holds is in `report.release`.  `verify_release` answers with one row a check, in
this order; a check that needs what an earlier one failed to establish is not passed, and says so:

    trust root  has not expired
    files       the folder holds exactly its files, all of them plain files
    ledger      entries of the run lie in the log whose key the trust root names, and that log only
                grew since the plan was made
    signature   the key that the ledger reserved for this run signed the statement; countersigners
                are approvers of the trust root whose keys counted at the release
    digests     every file is the one that the ledger entry `run-released` lists
    statement   fits its schema, is canonical, does not contradict itself
    entries     what the ledger says on mechanism, events, policy, plan, audit and adapter is what
                the statement says
    approvals   distinct people, each as an entry in the ledger, signed
    countersignatures   as many as the policy asks for, by people who count
    waivers     what was audited is what was released, but for waivers that two people signed; a
                failed audit has one in force
    epsilon     recomputed from the events by both accountants, with odds and trade-off curve; for
                noised figures their interval and their own charge
    budget      recomputed by the filter from everything charged before
    audit       bounds recomputed from the counts, and the verdict from the bounds
    policy      known to the trust root; its rules evaluated again
    page, card, licence note   rendered again from the statement, compared byte for byte

What no check here can find: that the run happened as stated.  That rests on the run key, on the
enclave that held it, and on the log key.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from privft.errors import IntegrityError, PrivftError, SignatureError
from privft.report import recompute
from privft.report.aside import HERE, Aside
from privft.report.card import render_card, render_licence_note
from privft.report.countersigned import countersigned
from privft.report.page import render
from privft.report.proof import ProvenLedger, check_proof
from privft.report.release import CARD, LICENCE_NOTE, MERGED, PAGE, PROOF, STATEMENT, WEIGHTS
from privft.report.statement import PAYLOAD_TYPE, RENDERER, Statement, parse
from privft.report.trust import TrustRoot
from privft.signing import VerifyKey, canonical_json, dsse_open, parse_canonical, sha256_hex

LARGEST_TEXT_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Check:
    """One row of the answer; `failure` is what a command should raise for it."""

    name: str
    ok: bool
    detail: str
    failure: PrivftError | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"name": self.name, "ok": self.ok, "detail": self.detail}


@dataclass
class _Found:
    """What the checks so far have established."""

    directory: Path
    trust: TrustRoot
    now: str
    aside: Aside = HERE
    files: dict[str, Path] = field(default_factory=dict)
    ledger: ProvenLedger | None = None
    envelope: dict[str, Any] | None = None
    payload: bytes | None = None
    countersigners: list[VerifyKey] = field(default_factory=list)
    statement: Statement | None = None
    plain: dict[str, Any] | None = None

    def read(self, name: str) -> bytes:
        """A file whose presence was checked."""
        return self.path(name).read_bytes()

    def path(self, name: str) -> Path:
        """Where such a file is."""
        path: Path = _need(self.files.get(name), "files")
        return path


class _Blocked(Exception):
    """A check needs something that an earlier one did not establish."""


def verify_release(
    directory: Path, trust: TrustRoot, *, now: str, aside: Aside = HERE
) -> list[Check]:
    """All checks of a released folder, passed or not; never raises for what is in the folder.

    now: the moment (ISO time, UTC) at which the trust root has to hold.
    aside: the process that does the accounting.
    """
    found = _Found(directory=directory, trust=trust, now=now, aside=aside)
    rows = []
    for name, check in _CHECKS:
        try:
            rows.append(Check(name=name, ok=True, detail=check(found)))
        except _Blocked as blocked:
            words = f"not checked, because “{blocked}” did not pass"
            rows.append(Check(name=name, ok=False, detail=words, failure=IntegrityError(words)))
        except PrivftError as error:
            rows.append(Check(name=name, ok=False, detail=error.message, failure=error))
        except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            words = f"cannot be read: {type(error).__name__}"
            rows.append(Check(name=name, ok=False, detail=words, failure=IntegrityError(words)))
    return rows


def require(checks: Sequence[Check]) -> None:
    """Return when every check passed; else raise the first failure, named after its check.

    Raises `SignatureError` or `IntegrityError` (exit code 13) whatever kind the failure was.
    """
    failed = [check for check in checks if not check.ok]
    if not failed:
        return
    first = failed[0]
    kind = SignatureError if isinstance(first.failure, SignatureError) else IntegrityError
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    raise kind(
        f"{first.name}: {first.detail}{more}",
        hint=(first.failure.hint if first.failure else None)
        or "do not use this folder before the operator has explained it",
    )


def expected_files(statement: Statement) -> set[str]:
    """The names in a released folder with this statement."""
    return {*statement.predicate.model.adapter_files, STATEMENT, PAGE, CARD, PROOF, LICENCE_NOTE}


@contextmanager
def _named(file: str) -> Iterator[None]:
    """What is wrong with a file, said with its name in front."""
    try:
        yield
    except IntegrityError as error:
        raise type(error)(f"{file}: {error.message}", hint=error.hint) from error


def _need(value: Any, name: str) -> Any:
    if value is None:
        raise _Blocked(name)
    return value


def _trust(found: _Found) -> str:
    root = found.trust
    root.check_current(found.now)
    revoked = sum(person.revoked is not None for person in root.people)
    return f"{len(root.people)} people, {revoked} revoked; holds until {root.expires}"


def _files(found: _Found) -> str:
    known = {*WEIGHTS, STATEMENT, PAGE, CARD, PROOF, LICENCE_NOTE}
    if not found.directory.is_dir():
        raise IntegrityError("there is no such folder")
    names, merged = set(), 0
    for path in found.directory.iterdir():
        status = path.lstat()
        if path.name == MERGED and stat.S_ISDIR(status.st_mode):
            merged = _merged_files(found, path)
            continue
        names.add(path.name)
        if not stat.S_ISREG(status.st_mode):
            raise IntegrityError(f"{path.name} is not a plain file")
        if path.name in known:
            if path.suffix != ".safetensors" and status.st_size > LARGEST_TEXT_BYTES:
                raise IntegrityError(f"{path.name} has {status.st_size} bytes")
            found.files[path.name] = path
    extra = sorted(names - known)
    if extra:
        raise IntegrityError(f"files that do not belong here: {', '.join(extra)[:300]}")
    missing = sorted(known - {*WEIGHTS} - names)
    if missing or not names & {*WEIGHTS}:
        raise IntegrityError(f"missing files: {', '.join(missing) or 'the weights'}")
    words = f" and {merged} of a merged model" if merged else ""
    return f"{len(names)} files{words}, none missing, none extra"


def _merged_files(found: _Found, folder: Path) -> int:
    """The files of the merged model; which ones belong there is for the ledger's list to say."""
    for path in folder.iterdir():
        if not stat.S_ISREG(path.lstat().st_mode):
            raise IntegrityError(f"{MERGED}/{path.name} is not a plain file")
        found.files[f"{MERGED}/{path.name}"] = path
    return sum(name.startswith(f"{MERGED}/") for name in found.files)


def _ledger(found: _Found) -> str:
    with _named(PROOF):
        found.ledger = check_proof(found.read(PROOF), found.trust.log())
    size = found.ledger.checkpoint.size
    return f"{len(found.ledger.entries)} entries proven in a ledger of {size}"


def _signature(found: _Found) -> str:
    ledger: ProvenLedger = _need(found.ledger, "ledger")
    reserved = ledger.only("run-reserved").body
    run_key = VerifyKey.from_hex("run-key", reserved["run_key"])
    people = found.trust.keys()
    with _named(STATEMENT):
        data = found.read(STATEMENT)
        envelope = parse_canonical(data.removesuffix(b"\n"))
        if not isinstance(envelope, dict):
            raise SignatureError("expected a DSSE envelope")
        payload, signers = dsse_open(
            envelope, {**people, run_key.keyid: run_key}, payload_type=PAYLOAD_TYPE
        )
    if run_key.keyid not in signers:
        raise SignatureError(f"the run key of {reserved['run']} did not sign the statement")
    given = [str(signature["keyid"]) for signature in envelope["signatures"]]
    strangers = [keyid for keyid in given if keyid not in signers]
    if strangers:
        raise SignatureError(
            f"{len(strangers)} signatures by keys that the trust root does not name: "
            f"{strangers[0][:16]}…"
        )
    if len(set(given)) != len(given):
        raise SignatureError("one key signed twice")
    found.envelope, found.payload = envelope, payload
    released = ledger.only("run-released").time
    counted = found.trust.ring().trusted("approver", released)
    for key in (people[keyid] for keyid in signers if keyid in people):
        if key.keyid not in counted:
            raise SignatureError(
                f"{key.name} countersigned, and was no approver whose key counted at {released}"
            )
        found.countersigners.append(key)
    names = [key.name for key in found.countersigners]
    return "signed by the run key" + (f", countersigned by {', '.join(names)}" if names else "")


def _statement(found: _Found) -> str:
    data: bytes = _need(found.payload, "signature")
    statement = parse(data)
    own = {name for name in found.files if not name.startswith(f"{MERGED}/")}
    if own != expected_files(statement):
        odd = sorted(own ^ expected_files(statement))
        raise IntegrityError(f"the statement and the folder differ on {', '.join(odd)}")
    named = {row.keyid: row.name for row in statement.predicate.may_countersign}
    for key in found.countersigners:
        if named.get(key.keyid) != key.name:
            raise SignatureError(f"the statement does not name {key.name} as a countersigner")
    before = statement.predicate.ledger.checkpoint_before
    if before != (found.ledger.extends if found.ledger and found.ledger.extends else ""):
        raise IntegrityError("the ledger's proof does not start from the plan's checkpoint")
    if statement.predicate.ledger.log_key != found.trust.log_key.hex:
        raise SignatureError("the statement names another log key than the trust root")
    found.statement, found.plain = statement, json.loads(data)
    return f"schema {statement.predicateType}, {len(data)} bytes, consistent in itself"


def _digests(found: _Found) -> str:
    ledger: ProvenLedger = _need(found.ledger, "ledger")
    released = ledger.only("run-released").body
    own = {name: _sha256(found.path(name)) for name in sorted(found.files) if name != PROOF}
    if set(released["files"]) != set(own):
        odd = sorted(set(released["files"]) ^ set(own))
        raise IntegrityError(f"the ledger's list of files differs on {', '.join(odd)}")
    changed = [name for name, value in own.items() if released["files"][name] != value]
    if changed:
        raise IntegrityError(f"changed since the release: {', '.join(changed)}")
    return f"{len(own)} files are those that the ledger entry lists"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entries(found: _Found) -> str:
    return recompute.entries_agree(
        _need(found.statement, "statement"),
        _need(found.payload, "signature"),
        _need(found.ledger, "ledger"),
        found.trust.log(),
    )


def _approvals(found: _Found) -> str:
    return recompute.approvals_hold(
        _need(found.statement, "statement"), _need(found.ledger, "ledger"), found.trust
    )


def _countersignatures(found: _Found) -> str:
    statement: Statement = _need(found.statement, "statement")
    signed = countersigned(statement.predicate, [key.keyid for key in found.countersigners])
    if signed.missing:
        raise SignatureError(
            f"the policy wants {signed.wanted}, and {len(signed.names)} count: "
            f"{', '.join(signed.names) or 'nobody'}"
        )
    names = ", ".join(signed.names)
    return f"{signed.wanted} asked for, {len(signed.names)} there" + (f": {names}" if names else "")


def _waivers(found: _Found) -> str:
    return recompute.waivers_hold(
        _need(found.statement, "statement"), _need(found.ledger, "ledger"), found.trust
    )


def _epsilon(found: _Found) -> str:
    return recompute.epsilon_agrees(_need(found.plain, "statement"), found.aside)


def _budget(found: _Found) -> str:
    return recompute.budget_agrees(_need(found.statement, "statement"))


def _audit(found: _Found) -> str:
    return recompute.audit_agrees(_need(found.statement, "statement"), found.aside)


def _policy(found: _Found) -> str:
    statement: Statement = _need(found.statement, "statement")
    policy = statement.predicate.policy
    if sha256_hex(canonical_json(policy.body)) != policy.sha256:
        raise IntegrityError("the policy's digest is not that of its text")
    accepted = found.trust.policy_sha256
    if accepted and policy.sha256 not in accepted:
        raise IntegrityError(f"policy {policy.name} is not one that the trust root accepts")
    words = recompute.policy_agrees(statement)
    return words if accepted else f"{words}; the trust root accepts any policy"


def _rendered(name: str, make: Callable[[_Found], str]) -> Callable[[_Found], str]:
    def check(found: _Found) -> str:
        statement: Statement = _need(found.statement, "statement")
        if statement.predicate.renderer != RENDERER:
            raise IntegrityError(
                f"rendered by {statement.predicate.renderer}, this is {RENDERER}",
                hint=f"verify with privft {statement.predicate.versions.get('privft', '')}",
            )
        if make(found).encode() != found.read(name):
            raise IntegrityError(f"{name} does not say what the statement says")
        return f"{name} is what the statement renders to, byte for byte"

    return check


_CHECKS: tuple[tuple[str, Callable[[_Found], str]], ...] = (
    ("trust root", _trust),
    ("files", _files),
    ("ledger", _ledger),
    ("signature", _signature),
    ("digests", _digests),
    ("statement", _statement),
    ("entries", _entries),
    ("approvals", _approvals),
    ("countersignatures", _countersignatures),
    ("waivers", _waivers),
    ("epsilon", _epsilon),
    ("budget", _budget),
    ("audit", _audit),
    ("policy", _policy),
    (
        "page",
        _rendered(PAGE, lambda found: render(_need(found.plain, "statement"), found.envelope)),
    ),
    ("card", _rendered(CARD, lambda found: render_card(_need(found.plain, "statement")))),
    (
        "licence note",
        _rendered(LICENCE_NOTE, lambda found: render_licence_note(_need(found.plain, "statement"))),
    ),
)


def recipe() -> str:
    """The one-page recipe that checks a release with public tools only (Markdown).

    It is no part of a release: a recipe that came with what it checks would prove nothing.
    """
    template = resources.files("privft.report") / "templates" / "recipe.md"
    return template.read_text(encoding="utf-8")
