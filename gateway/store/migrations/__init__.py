"""The store's schema, revision by revision, run when a store is opened.

Alembic reads the files in `versions`; this package brings a connection to the newest of them. A schema that this
version of Pointsman does not know is refused: an older program must not write into a newer store.
"""

from __future__ import annotations

from pathlib import Path

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, RevisionStep
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from gateway.store.database import hold
from gateway.store.options import CannotOpenStore

_FOLDER = Path(__file__).parent


def current_revision(connection: Connection) -> str | None:
    """The revision of the schema that *connection* sees; None where there is none yet."""
    return MigrationContext.configure(connection).get_current_revision()


def newest_revision() -> str:
    """The revision that this version of Pointsman works with."""
    head = _scripts().get_current_head()
    assert head is not None, "the store has no migrations. This is a bug."
    return head


def check(connection: Connection, name: str) -> None:
    """Refuse any schema but the newest in the store that messages call *name*: for those who must not upgrade it.

    Raises:
        CannotOpenStore: there is no schema of ours, or one of another version.
    """
    found, known = current_revision(connection), newest_revision()
    if found is None:
        raise CannotOpenStore(f"{name} is a database, and no store of Pointsman; check where it is")
    if found != known:
        raise CannotOpenStore(
            f"{name} has schema {found!r}, and this version of Pointsman works with {known!r}; use the"
            " version that wrote it, or serve it with this one, which upgrades it",
        )


def upgrade(connection: Connection) -> None:
    """Bring the schema to the newest revision, within *connection*'s transaction; one process at a time.

    Raises:
        CannotOpenStore: the schema is of a later version of Pointsman.
    """
    hold(connection, "schema")
    scripts = _scripts()
    current = current_revision(connection)
    if current == scripts.get_current_head():
        return
    known = {script.revision for script in scripts.walk_revisions()}
    if current is not None and current not in known:
        raise CannotOpenStore(
            f"the store has schema {current!r}, which a later version of Pointsman made; this one knows up to"
            f" {scripts.get_current_head()!r}. Install that version, or use another store",
        )
    _run(connection, scripts, "head", up=True)


def downgrade(connection: Connection, revision: str) -> None:
    """Take the schema back to *revision* (`base` removes it), within *connection*'s transaction."""
    hold(connection, "schema")
    _run(connection, _scripts(), revision, up=False)


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _run(connection: Connection, scripts: ScriptDirectory, target: str, *, up: bool) -> None:
    """What Alembic's `env.py` does, without a file of that name: one connection, one transaction, its caller's."""

    def steps(current: object, _context: MigrationContext) -> list[RevisionStep]:
        # Private, and what `alembic.command` itself calls: there is no public way to run a script without env.py.
        plan = scripts._upgrade_revs if up else scripts._downgrade_revs
        return list(plan(target, current))  # type: ignore[arg-type]

    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")  # an index of a large table takes its time
    with EnvironmentContext(_config(), scripts, fn=steps, destination_rev=target) as context:
        context.configure(connection=connection, transaction_per_migration=False)
        context.run_migrations()
