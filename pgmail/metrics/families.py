"""Every figure that `/metrics` may show: its name, kind, labels and meaning. ops/docs/metrics.md has a line for each.

A label has a bounded set of values. Sites are those of PGMAIL_METRICS_SITES and `other`; streams and routes the first
so many that a process met, then `other`; no label holds an address, a subject or an id. Tenants are named only where
PGMAIL_METRICS_TENANTS says so.

What can go wrong: a figure is renamed and a dashboard shows nothing. A test holds ops/grafana and ops/prometheus
against this table, and what a process shows is looked up here: a name that is not in it is a fault.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["counter", "gauge", "histogram"]

PREFIX = "pgmail_"


class Family(NamedTuple):
    """One figure. `name` is without the prefix `pgmail_` and without the `_total` that a counter is shown with."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    text: str

    @property
    def shown(self) -> str:
        """The name of its samples; a histogram's have `_bucket`, `_sum` and `_count` behind it."""
        return f"{PREFIX}{self.name}{'_total' if self.kind == 'counter' else ''}"


EVERY = (
    Family("process", "gauge", ("role", "version"), "1: a process of this role and version."),
    Family("pool_connections", "gauge", ("pool",), "Database connections of a pool."),
    Family(
        "pool_idle",
        "gauge",
        ("pool",),
        "Of these, connections that nobody uses or keeps (the API keeps those of `api-send`).",
    ),
    Family("pool_waiting", "gauge", ("pool",), "Tasks that wait for a connection of a pool."),
    Family(
        "pool_requests",
        "counter",
        ("pool",),
        "Connections asked for; of `api-send` once for a second of statements.",
    ),
    Family("pool_wait_seconds", "counter", ("pool",), "Time that was waited for them."),
    Family("pool_errors", "counter", ("pool",), "Of these requests, those that got none in time."),
    Family("pool_lost", "counter", ("pool",), "Connections that broke while they were lent."),
)

WORKER = (
    Family("claim_round_trips", "counter", (), "Claims: statements that asked the queue for mail."),
    Family("claims_empty", "counter", (), "Of these, those that found none."),
    Family("claimed", "counter", (), "Recipients claimed."),
    Family("given_back", "counter", (), "Leases given back untried: paused, relay away, drained, too late."),
    Family(
        "phase_seconds",
        "histogram",
        ("phase",),
        "Time by phase: claim, queue, render, connection, smtp, settle.",
    ),
    Family(
        "results", "counter", ("result", "stream"), "Recipients settled: sent, bounced, deferred, dead, ..."
    ),
    Family("in_doubt", "counter", (), "Attempts whose reply was lost after the end of data."),
    Family("replies", "counter", ("site", "code", "class"), "Answers of the remote side, by what they mean."),
    Family("settle_batches", "counter", (), "Statements that recorded results."),
    Family(
        "fenced",
        "counter",
        (),
        "Results of leases that were lost: recorded, and another worker has the mail.",
    ),
    Family("withheld", "counter", (), "Mails whose end of data was not sent, at our own wish."),
    Family(
        "heavy_makes",
        "counter",
        (),
        "Mails made in a process apart: heavy templates, and suspects of a crash.",
    ),
    Family("leases", "gauge", (), "Leases that are neither settled nor given back."),
    Family("slots", "gauge", (), "Mails that this process may have on the wire at once."),
    Family("slots_busy", "gauge", (), "Slots that have one."),
    Family("stock", "gauge", ("priority",), "Claimed mail that no slot has begun."),
    Family("results_waiting", "gauge", (), "Results that are not written yet."),
    Family("smtp_connections", "gauge", ("relay", "state"), "Connections to a relay: open in all, and idle."),
    Family("relay_up", "gauge", ("relay",), "1: mail may go to this relay; 0: away, or paused."),
    Family("fresh", "gauge", (), "1: this process beat recently enough to begin mail."),
)

API = (
    Family("http_requests", "counter", ("method", "route", "status"), "Requests answered."),
    Family("http_request_seconds", "histogram", ("route",), "Time from a request to the end of its answer."),
    Family("http_in_progress", "gauge", (), "Requests that are not answered yet."),
    Family("coalesced_emails", "histogram", (), "Single emails that were sent in one statement."),
)

