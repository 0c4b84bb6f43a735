"""The schema in four planes: content, recipient, queue, record."""

from __future__ import annotations

from pgmail.store.migrate import run_step

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Run the pair's `.up.sql`."""
    run_step(__file__, "up")


def downgrade() -> None:
    """Run the pair's `.down.sql`."""
    run_step(__file__, "down")
