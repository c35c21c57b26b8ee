"""A ledger in PostgreSQL, for teams whose enclaves share one budget.

The same three tables as in SQLite behind the same interface (`store.Transaction`), in a schema of
their own:

    entries(position bigint PRIMARY KEY, bytes bytea)    append-only, triggers refuse the rest
    journal(run bytea, step bigint, digest bytea)        append-only as well
    head(name text PRIMARY KEY, note bytea)              the two newest signed notes

A writer locks `head` before it reads (LOCK TABLE ... IN EXCLUSIVE MODE), so what was read is still
true when it is written; a reader sees one moment (REPEATABLE READ) and blocks nobody.  A commit is
durable on return: a server with fsync or full_page_writes off is refused, and synchronous_commit is
set to on for each transaction.  The database is believed no more than a file is: hashes and
signatures carry all trust (`reader`), and a database that was restored from a backup shows against
a witness or any other checkpoint from outside.

**Where it is** stands in the workspace, in `ledger.json`, which holds no secret:

    {"format": "privft-ledger-place-v1",
     "postgresql": {"host": "/run/postgresql", "port": 5432, "dbname": "budget",
                    "user": "ward7", "schema": "privft"}}

host      a folder with the server's socket (then the server knows the user as its peer), or a name;
          over a network, TLS with a verified certificate is required (`sslrootcert` names the
          authority's file; `"sslmode": "disable"` is accepted for this machine's loopback alone)
passfile  a file in the form of .pgpass, mode 0600 (by default ~/.pgpass)

A password otherwise comes through `--ledger-password-fd`; PGPASSWORD and the other variables that
libpq would follow are refused, so that nothing but this file says where a budget is kept.

psycopg is imported when a database is opened, and only here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from privft.budget.rows import SqlTransaction
from privft.budget.store import BUSY_S, Transaction
from privft.errors import ConfigError, InputError, IntegrityError, OrderError, PrivftError

if TYPE_CHECKING:
    from psycopg import Connection

PLACE_FORMAT = "privft-ledger-place-v1"
_COMMENT = "privft ledger, format 1"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_FOLLOWED = re.compile(  # by libpq, from the environment
    r"PG(HOST|HOSTADDR|PORT|DATABASE|USER|PASSWORD|PASSFILE|OPTIONS|SERVICE\w*|SSL\w*|REQUIRE\w*"
    r"|GSS\w*|KRB\w*|CHANNELBINDING|TARGETSESSIONATTRS|LOADBALANCEHOSTS)"
)
_UNSAFE = ("fsync", "full_page_writes")
_FORBIDDEN = ("this role may not use the ledger", "README, shared ledger: which grants it needs")
_TABLES = (
    "CREATE TABLE entries (position bigint PRIMARY KEY, bytes bytea NOT NULL)",
    "CREATE TABLE journal (run bytea, step bigint, digest bytea NOT NULL, PRIMARY KEY (run, step))",
    "CREATE TABLE head (name text PRIMARY KEY, note bytea NOT NULL)",
    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'the ledger only grows'; END $$",
    *(
        f"CREATE TRIGGER only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse()"
        for table in ("entries", "journal")
    ),
)


@dataclass(frozen=True, kw_only=True)
class Database:
    """Where a ledger is kept; the module's docstring has the file.  `password` is never written."""

    host: str
    dbname: str
    user: str
    port: int = 5432
    schema: str = "privft"
    sslmode: str = "verify-full"
    sslrootcert: str | None = None
    passfile: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """What people are told."""
        return f"{self.dbname}.{self.schema} at {self.host}"

    def to_dict(self) -> dict[str, Any]:
        """The content of `ledger.json`."""
        given = {k: v for k, v in asdict(self).items() if v is not None and k != "password"}
        return {"format": PLACE_FORMAT, "postgresql": given}

    @staticmethod
    def from_dict(value: Any, *, password: str | None = None) -> Database:
        """The inverse of `to_dict`; raises `ConfigError` for anything that it does not know."""
        facts = value.get("postgresql") if isinstance(value, dict) else None
        if not isinstance(facts, dict) or set(value) != {"format", "postgresql"}:
            raise ConfigError("expected exactly format and postgresql in a ledger's place")
        if value["format"] != PLACE_FORMAT:
            raise ConfigError(f"expected a ledger's place of format {PLACE_FORMAT}")
        known = {each.name: each.type for each in fields(Database) if each.name != "password"}
        for name, given in facts.items():
            if name not in known or type(given) is not (int if name == "port" else str):
                hint = "a password belongs into .pgpass" if name == "password" else None
                raise ConfigError(f"a ledger's place does not know {name!r} like this", hint=hint)
        if missing := {"host", "dbname", "user"} - set(facts):
            raise ConfigError(f"a ledger's place lacks {', '.join(sorted(missing))}")
        database = Database(**facts, password=password)
        if not database.schema.isidentifier() or not database.schema.isascii():
            raise ConfigError("expected letters, digits and _ in the schema of a ledger's place")
        safe = database.sslmode == "verify-full" or (
            database.sslmode == "disable" and database.host in _LOOPBACK
        )
        if not safe:
            raise ConfigError(
                f"sslmode {database.sslmode} is refused for host {database.host}",
                hint="verify-full, which is the default",
            )
        return database

    def conninfo(self) -> dict[str, Any]:
        """What libpq is told; nothing is left to its environment."""
        found = sorted(filter(_FOLLOWED.fullmatch, os.environ))
        if found:
            raise ConfigError(
                f"{found[0]} is set: a ledger's place is not taken from the environment",
                hint="unset it; ledger.json says where the ledger is",
            )
        local = self.host.startswith("/")
        optional = {
            "passfile": self.passfile,
            "password": self.password,
            "sslrootcert": None if local else self.sslrootcert,
        }
        return {
            "host": self.host,
            "port": self.port,
            "dbname": self.dbname,
            "user": self.user,
            "sslmode": "disable" if local else self.sslmode,
            "gssencmode": "disable",
            "connect_timeout": 10,
            "application_name": "privft",
            "options": f"-c search_path={self.schema} -c synchronous_commit=on "
            f"-c lock_timeout={int(BUSY_S * 1000)}",
            **{name: value for name, value in optional.items() if value is not None},
        }


