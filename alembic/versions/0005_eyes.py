"""Eyes and ears: the feed of events, roll-ups, webhooks, alerts, the dashboard."""

from __future__ import annotations

from pgmail.store.migrate import run_step

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Run the pair's `.up.sql`."""
    run_step(__file__, "up")


def downgrade() -> None:
    """Run the pair's `.down.sql`."""
    run_step(__file__, "down")
