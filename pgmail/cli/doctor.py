"""`pgmail doctor`: what is wrong, worst first, each with the command that mends it.

Exit code 1 if something failed. What can go wrong with the doctor itself: it may only look as the role that
it connects as; what that may not see is marked as skipped.
"""

from __future__ import annotations

import click

from pgmail.cli import common, output
from pgmail.errors import PgmailError, SettingsError

_SHOW = {"status": "", "check": "check", "message": "what was found", "mend": "what mends it"}
_PAIN = {"failed": 0, "warning": 1, "skipped": 2, "ok": 3}


@click.command(short_help="Find out what is wrong, and what mends it.")
@common.as_json
def doctor(as_json: bool) -> None:
    """Check settings, database, schema, roles, partitions, workers, relays and clocks; worst first."""
    from pgmail.cli.doctor_checks import examine  # noqa: PLC0415
    from pgmail.cli.doctor_finding import Finding  # noqa: PLC0415

    async def look() -> list[Finding]:
        return [finding async for finding in examine(settings)]

    try:
        settings = common.settings()
    except SettingsError as error:
        found = [Finding("settings", "failed", fault, "pgmail config show") for fault in error.faults]
    else:
        found = common.run(look())
    found.sort(key=lambda finding: _PAIN[finding.status])
    output.show(found, _SHOW, as_json=as_json)
    failed = sum(finding.status == "failed" for finding in found)
    if failed:
        raise PgmailError(f"{failed} of {len(found)} checks failed")