FLEET = (
    Family("leading", "gauge", (), "1: this process leads the fleet. Only it shows the figures below."),
    Family("rescued_leases", "counter", (), "Leases taken from dead workers by this process."),
    Family(
        "recipients", "counter", ("stream", "result"), "The ledger: enqueued, sent, bounced, suppressed, ..."
    ),
    Family("queue_depth", "gauge", ("stream",), "Recipients not settled yet; scheduled and held ones too."),
    Family(
        "oldest_due_seconds",
        "gauge",
        ("stream",),
        "How long the oldest free mail has been due, unless paused.",
    ),
    Family("dead_letters", "gauge", ("stream",), "Recipients that wait for a person as dead letters."),
    Family("held", "gauge", ("stream",), "Recipients held back; counted up to 1,000 a lane."),
    Family("held_in_doubt", "gauge", ("stream",), "Of these, those that may have been sent."),
    Family("workers", "gauge", ("program", "state"), "Processes that beat, by program and state."),
    Family("beat_age_seconds", "gauge", (), "Age of the oldest beat."),
    Family("relays", "gauge", ("state",), "Relays by what the fleet found: up, away, paused."),
    Family("doors_closed", "gauge", (), "Quotas and bounds that delay what comes in now."),
    Family("pauses", "gauge", (), "Pauses in force."),
    Family("stopped_for_restore", "gauge", (), "1: a restored database was noticed, and nothing is sent."),
    Family(
        "reached_age_seconds",
        "gauge",
        ("what",),
        "How far behind what the leader does is: reports, gauges, states, webhooks, alerts.",
    ),
    Family("partition_days_left", "gauge", (), "Days until new mail goes to the partitions of last resort."),
    Family("partition_strays", "gauge", (), "Rows that went there."),
    Family("notify_queue_ratio", "gauge", (), "How full the server's NOTIFY queue is, 0 to 1."),
    Family("db_connections", "gauge", (), "Connections that the server has, of all its databases."),
    Family("db_connections_max", "gauge", (), "How many it allows."),
    Family("db_bytes", "gauge", (), "Size of the database."),
    Family(
        "db_xid_age", "gauge", (), "Transactions since its oldest frozen one; PostgreSQL stops at 2 billion."
    ),
    Family("snapshot_span", "gauge", (), "Transactions since the oldest one that a snapshot still needs."),
    Family(
        "oldest_transaction_seconds", "gauge", (), "Age of the oldest open transaction, where it may be seen."
    ),
    Family(
        "replication_lag_seconds", "gauge", ("standby",), "How far a standby is behind, where it may be seen."
    ),
    Family("table_bytes", "gauge", ("table",), "Size without indexes; of a partitioned table in sum."),
    Family("index_bytes", "gauge", ("table",), "Size of its indexes."),
    Family("table_live", "gauge", ("table",), "Rows, by the statistics."),
    Family("table_dead", "gauge", ("table",), "Dead rows that VACUUM has not taken yet."),
    Family(
        "table_wasted_bytes", "gauge", ("table",), "Estimate of what bloat takes, of the tables that change."
    ),
    Family("table_updates", "counter", ("table",), "Rows updated."),
    Family("table_hot_updates", "counter", ("table",), "Of these, heap-only ones, which touch no index."),
    Family("table_vacuumed_seconds", "gauge", ("table",), "Time since VACUUM was last there."),
    Family("figures_seconds", "gauge", (), "What these figures cost when they were last asked for."),
    Family("figures_age_seconds", "gauge", (), "How old they are."),
)

FAMILIES: dict[str, Family] = {family.name: family for family in (*EVERY, *WORKER, *API, *FLEET)}
"""All of them, by name."""

BY_TENANT = frozenset(
    {"recipients", "queue_depth", "oldest_due_seconds", "dead_letters", "held", "held_in_doubt"}
)
"""Those that have the label `tenant` in front where PGMAIL_METRICS_TENANTS says so."""
