"""Who may do what, walked from the catalogue: the tables in ops/docs/security.md are what the database says.

PGMAIL_WRITE_RIGHTS=1 on this file writes them anew; then read what changed, as a reviewer of rights would.
"""

import os
import re
from pathlib import Path

import pytest

from pgmail import sqlfiles
from tests.fix_db import PREFIX
from tests.sql import kit

PAGE = Path(sqlfiles.home()) / "ops" / "docs" / "security.md"
ROLES = ["producer", "analyst", "reader", "api", "worker", "maintain", "admin"]
_BEGIN, _END = (
    "<!-- rights: written by PGMAIL_WRITE_RIGHTS=1 pytest tests/sql/test_rights_page.py -->",
    "<!-- end of rights -->",
)

_FUNCTIONS = """
select p.proname, count(*) over (partition by p.proname) > 1 as several,
  pg_get_function_identity_arguments(p.oid) as arguments,
  array(select r.role from unnest(%(roles)s::text[]) r(role)
        where has_function_privilege(%(prefix)s || r.role, p.oid, 'execute')) as may
from pg_proc p where p.pronamespace = 'pgmail'::regnamespace order by 1, 3
"""

# Whether rows are all or the tenant's own: a policy's condition, or a view of one's own.
_TABLES = """
select c.relname, r.role,
  has_table_privilege(x.name, c.oid, 'select') as whole,
  array(select a.attname::text from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        and not has_column_privilege(x.name, c.oid, a.attnum, 'select') order by a.attnum) as hidden,
  has_any_column_privilege(x.name, c.oid, 'select') as any_,
  has_table_privilege(x.name, c.oid, 'insert, update, delete, truncate, references, trigger')
    or has_any_column_privilege(x.name, c.oid, 'insert, update, references') as writes,
  case when c.relname like 'my\\_%%' then 'own'
       when c.relkind = 'v' then (select case when bool_or(p.polname like '%%tenant') then 'own' else 'all' end
         from pg_policy p where p.polrelid = 'pgmail.event'::regclass and x.oid = any (p.polroles))
       else (select case when pg_get_expr(p.polqual, p.polrelid) = 'true' then 'all' else 'own' end
         from pg_policy p where p.polrelid = c.oid and x.oid = any (p.polroles)) end as which
from pg_class c
cross join unnest(%(roles)s::text[]) with ordinality r(role, o)
cross join lateral (select g.oid, g.rolname as name from pg_roles g where g.rolname = %(prefix)s || r.role) x
where c.relnamespace = 'pgmail'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'S') and not c.relispartition
order by c.relname, r.o
"""


def walked(connection):
    """Both tables, as Markdown."""
    asked = {"roles": ROLES, "prefix": PREFIX}
    lines = ["| function | " + " | ".join(ROLES) + " |", "|---" * (len(ROLES) + 1) + "|"]
    inner = []
    for name, several, arguments, may in kit.rows(connection, _FUNCTIONS, asked):
        shown = (
            f"`{name}({', '.join(_type(one) for one in arguments.split(', '))})`" if several else f"`{name}`"
        )
        if may:
            lines.append(f"| {shown} | " + " | ".join("x" if role in may else "" for role in ROLES) + " |")
        else:
            inner.append(shown)
    lines += ["", "Called by these alone, and by nobody else: " + ", ".join(dict.fromkeys(inner)) + ".", ""]
    lines += ["| table or view | " + " | ".join(ROLES) + " |", "|---" * (len(ROLES) + 1) + "|"]
    found: dict[str, list[str]] = {}
    for name, _, whole, hidden, any_, writes, which in kit.rows(connection, _TABLES, asked):
        assert not writes, name
        cell = "" if not any_ else (which or "none") + ("" if whole else f" but {', '.join(hidden)}")
        found.setdefault(name, []).append(cell)
    lines += [f"| `{name}` | " + " | ".join(cells) + " |" for name, cells in found.items() if any(cells)]
    closed = [f"`{name}`" for name, cells in found.items() if not any(cells) and name != "alembic_version"]
    lines += ["", "Read and written by functions alone: " + ", ".join(closed) + "."]
    return "\n".join(re.sub(r" +\|", " |", line) for line in lines)


def _type(argument):
    return argument.split(" ", 1)[-1]


@pytest.mark.one_server
def test_the_page_says_who_may_do_what(owner):
    made = walked(owner)
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(_BEGIN)
    kept, after = rest.split(_END)
    if os.environ.get("PGMAIL_WRITE_RIGHTS"):
        kept = f"\n{made}\n"
        PAGE.write_text(before + _BEGIN + kept + _END + after, encoding="utf-8")
    assert kept.strip().splitlines() == made.splitlines(), "rights changed: write the page anew, and read it"


@pytest.mark.one_server
def test_a_right_that_is_new_shows(owner):
    before = walked(owner)
    owner.execute(f"grant execute on function pgmail.suppressed_as(integer, text) to {PREFIX}producer")
    owner.execute(f"grant select (hash) on pgmail.api_key to {PREFIX}worker")
    changed = set(walked(owner).splitlines()) - set(before.splitlines())
    assert any(line.startswith("| `suppressed_as` | x |") for line in changed)
    assert any(line.startswith("| `api_key` |") and "but tenant_id, id" in line for line in changed), changed
