"""A fresh SoftHSM2 token for a test; skips it, with the reason, where SoftHSM2 is not installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from privft.vault.tokens import TokenService

PIN = b"1234"
_LIBRARIES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
)


def new_token(folder: Path, monkeypatch: pytest.MonkeyPatch) -> TokenService:
    """A place for a key on a token of its own, whose files lie in `folder`; no key is there yet."""
    pkcs11 = pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed")
    tool = shutil.which("softhsm2-util")
    library = next((Path(path) for path in _LIBRARIES if Path(path).exists()), None)
    if library is None or tool is None:
        pytest.skip("SoftHSM2 is not installed")
    (folder / "tokens").mkdir()
    config = folder / "softhsm2.conf"
    config.write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(config))
    label = f"ward-{folder.name}"[:32]
    words = ["--init-token", "--free", "--label", label, "--so-pin", "0000", "--pin", PIN.decode()]
    subprocess.run([tool, *words], check=True, capture_output=True)
    pkcs11.lib(str(library)).reinitialize()
    return TokenService(module=library, token=label, key="vault", pin=PIN)
