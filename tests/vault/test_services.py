"""Key services and tokens as recipients: through the exec protocol, and through real SoftHSM2."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from privft.errors import IntegrityError, NotForThisKey, PrivftError, UsageError
from privft.vault.services import (
    ExecService,
    KeyService,
    exec_service,
    service_opener,
    service_recipient,
)
from privft.vault.store import Vault
from privft.vault.tokens import TokenPlace, TokenService, parse_uri
from tests.vault.builders import SIGNED, TRUSTED, add_rows, content, new_vault, rows, ward
from tests.vault.softhsm import new_token

PROGRAM = Path(__file__).with_name("example_service.py")


def service(tmp_path: Path, name: str = "kms", key: bytes = bytes(32)) -> ExecService:
    path = tmp_path / f"{name}.key"
    path.write_bytes(key)
    return ExecService(name="kms", command=[sys.executable, str(PROGRAM), str(path)])


def script(tmp_path: Path, code: str) -> ExecService:
    path = tmp_path / "script.py"
    path.write_text(code)
    return ExecService(name="kms", command=[sys.executable, str(path)])


def opens(vault: Vault, kms: KeyService) -> dict[str, list[str]]:
    with Vault.open(vault.path, service_opener(kms), signer_keys=TRUSTED) as opened:
        return content(opened)


def test_a_service_opens_a_vault_and_is_not_asked_to_rotate(tmp_path: Path) -> None:
    kms = service(tmp_path)
    vault = new_vault(tmp_path / "v", recipients=[ward(), service_recipient("cloud", kms)])
    add_rows(vault, tmp_path / "a.jsonl", rows(4, patients=2))
    vault.rotate(**SIGNED)
    (tmp_path / "kms.key").rename(tmp_path / "away")
    vault.rotate(**SIGNED)
    with pytest.raises(PrivftError, match="exit status 1"):
        opens(vault, kms)
    (tmp_path / "away").rename(tmp_path / "kms.key")
    assert opens(vault, kms) == content(vault)


def test_another_service_or_key_is_not_this_key(tmp_path: Path) -> None:
    kms = service(tmp_path)
    vault = new_vault(tmp_path / "v", recipients=[ward(), service_recipient("cloud", kms)])
    other_key = service(tmp_path, "other", bytes(31) + b"\1")
    other_name = ExecService(name="other", command=kms.command)
    for stranger in (other_key, other_name):
        with pytest.raises(NotForThisKey):
            opens(vault, stranger)


def test_no_secret_is_in_arguments_or_environment(tmp_path: Path) -> None:
    spy = (
        "import json, os, sys\n"
        f"open({str(tmp_path / 'seen')!r}, 'a').write(' '.join(sys.argv) + str(os.environ))\n"
        "question = json.load(sys.stdin)\n"
        f"open({str(tmp_path / 'data')!r}, 'w').write(question['data'])\n"
        "json.dump({'data': question['data']}, sys.stdout)\n"
    )
    service_recipient("cloud", script(tmp_path, spy))
    assert (tmp_path / "data").read_text() not in (tmp_path / "seen").read_text()


@pytest.mark.parametrize(
    "code",
    [
        "",
        "print('no json')",
        "print('[]')",
        "print('{\"data\": 5}')",
        'print(\'{"data": "xyz"}\')',
        "print('{\"data\": \"' + 'ab' * 70000 + '\"}')",
        "raise SystemExit(9)",
        "import os; os.kill(os.getpid(), 9)",
    ],
)
def test_a_service_that_misbehaves_is_an_error(tmp_path: Path, code: str) -> None:
    with pytest.raises(PrivftError, match="key service 'kms' failed"):
        service_recipient("cloud", script(tmp_path, code))
    with pytest.raises(PrivftError, match="failed"):
        service_recipient("cloud", ExecService(name="kms", command=[str(tmp_path / "none")]))


@pytest.mark.parametrize("answer", ["", "00" * 32, "ab" * 8193])
def test_a_service_that_does_not_give_back_what_it_took_is_refused(
    tmp_path: Path, answer: str
) -> None:
    with pytest.raises(UsageError, match=r"wrapped|give back"):
        service_recipient("cloud", script(tmp_path, f'print(\'{{"data": "{answer}"}}\')'))


def test_a_service_that_lies_later_does_not_open(tmp_path: Path) -> None:
    kms = service(tmp_path)
    vault = new_vault(tmp_path / "v", recipients=[ward(), service_recipient("cloud", kms)])
    for answer in ("00" * 32, "00"):
        liar = script(tmp_path, f'print(\'{{"data": "{answer}"}}\')')
        with pytest.raises(IntegrityError):
            opens(vault, liar)


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TokenService:
    made = new_token(tmp_path, monkeypatch)
    made.make_key()
    return made


def test_a_token_opens_a_vault(tmp_path: Path, token: TokenService) -> None:
    vault = new_vault(tmp_path / "v", recipients=[ward(), service_recipient("card", token)])
    add_rows(vault, tmp_path / "a.jsonl", rows(4, patients=2))
    vault.rotate(**SIGNED)
    assert opens(vault, token) == content(vault)
    with pytest.raises(UsageError, match="already has"):
        token.make_key()


def test_a_wrong_pin_key_or_token_is_not_this_key(tmp_path: Path, token: TokenService) -> None:
    vault = new_vault(tmp_path / "v", recipients=[ward(), service_recipient("card", token)])
    facts = {"module": token.module, "token": token.token, "key": token.key, "pin": token.pin}
    for change in ({"pin": b"9999"}, {"key": "none"}, {"token": "none"}):
        with pytest.raises(NotForThisKey):
            opens(vault, TokenService(**{**facts, **change}))
    assert "1234" not in repr(token)


def test_what_a_token_wrapped_is_bound_to_its_recipient(token: TokenService) -> None:
    wrapped = token.wrap(bytes(32), b"context")
    assert len(wrapped) == 12 + 32 + 16
    assert token.unwrap(wrapped, b"context") == bytes(32)
    for data, context in (
        (wrapped, b"other"),
        (wrapped[:-1] + bytes([wrapped[-1] ^ 1]), b"context"),
        (wrapped[:20], b"context"),
    ):
        with pytest.raises(NotForThisKey):
            token.unwrap(data, context)


def test_a_place_on_a_token_is_named_by_a_uri() -> None:
    place = TokenPlace(module=Path("/usr/lib/x.so"), token="ward 7", key="k;1")
    assert parse_uri("pkcs11:token=ward%207;object=k%3B1?module-path=/usr/lib/x.so") == place
    assert parse_uri("pkcs11:object=k%3B1;token=ward 7?module-path=/usr/lib/x.so") == place


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "pkcs11:",
        "pkcs11:token=a;object=b",
        "token=a;object=b?module-path=c",
        "pkcs11:token=a;object=b;object=d?module-path=c",
        "pkcs11:token=a;object=b?module-path=c&pin-value=1234",
        "pkcs11:token=a;object=b;pin-value=1234?module-path=c",
        "pkcs11:token=a;object=?module-path=c",
        "pkcs11:token=a%0ab;object=d?module-path=c",
        "pkcs11:token=" + "a" * 33 + ";object=b?module-path=c",
        "pkcs11:token=a;object=" + "b" * 61 + "?module-path=c",
    ],
)
def test_any_other_uri_is_refused_and_not_quoted(uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_uri(uri)
    assert "1234" not in f"{caught.value} {caught.value.hint}"


def test_a_service_is_named_with_its_command() -> None:
    made = exec_service("kms='/opt/my kms' --key=ward")
    assert made == ExecService(name="kms", command=["/opt/my kms", "--key=ward"])
    for text in ("", "kms", "kms=", "=x", "k m=x", "kms='x", "kms=\n"):
        with pytest.raises(UsageError, match="NAME=COMMAND"):
            exec_service(text)
