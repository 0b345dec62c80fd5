"""The schema's migrations: `python -m semantik.migrate [--check]`, run once per deploy by the control role.

Each file of sql/migrations is applied once, in the order of its name, in one transaction together with its
row in `migrations`. An applied file never changes: its checksum is recorded and compared.
Exit status: 0 done, 1 failed, 3 with --check and something to apply.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from dataclasses import dataclass
from importlib import resources

import psycopg

from semantik.database import Connection, connect
from semantik.exceptions import Refused, SemantikError
from semantik.settings import load

OWNER = "semantik_owner"
ROLES = ("semantik_planner", "semantik_scheduler", "semantik_worker", "semantik_operator")
EXIT_PENDING = 3
#: Two deploys at once apply each migration once.
_LOCK = "SELECT pg_advisory_xact_lock(hashtext('semantik migrate'))"
#: Who waits for a table makes others wait behind him, renewals of leases among them: so never for long.
_WAIT = "SET LOCAL lock_timeout = '2s'"
_PAUSE_SECONDS = 3.0
#: The planner holds its tables while it writes a large plan: minutes.
PATIENCE_SECONDS = 900.0


@dataclass(frozen=True)
class Migration:
    """One file, named without its suffix."""

    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the file, hexadecimal."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """Return the migrations of this release, in the order in which they apply."""
    directory = resources.files("semantik.sql").joinpath("migrations")
    files = sorted(
        (path for path in directory.iterdir() if path.name.endswith(".sql")), key=lambda path: path.name
    )
    return [Migration(path.name.removesuffix(".sql"), path.read_text(encoding="utf-8")) for path in files]


def pending(connection: Connection, known: list[Migration]) -> list[Migration]:
    """Return what is not applied yet. Raises Refused when an applied migration is not the known one."""
    if connection.execute("SELECT to_regclass('semantik.migrations')").fetchone() == (None,):
        return known
    applied: dict[str, str] = dict(
        connection.execute("SELECT name, checksum FROM semantik.migrations").fetchall()
    )
    names = {migration.name for migration in known}
    if newer := sorted(set(applied) - names):
        raise Refused(
            f"the database has {', '.join(newer)}, which this release does not know: deploy a newer one"
        )
    for migration in known:
        if applied.get(migration.name, migration.checksum) != migration.checksum:
            raise Refused(
                f"{migration.name} was applied from a file that differs from this release's: applied "
                "migrations never change, put the difference into a new file"
            )
    return [migration for migration in known if migration.name not in applied]


def prepare(connection: Connection) -> None:
    """Take the owner's role and make the schema. Raises Refused naming what role postgresql lacks."""
    missing = [
        role
        for role in (OWNER, *ROLES)
        if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", (role,)).fetchone() is None
    ]
    if missing:
        raise Refused(
            f"the database has no role {', '.join(missing)}: run site.yml for the group 'postgresql'"
        )
    if connection.execute("SELECT to_regtype('halfvec')").fetchone() == (None,):
        raise Refused(
            "the database has no type halfvec: run site.yml for the group 'postgresql', which installs "
            "pgvector, or as a superuser CREATE EXTENSION vector"
        )
    for role in ("pg_signal_backend", "pg_read_all_stats"):
        if connection.execute(
            "SELECT pg_has_role('semantik_scheduler', %s, 'USAGE')", (role,)
        ).fetchone() == (False,):
            raise Refused(
                f"semantik_scheduler is no member of {role}, and could not end the session of a worker that "
                "hangs: run site.yml for the group 'postgresql', or as a superuser "
                f"GRANT {role} TO semantik_scheduler"
            )
    connection.execute(f"SET LOCAL ROLE {OWNER}")
    connection.execute("CREATE SCHEMA IF NOT EXISTS semantik")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS semantik.migrations (name text PRIMARY KEY, checksum text NOT NULL, "
        "applied_at timestamptz NOT NULL DEFAULT now())"
    )
    connection.execute(f"GRANT USAGE ON SCHEMA semantik TO {', '.join(ROLES)}")
    connection.execute(f"GRANT SELECT ON semantik.migrations TO {', '.join(ROLES)}")


def migrate(connection: Connection) -> list[str]:
    """Apply what is pending, one transaction each, and return the names. Safe to run twice and at once.

    Raises Refused when a table that a migration changes is in use for `PATIENCE_SECONDS`.
    """
    known = migrations()
    applied: list[str] = []
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            name = _apply_next(connection, known)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            if time.monotonic() > deadline:
                raise Refused(
                    f"a table that {pending(connection, known)[0].name} changes has been in use for "
                    f"{PATIENCE_SECONDS / 60:.0f} min, perhaps by the planner: wait until 'semantik jobs' "
                    "shows no job in planning, and run site.yml again"
                ) from error
            time.sleep(_PAUSE_SECONDS)
            continue
        if name is None:
            return applied
        applied.append(name)


def _apply_next(connection: Connection, known: list[Migration]) -> str | None:
    """Apply the first pending migration and return its name, or None when there is none."""
    with connection.transaction():
        connection.execute(_LOCK)
        left = pending(connection, known)
        if not left:
            return None
        prepare(connection)
        connection.execute(_WAIT)
        migration = left[0]
        # `simple` protocol: a file holds many statements.
        connection.execute(migration.sql, prepare=False)
        connection.execute(
            "INSERT INTO migrations (name, checksum) VALUES (%s, %s)", (migration.name, migration.checksum)
        )
    return migration.name


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m semantik.migrate", description="Apply the schema's migrations."
    )
    parser.add_argument(
        "--check", action="store_true", help="list what is pending, apply nothing; 3 if any is"
    )
    options = parser.parse_args(arguments)
    try:
        with connect(load(), application_name="semantik migrate") as connection:
            if options.check:
                left = pending(connection, migrations())
                for migration in left:
                    print(f"pending {migration.name}")
                return EXIT_PENDING if left else 0
            applied = migrate(connection)
    except SemantikError as error:
        print(f"semantik.migrate: {error}", file=sys.stderr)
        return 1
    except psycopg.Error as error:
        print(f"semantik.migrate: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"applied {len(applied)}: {', '.join(applied)}" if applied else "nothing to apply")
    return 0


if __name__ == "__main__":
    sys.exit(main())
