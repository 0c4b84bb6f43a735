# pgmail without the embedded PostgreSQL: give it PGMAIL_DATABASE_URL.
#   docker run --rm -e PGMAIL_DATABASE_URL=... --no-healthcheck pgmail db upgrade
#   docker run -e PGMAIL_DATABASE_URL=... -p 8025:8025 pgmail
# Commands that serve no HTTP want --no-healthcheck.

FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md ./
COPY pgmail pgmail
COPY sql sql
COPY alembic alembic
RUN pip wheel --no-cache-dir --wheel-dir /wheels ".[seal,tracing]"

FROM python:3.12-slim
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links=/wheels --root-user-action=ignore "pgmail[seal,tracing]" \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin pgmail \
    && install -d -o pgmail /var/lib/pgmail
USER 10001
WORKDIR /tmp
# Inside a container loopback is nobody's; who may come in is decided by the port that is published.
# Keys go in the clear between the container and what speaks TLS before it: keep that on one host or a private network.
# What this host saw committed (ops/docs/restore.md): -v pgmail-state:/var/lib/pgmail keeps it beyond the container.
ENV PYTHONUNBUFFERED=1 PGMAIL_STATE_DIR=/var/lib/pgmail PGMAIL_API_HOST=0.0.0.0 PGMAIL_API_PORT=8025 PGMAIL_API_PLAIN_HTTP=true
EXPOSE 8025
# Drains on SIGTERM; give it time with `docker stop --time`.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"PGMAIL_API_PORT\"]}/health/live', timeout=2)"]
ENTRYPOINT ["pgmail"]
CMD ["serve"]
