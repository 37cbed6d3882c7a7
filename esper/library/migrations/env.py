"""Alembic's entry: runs on the connection and in the transaction of `catalogue.py`, which holds the lock."""

from alembic import context

from esper.library.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
context.run_migrations()
