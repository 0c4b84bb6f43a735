"""Sites that are no receiving domain."""

from __future__ import annotations

TEST_SITE = "test:"
"""The site of all test email, as SQL's `test_site()` has it: a colon stands in no domain."""