@contextmanager
def _translated() -> Iterator[None]:
    """The database's errors as privft's: damage is an `IntegrityError`, circumstances are not."""
    import psycopg
    from psycopg import errors

    stands = "nothing may run until it can be reached; ask it again before trying anew"
    circumstances: Mapping[type[psycopg.Error], tuple[str, str]] = {
        errors.LockNotAvailable: (f"another process held the ledger for {BUSY_S:g} s", "try again"),
        errors.DiskFull: ("the disk that holds the ledger is full", "nothing was recorded"),
        errors.ReadOnlySqlTransaction: ("the ledger cannot be written", "nothing was recorded"),
        errors.InsufficientPrivilege: _FORBIDDEN,
        errors.IoError: ("the disk that holds the ledger failed", stands),
        psycopg.OperationalError: ("the ledger's database cannot be reached", stands),
    }
    try:
        yield
    except psycopg.Error as error:
        for kind, (message, hint) in circumstances.items():
            if isinstance(error, kind):
                raise PrivftError(message, hint=hint) from error
        raise IntegrityError(f"the ledger's database is damaged: {type(error).__name__}") from error


class PostgresTransaction(SqlTransaction):
    """See `store.Transaction`."""

    place = "database"

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection

    def _execute(self, statement: str, values: tuple[Any, ...] = ()) -> Iterable[tuple[Any, ...]]:
        cursor = self._connection.execute(statement.replace("?", "%s").encode(), values)
        return cursor if cursor.description else ()  # a statement without rows cannot be read

    def entries(self, start: int) -> Iterator[tuple[int, bytes]]:
        """See `store.Transaction`."""
        with self._connection.cursor("entries") as cursor:  # on the server: a batch at a time
            cursor.itersize = 5000
            cursor.execute(
                "SELECT position, bytes FROM entries WHERE position >= %s ORDER BY position",
                (start,),
            )
            for position, data in cursor:
                yield position, self._blob(data, f"entry {position}")


