"""What tests of the SQL share: bodies, sending, and a worker moved by hand."""

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

Connection = psycopg.Connection[Any]
NOBODY = UUID(int=0)


def body(to: Any = "ada@example.org", **more: Any) -> dict[str, Any]:
    """The smallest email, and more; a value None takes a key away."""
    made = {"from": "shop@example.com", "to": to, "subject": "Hi", "text": "Hello"} | more
    return {key: value for key, value in made.items() if value is not None}


# Tests share a server, and copies of a database their tables' numbers: whoever looks at locks or sessions says whose.
LOCKS_HERE = "pg_locks l join pg_database d on d.oid = l.database and d.datname = current_database()"
SESSIONS_HERE = "(select * from pg_stat_activity where datname = current_database()) a"


def one(connection: Connection, text: str, params: Any = None) -> Any:
    """The first value of the first row."""
    row = connection.execute(text, params).fetchone()
    return row[0] if row else None


def rows(connection: Connection, text: str, params: Any = None) -> list[Any]:
    return connection.execute(text, params).fetchall()


def send(connection: Connection, to: Any = "ada@example.org", **more: Any) -> UUID:
    return one(connection, "select pgmail.send(%s)", [Jsonb(body(to, **more))])


def send_many(
    connection: Connection, items: Any, *, strict: bool = True, key: str | None = None
) -> list[Any]:
    """Rows of (position, id, code, field, message)."""
    return rows(
        connection,
        "select * from pgmail.send_many(%s, strict => %s, idempotency_key => %s)",
        [Jsonb(items), strict, key],
    )


def recipients(connection: Connection, message: UUID) -> list[UUID]:
    """The ids of an email's recipients, in their order."""
    return [row[0] for row in rows(connection, "select recipient_id from pgmail.status(%s)", [message])]


def states(connection: Connection, id: UUID) -> list[str]:
    return [row[0] for row in rows(connection, "select state from pgmail.status(%s)", [id])]


def state(connection: Connection, id: UUID) -> str:
    (only,) = states(connection, id)
    return only


def events(connection: Connection, id: UUID) -> list[str]:
    """Types of what happened, oldest first, without the leading `email.`."""
    told = rows(connection, "select type from pgmail.trace(%s)", [id])
    return [row[0].removeprefix("email.") for row in told]


def count(connection: Connection, table: str) -> int:
    return one(connection, sql.SQL("select count(*) from pgmail.{}").format(sql.Identifier(table)))


def stream(connection: Connection, name: str, **settings: Any) -> str:
    connection.execute("select pgmail.save_stream(%s, %s)", [name, Jsonb(settings)])
    return name


def differences(connection: Connection) -> list[int]:
    """The ledger's difference of each tenant; and each figure against the full count, which raises if unequal."""
    cursor = connection.execute("select * from pgmail.ledger")
    names = [column.name for column in cursor.description or ()]
    ledger = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    counted: dict[int, dict[str, int]] = {}
    for tenant, what, n in rows(connection, "select tenant_id, state, n from pgmail.recount()"):
        counted.setdefault(tenant, {})[what] = n
    for line in ledger:
        real = counted.get(line["tenant_id"], {})
        figures = {
            k: v for k, v in line.items() if k not in {"tenant", "tenant_id", "enqueued", "difference"}
        }
        assert {k: v for k, v in figures.items() if v} == real
        assert line["enqueued"] - line["difference"] == sum(real.values())
    assert misplaced(connection) == []
    return [line["difference"] for line in ledger]


def misplaced(connection: Connection) -> list[Any]:
    """Lanes in which not as many wait as statements have told: (tenant, lane, told, there)."""
    return rows(
        connection,
        """
        with told as (
          select tenant_id, lane, sum(n) as n from (
            select tenant_id, lane, depth as n from pgmail.backlog
            union all
            select t.tenant_id, u.lane, case t.kind when 'enqueued' then u.n else -u.n end
            from pgmail.tally t, unnest(t.lanes, t.per_lane) u(lane, n)) x group by 1, 2
        ), there as (select tenant_id, lane, count(*) as n from pgmail.queue group by 1, 2)
        select coalesce(a.tenant_id, b.tenant_id), coalesce(a.lane, b.lane), a.n, b.n
        from told a full join there b on b.tenant_id = a.tenant_id and b.lane = a.lane
        where coalesce(a.n, 0) <> coalesce(b.n, 0)
        """,
    )


class Refusal(NamedTuple):
    """A fault as SQL raised it."""

    code: str | None
    field: str | None
    state: str | None


