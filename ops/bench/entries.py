"""The races and their entries: who runs in which, and what each keeps safe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from contestants import Contestant, bullmq, bullmq_fill, celery, express, on_postgres, pgmail, postfix

_COMMIT = "PostgreSQL, on disk before the answer (synchronous_commit=on)"
_OURS = f"{_COMMIT}; content, events and outcome of each mail are kept"
_AOF = "Redis, on disk within a second (appendfsync everysec); done jobs are forgotten"
_DELETED = f"{_COMMIT}; done jobs are deleted"
_LOGGED = f"{_COMMIT}; a line of log is kept for each job"
_KEPT = f"{_COMMIT}; done jobs and their events are kept"
_FILES = "a file for each mail, on disk before the 250; lines of log for each"

_REDIS = ("node", "npm", "redis-server")
_MAIL = (*_REDIS, "smtp-sink")
_CELERY = ("redis-server", "smtp-sink")
_NODE = ("node", "npm")
_POSTFIX = ("postfix", "smtp-source", "smtp-sink")

_E2E, _QUEUE, _ENQUEUE, _API = "mails_per_s", "jobs_per_s", "send_many_per_s", "rps_16"
_GRAPHILE, _PGQUEUER, _PROCRASTINATE = "graphile.mjs", "pgqueuer_noop.py", "procrastinate_noop.py"


def _mail(processes: int, mails: int) -> Contestant:
    name = f"BullMQ + nodemailer, {processes} process{'es' if processes > 1 else ''}"
    return Contestant(name, _AOF, bullmq(_E2E, processes, mails, mail=True), _MAIL)


def _noop(processes: int, jobs: int) -> Contestant:
    name = f"BullMQ, {processes} process{'es' if processes > 1 else ''}"
    return Contestant(name, _AOF, bullmq(_QUEUE, processes, jobs, mail=False), _REDIS)


RACES: Mapping[str, Sequence[Contestant]] = {
    "e2e": (
        Contestant("pgmail, 2 processes", _OURS, pgmail("e2e", _E2E, 30_000)),
        Contestant("pgmail, 1 process", _OURS, pgmail("e2e", _E2E, 20_000, processes=1)),
        _mail(2, 15_000),
        _mail(1, 10_000),
        Contestant("Postfix relay", _FILES, postfix, _POSTFIX),
        Contestant("Celery + smtplib, 2 processes", _AOF, celery(_E2E, 4000, work=1), _CELERY),
    ),
    "queue": (
        Contestant("pgmail, 2 processes", _OURS, pgmail("queue", _QUEUE, 60_000)),
        Contestant("pgmail, 1 process", _OURS, pgmail("queue", _QUEUE, 40_000, processes=1)),
        _noop(2, 60_000),
        _noop(1, 60_000),
        Contestant(
            "Graphile Worker", _DELETED, on_postgres(_GRAPHILE, _QUEUE, 60_000, concurrency=24), _NODE
        ),
        Contestant("PgQueuer", _LOGGED, on_postgres(_PGQUEUER, _QUEUE, 40_000, concurrency=500)),
        Contestant("procrastinate", _KEPT, on_postgres(_PROCRASTINATE, _QUEUE, 3000, concurrency=20)),
    ),
    "enqueue": (
        Contestant("pgmail send_many", _OURS, pgmail("enqueue", _ENQUEUE)),
        Contestant("BullMQ addBulk", _AOF, bullmq_fill, _REDIS),
        Contestant(
            "Graphile Worker addJobs", _DELETED, on_postgres(_GRAPHILE, _ENQUEUE, 40_000, work=0), _NODE
        ),
        Contestant("PgQueuer enqueue", _LOGGED, on_postgres(_PGQUEUER, _ENQUEUE, 40_000, work=0)),
        Contestant("procrastinate batch_defer", _KEPT, on_postgres(_PROCRASTINATE, _ENQUEUE, 20_000, work=0)),
        Contestant("Celery apply_async", _AOF, celery(_ENQUEUE, 4000, work=0), _CELERY),
    ),
    "api": (
        Contestant("pgmail api, 1 process", _OURS, pgmail("api", _API)),
        Contestant("Express + BullMQ, 1 process", _AOF, express, _REDIS),
    ),
}
"""The first entry of each race is the one that the others are held against."""
