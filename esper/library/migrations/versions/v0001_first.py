"""The first catalogue: its name, kernels, their tags, their layers' attributes, their origins."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_KERNEL = "esper_kernels.digest"


def upgrade() -> None:
    """Makes the tables and their indices."""
    named = op.create_table("esper_library", sa.Column("id", sa.String(32), primary_key=True))
    op.bulk_insert(named, [{"id": secrets.token_hex(16)}])
    op.create_table(
        "esper_kernels",
        sa.Column("digest", sa.String(64), primary_key=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("blueprint", "options", "blend", "placement")),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("kind", "attributes")),
        sa.Column("fits", sa.String(64), nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("dtype", "shapes")),
        sa.Column("parameters", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("flops", sa.BigInteger),
        sa.Column("gain_mean", sa.Float(53)),
        sa.Column("gain_stderr", sa.Float(53)),
        sa.Column("gain_n", sa.BigInteger),
        sa.Column("gain_time", _TIME),
        sa.Column("rank", sa.Float(53), nullable=False),
        sa.Column("lifecycle", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("retired", _TIME),
        sa.Column("labels", sa.BigInteger, nullable=False),
        sa.Column("carried", sa.Boolean, nullable=False),
        sa.Column("programs", sa.String(64), nullable=False),
        sa.Column("blob", sa.String(64), nullable=False),
        sa.Column("blob_bytes", sa.BigInteger, nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("updated", _TIME, nullable=False),
        sa.Column("checksum", sa.String(64), nullable=False),
    )
    op.create_table(
        "esper_kernel_tags",
        sa.Column("tag", sa.String(100), primary_key=True),
        sa.Column("digest", sa.String(64), sa.ForeignKey(_KERNEL, ondelete="CASCADE"), primary_key=True),
    )
    op.create_table(
        "esper_kernel_attributes",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, primary_key=True),
        sa.Column("digest", sa.String(64), sa.ForeignKey(_KERNEL, ondelete="CASCADE"), primary_key=True),
    )
    op.create_table(
        "esper_kernel_origins",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("digest", sa.String(64), sa.ForeignKey(_KERNEL, ondelete="CASCADE"), primary_key=True),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("time", _TIME, nullable=False),
        sa.Column("checksum", sa.String(64), nullable=False),
    )
    deciding = ("kind", "blueprint", "dtype", "blend", "placement", "lifecycle", "rank", "parameters")
    for name in ("rank", "created", "updated", "parameters"):
        names = dict.fromkeys((name, "digest", *deciding, "labels", "carried"))
        op.create_index(f"ix_esper_kernels_{name}", "esper_kernels", [*names])
    for name in ("fits", "kind", "blueprint", "dtype", "lifecycle"):
        op.create_index(f"ix_esper_kernels_{name}", "esper_kernels", [name, "digest"])
    op.create_index("ix_esper_kernels_blob", "esper_kernels", ["blob"])
    for table in ("tags", "attributes", "origins"):
        op.create_index(f"ix_esper_kernel_{table}_digest", f"esper_kernel_{table}", ["digest"])
    op.create_index("ix_esper_kernel_origins_run", "esper_kernel_origins", ["run", "digest"])


def downgrade() -> None:
    """Removes all of it."""
    for table in (
        "esper_kernel_origins",
        "esper_kernel_attributes",
        "esper_kernel_tags",
        "esper_kernels",
        "esper_library",
    ):
        op.drop_table(table)
