"""A real PostgreSQL server of the tests' own, in a temporary folder, as a user who is not root."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from privft.budget.postgres import Database

PASSWORD = "correct horse"


def binaries() -> Path | None:
    """Where initdb and postgres are, the newest version first."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    on_path = shutil.which("initdb")
    if on_path is not None:
        found.insert(0, Path(on_path))
    return found[0].parent if found else None


@dataclass(frozen=True, kw_only=True)
class Server:
    """Roles `ward` (by socket, trusted) and `clinic` (by TCP, with `PASSWORD`) use database
    `budget`; `ward` owns it."""

    folder: Path
    port: int

    def database(self, schema: str) -> Database:
        return Database(
            host=str(self.folder), port=self.port, dbname="budget", user="ward", schema=schema
        )

    def by_tcp(self, schema: str, password: str | None = PASSWORD) -> Database:
        return Database(
            host="127.0.0.1",
            port=self.port,
            dbname="budget",
            user="clinic",
            schema=schema,
            sslmode="disable",
            password=password,
        )

    def sql(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(
            host=str(self.folder), port=self.port, dbname="budget", user="ward", autocommit=True
        ) as connection:
            connection.execute(statement)  # type: ignore[arg-type]

    def share(self, schema: str) -> None:
        """What README grants the role of a second enclave."""
        self.sql(
            f"GRANT USAGE ON SCHEMA {schema} TO clinic; "
            f"GRANT SELECT, INSERT ON {schema}.entries, {schema}.journal TO clinic; "
            f"GRANT SELECT, INSERT, UPDATE ON {schema}.head TO clinic"
        )


def _as_nobody(user: pwd.struct_passwd, command: list[str]) -> list[str]:
    if os.geteuid() != 0:
        return command
    ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return ["setpriv", *ids, *command]


def _create_database(folder: Path, port: int, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers, at most a minute, and make the database."""
    import psycopg

    for _ in range(600):
        assert server.poll() is None, (folder / "log").read_text()
        try:
            with psycopg.connect(
                host=str(folder), port=port, dbname="postgres", user="ward", autocommit=True
            ) as connection:
                connection.execute("CREATE DATABASE budget")
                return
        except psycopg.OperationalError:
            time.sleep(0.1)
    raise AssertionError((folder / "log").read_text())


@contextmanager
def running() -> Iterator[Server]:
    """A server until the end of the block; skips with a reason where there can be none."""
    home = binaries()
    if home is None:
        pytest.skip("PostgreSQL is not installed: no initdb on the path or in /usr/lib/postgresql")
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("PostgreSQL does not run as root, and setpriv is not installed")
    user = pwd.getpwuid(os.geteuid())
    if os.geteuid() == 0:
        user = next((u for u in pwd.getpwall() if u.pw_name == "postgres"), pwd.getpwnam("nobody"))
    folder = Path(tempfile.mkdtemp(prefix="privft-pg-", dir="/tmp"))  # a socket's path is short
    try:
        os.chown(folder, user.pw_uid, user.pw_gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        data = folder / "data"
        initdb = [str(home / "initdb"), "-D", str(data), "-U", "ward", "-A", "trust", "-E", "UTF8"]
        made = subprocess.run(
            _as_nobody(user, [*initdb, "--locale=C"]), capture_output=True, text=True, cwd="/"
        )
        if made.returncode:
            pytest.skip(f"initdb failed: {made.stderr.strip().splitlines()[-1:]}")
        rules = "local all ward trust\nhost all clinic 127.0.0.1/32 scram-sha-256\n"
        (data / "pg_hba.conf").write_text(rules)
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": str(folder)}
        settings |= {"max_connections": "60", "shared_buffers": "16MB"}
        postgres = [str(home / "postgres"), "-D", str(data), "-p", str(port)]
        for name, value in settings.items():
            postgres += ["-c", f"{name}={value}"]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                _as_nobody(user, postgres), stdout=subprocess.DEVNULL, stderr=log, cwd="/"
            )
        try:
            _create_database(folder, port, server)
            made_server = Server(folder=folder, port=port)
            made_server.sql(f"CREATE ROLE clinic LOGIN PASSWORD '{PASSWORD}'")
            yield made_server
        finally:
            server.terminate()
            server.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