def refusal(error: psycopg.Error) -> Refusal:
    return Refusal(error.diag.constraint_name, error.diag.message_detail or "", error.sqlstate)


class Lease(NamedTuple):
    id: UUID
    message_id: UUID
    lane: int
    due_at: Any
    claims: int
    attempts: int
    rescues: int
    expires_at: Any
    tried_since: Any
    vowed: bool = False


class Hand:
    """A worker moved by hand: registered, and does only what it is told."""

    def __init__(self, connection: Connection, tenant: int = 1) -> None:
        self.connection, self.tenant = connection, tenant
        self.epoch = one(connection, "select pgmail.worker_start_v1('host', 1, 'test', 10)")

    def fold(self) -> int:
        return one(self.connection, "select pgmail.fold_touches_v1()")

    def lanes(self) -> list[int]:
        """All lanes that hold something, whatever the lane table says."""
        found = rows(
            self.connection, "select distinct lane from pgmail.queue where tenant_id = %s", [self.tenant]
        )
        return [row[0] for row in found]

    def claim(
        self,
        most: int = 1000,
        *,
        lanes: Sequence[int] | None = None,
        head: tuple[Any, UUID] = ("-infinity", NOBODY),
        traced: bool = True,
        holds: bool = False,
    ) -> list[Lease]:
        lanes = self.lanes() if lanes is None else lanes
        n = len(lanes)
        answer = rows(
            self.connection,
            "select * from pgmail.claim_v3(%s, %s, %s::bigint[], %s::timestamptz[], %s::uuid[], %s::int[],"
            " %s::bool[], %s::bool[])",
            [
                self.tenant,
                self.epoch,
                lanes,
                [head[0]] * n,
                [head[1]] * n,
                [most] * n,
                [traced] * n,
                [holds] * n,
            ],
        )
        return [Lease(*row) for row in answer]

    def claim_as_of_old(self, most: int = 1000) -> list[Lease]:
        """As workers of 0.1 claim, from the start of all lanes."""
        lanes = self.lanes()
        n = len(lanes)
        answer = rows(
            self.connection,
            "select * from pgmail.claim_v1(%s, %s, %s::bigint[], %s::timestamptz[], %s::uuid[], %s::int[], %s::bool[])",
            [self.tenant, self.epoch, lanes, ["-infinity"] * n, [NOBODY] * n, [most] * n, [True] * n],
        )
        return [Lease(*row) for row in answer]

    def result(self, lease: Lease, kind: str, **more: Any) -> dict[str, Any]:
        return {
            "id": str(lease.id),
            "message_id": str(lease.message_id),
            "claims": lease.claims,
            "kind": kind,
            "lane": lease.lane,
            "stream": "transactional",
            "priority": 2,
            "site": "example.org",
            "attempts": lease.attempts,
        } | more

    def settle(self, leases: Lease | Sequence[Lease], kind: str = "sent", **more: Any) -> list[str]:
        """The answers, in the order of the leases."""
        each = [leases] if isinstance(leases, Lease) else leases
        return self.settle_results([self.result(lease, kind, **more) for lease in each])

    def settle_results(self, results: list[dict[str, Any]]) -> list[str]:
        answer = rows(
            self.connection,
            "select id, result from pgmail.settle_v1(%s, %s, %s)",
            [self.tenant, self.epoch, Jsonb(results)],
        )
        said = {str(row[0]): row[1] for row in answer}
        return [said[result["id"]] for result in results]

    def begin(self, leases: Lease | Sequence[Lease], relay: str = "default") -> list[str | None]:
        """Commit intents; the answers in the order of the leases, None where nothing was answered."""
        each = [leases] if isinstance(leases, Lease) else leases
        answer = rows(
            self.connection,
            "select id, result from pgmail.begin_v1(%s, %s, %s, %s, %s)",
            [self.tenant, self.epoch, [x.id for x in each], [x.claims for x in each], [relay] * len(each)],
        )
        said = dict(answer)
        return [said.get(lease.id) for lease in each]

    def release(self, leases: Sequence[Lease], reason: str | None = None) -> list[UUID]:
        answer = rows(
            self.connection,
            "select pgmail.release_v1(%s, %s, %s, %s, %s)",
            [self.tenant, self.epoch, [x.id for x in leases], [x.claims for x in leases], reason],
        )
        return [row[0] for row in answer]

    def rescue(self, epoch: int | None = None) -> int:
        """Declare a worker dead: this one unless another is named."""
        return one(self.connection, "select pgmail.rescue_v1(%s)", [epoch or self.epoch])