class PostgresStore:
    """One connection, in one process and one thread; made anew when the server dropped it."""

    def __init__(self, database: Database, *, writable: bool = True) -> None:
        self._database, self._writable = database, writable
        self._process = os.getpid()
        self._connection = self._connect()

    @staticmethod
    def create(database: Database, data: bytes, checkpoint: str, journal: str) -> None:
        """The schema with the first entry and both notes, complete or not there at all."""
        from psycopg import errors, sql

        try:
            with _translated(), _connection(database) as connection:
                schema = sql.Identifier(database.schema)
                connection.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
                comment = sql.SQL("COMMENT ON SCHEMA {} IS {}")
                connection.execute(comment.format(schema, sql.Literal(_COMMENT)))
                for statement in _TABLES:
                    connection.execute(sql.SQL(statement))
                transaction = PostgresTransaction(connection)
                transaction.append(0, data)
                transaction.set_note("checkpoint", checkpoint)
                transaction.set_note("journal", journal)
        except IntegrityError as error:
            if isinstance(error.__cause__, errors.DuplicateSchema):
                raise OrderError(f"there is a schema {database.name} already") from error
            raise

    def _connect(self) -> Connection[Any]:
        with _translated():
            connection = _connection(self._database)
            try:
                found = connection.execute(
                    "SELECT obj_description(oid, 'pg_namespace'), "
                    "has_schema_privilege(oid, 'USAGE') FROM pg_namespace "
                    "WHERE nspname = %s",
                    (self._database.schema,),
                ).fetchone()
                if found is None:
                    raise InputError(
                        f"no ledger in {self._database.name}", hint="privft init --ledger makes one"
                    )
                if found[0] != _COMMENT:
                    raise IntegrityError(f"{self._database.name} is not a privft ledger")
                if not found[1]:
                    raise PrivftError(_FORBIDDEN[0], hint=_FORBIDDEN[1])
                connection.rollback()
            except BaseException:
                connection.close()
                raise
        return connection

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[Transaction]:
        """All or nothing; `write` takes the writer lock before anything is read."""
        if os.getpid() != self._process:
            raise OrderError("a ledger was opened in one process and used in another")
        if write and not self._writable:
            raise OrderError("the ledger is open for reading only")
        if self._connection.closed:
            self._connection = self._connect()
        with _translated():
            try:
                if write:
                    self._connection.execute("LOCK TABLE head IN EXCLUSIVE MODE")
                else:
                    self._connection.execute(
                        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
                    )
                yield PostgresTransaction(self._connection)
                self._connection.commit()
            except BaseException:
                if not self._connection.closed:
                    self._connection.rollback()
                raise

    def check_storage(self) -> None:
        """The database checks its pages itself; what it gives is checked by `replay`."""

    def close(self) -> None:
        """Give the connection back."""
        if os.getpid() == self._process:
            self._connection.close()


def _connection(database: Database) -> Connection[Any]:
    """An open connection to a server that keeps what it says it wrote."""
    import psycopg

    connection: Connection[Any] = psycopg.connect(**database.conninfo())
    try:
        for setting in _UNSAFE:
            row = connection.execute("SELECT current_setting(%s)", (setting,)).fetchone()
            if row is None or row[0] != "on":
                raise InputError(
                    f"the server of {database.name} runs with {setting} off",
                    hint="a budget needs a server that survives a power cut",
                )
        connection.commit()
    except BaseException:
        connection.close()
        raise
    return connection
