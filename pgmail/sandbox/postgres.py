"""A PostgreSQL of our own in a folder: for `pgmail demo`, the sandbox and the tests.

`initdb` and `postgres` are driven directly. The server listens on 127.0.0.1, on a port that was free, and on
a Unix socket in its own folder where the path is short enough for one. It asks everyone for a password
(SCRAM); the superuser's is random and kept in a file of mode 0600. A guard process ends it when this process
ends.

The folder holds `pgdata`, `password`, `log` and `lock`. What can go wrong:

- Another living process uses the folder: refused, by a lock that the kernel releases with its holder.
- A server survived an earlier run (its guard was killed too): it is found by `postmaster.pid` and its working
  directory, never by name, and stopped before ours starts.
- The port is taken between finding and using it: another one is tried.
- With `durable=False` a crash of the operating system may leave the data unreadable. It is for tests.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple, Self
from urllib.parse import quote

from pgmail.errors import SandboxError
from pgmail.sandbox import datafolder, programs
from pgmail.sandbox.guard import GENTLE, POSTGRES, Guarded, guarded_popen
from pgmail.sandbox.ports import free_port

SUPERUSER: Final = "postgres"
_LOOPBACK: Final = "127.0.0.1"
_LONGEST_SOCKET_PATH: Final = 103  # bytes in sockaddr_un on macOS; Linux has four more
_START_SECONDS: Final = 60.0  # crash recovery of a small database is included
_STALE_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.01
_ATTEMPTS: Final = 5
_KEPT_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")

_SETTINGS: Final = {
    "listen_addresses": _LOOPBACK,
    "max_connections": "100",
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "max_wal_size": "512MB",
    "fsync": "on",
}
_NOT_DURABLE: Final = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
}


class Address(NamedTuple):
    """Where a server is and how its superuser enters."""

    host: str
    port: int
    socket_folder: Path | None
    user: str
    password: str

    def dsn(self, database: str = "postgres", *, user: str | None = None, password: str | None = None) -> str:
        """A connection URI over TCP; as the superuser unless another `user` and `password` are given."""
        who = quote(user or self.user, safe="")
        word = quote(self.password if user is None else (password or ""), safe="")
        return f"postgresql://{who}:{word}@{self.host}:{self.port}/{quote(database, safe='')}"


class EmbeddedPostgres:
    """One server in `data_folder`. Use as a context manager, or `start` and `stop`; stopping twice is fine.

    `version` is 18 or 16. `durable=False` trades safety for speed. `settings` are added to the server's own,
    as on its command line. `binaries` names a folder with `initdb` and `postgres` of an installed PostgreSQL
    instead of the packaged one (its major version is then whatever it is). `port` 0 takes a free one at each
    start; a server that is killed and started again under its clients needs one of its own. All methods block,
    for a second or so.
    """

    def __init__(
        self,
        data_folder: Path,
        version: int = 18,
        *,
        durable: bool = True,
        settings: Mapping[str, str] | None = None,
        binaries: Path | None = None,
        port: int = 0,
    ) -> None:
        self._port = port
        self._wanted_folder = Path(os.path.abspath(data_folder))  # noqa: PTH100 - a link in it stays a link
        self._version = version
        self._settings = _SETTINGS | ({} if durable else _NOT_DURABLE) | dict(settings or {})
        self._given_binaries = binaries
        self._runner: programs.Account | None = None
        self._folder: Path | None = None
        self._lock: int | None = None
        self._process: Guarded | None = None
        self._address: Address | None = None
        self._binaries: Path | None = None

    @property
    def data_folder(self) -> Path:
        """Where the data is: the folder asked for, or ours where the server's account cannot reach that."""
        if self._folder is None:
            self._runner = programs.account()
            self._folder = datafolder.place(self._wanted_folder, self._runner)
        return self._folder

    @property
    def log(self) -> Path:
        """The server's log of its latest start."""
        return self.data_folder / "log"

    @property
    def binaries(self) -> Path:
        """The folder of the programs in use, `pg_dump` and `psql` among them."""
        if self._binaries is None:
            given = self._given_binaries or programs.bundled(self._version)
            self._binaries = programs.usable(given, programs.account())
        return self._binaries

    @property
    def address(self) -> Address:
        """Where the running server is. SandboxError when it is not running."""
        if self._address is None:
            raise SandboxError("the embedded PostgreSQL is not running")
        return self._address

    @property
    def pid(self) -> int | None:
        """The id of the server's first process while it runs."""
        return self._process.pid if self._process else None

    def dsn(self, database: str = "postgres") -> str:
        """A connection URI for the superuser."""
        return self.address.dsn(database)

    def start(self) -> Address:
        """Start the server, initialising the folder the first time. Returns when it takes connections.

        SandboxError when it cannot: in use by another process, owned by another account, no programs.
        """
        if self._address is not None:
            return self._address
        folder = self.data_folder
        datafolder.make_own(folder, self._runner)
        self._lock = datafolder.lock(folder / "lock")
        try:
            self._remove_leftovers()
            if not (folder / "pgdata" / "PG_VERSION").is_file():
                self._initialise()
            self._check_version()
            password = datafolder.read_file(folder / "password").strip()
            port = self._launch()
        except BaseException:
            self.stop()
            raise
        self._address = Address(_LOOPBACK, port, self._socket_folder, SUPERUSER, password)
        return self._address

    def stop(self) -> None:
        """Stop the server: fast, after five seconds at once. The data stays."""
        self._address = None
        if self._process is not None:
            self._process.stop()
            self._process = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def remove(self) -> None:
        """Stop the server and delete its folder."""
        folder = self.data_folder
        self.stop()
        if folder.exists():
            datafolder.check_owner(folder, self._runner)
            lock = datafolder.lock(folder / "lock")
            try:
                self._stop_stale_server()
                while folder.exists():
                    # A server's last process may still take away a file that we are about to.
                    with contextlib.suppress(FileNotFoundError):
                        shutil.rmtree(folder)
            finally:
                os.close(lock)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def _socket_folder(self) -> Path | None:
        longest = len(os.fsencode(self.data_folder / ".s.PGSQL.65535"))
        return self.data_folder if longest <= _LONGEST_SOCKET_PATH else None

    def _initialise(self) -> None:
        """Run `initdb` into a folder beside, so that `pgdata` is whole or absent."""
        folder = self.data_folder
        password = folder / "password"
        new = folder / "pgdata.new"
        for leftover in (new, folder / "pgdata"):
            shutil.rmtree(leftover, ignore_errors=True)
        password.unlink(missing_ok=True)
        with os.fdopen(datafolder.open_file(password, os.O_EXCL, self._runner), "w") as file:
            file.write(secrets.token_urlsafe(24) + "\n")
        for locale in self._locales():
            argv: list[str | Path] = [
                self.binaries / "initdb",
                f"--pgdata={new}",
                f"--username={SUPERUSER}",
                f"--pwfile={password}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--no-sync",
                "--no-instructions",
                *locale,
            ]
            with self._run(argv, fresh_log=True) as initdb:
                code = initdb.wait(_START_SECONDS)
            if code == 0:
                new.rename(folder / "pgdata")
                return
        raise SandboxError(f"initdb failed ({code}): {self._last_words()}")

    def _locales(self) -> Iterator[list[str]]:
        """Locales to try: bytewise order with Unicode letters; where the system has none such, plain C."""
        if self._given_binaries is None and self._version >= 17:
            yield ["--locale-provider=builtin", "--locale=C", "--builtin-locale=C.UTF-8"]
        else:
            yield ["--locale=C.UTF-8"]
            yield ["--locale=C"]

    def _check_version(self) -> None:
        found = (self.data_folder / "pgdata" / "PG_VERSION").read_text(encoding="ascii").strip()
        if self._given_binaries is None and found != str(self._version):
            raise SandboxError(
                f"{self.data_folder} holds the data of PostgreSQL {found}, not {self._version}; "
                "remove the folder or name another"
            )

    def _launch(self) -> int:
        """Start `postgres` and wait until it takes connections; its port."""
        for attempt in range(1, _ATTEMPTS + 1):
            port = self._port or free_port()
            settings = self._settings | {
                "port": str(port),
                "unix_socket_directories": str(self._socket_folder or ""),
                "unix_socket_permissions": "0700",
            }
            argv: list[str | Path] = [self.binaries / "postgres", "-D", self.data_folder / "pgdata"]
            argv += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
            self._process = self._run(argv, fresh_log=attempt == 1)
            if self._came_up(self._process):
                return port
            self._process.stop()
            self._process = None
            said = self.log.read_text(encoding="utf-8", errors="replace")
            # Processes of a server killed a moment ago hold its memory until they notice.
            if "pre-existing shared memory block" in said:
                time.sleep(0.2 * attempt)
            elif "could not bind" not in said and "could not create any TCP/IP sockets" not in said:
                break
        raise SandboxError(f"the embedded PostgreSQL did not start: {self._last_words()}")

    def _came_up(self, process: Guarded) -> bool:
        """Wait for the word `ready` in the server's own pid file, which needs no driver and no password."""
        until = time.monotonic() + _START_SECONDS
        while process.poll() is None and time.monotonic() < until:
            lines = datafolder.pid_file(self.data_folder)
            if lines[:1] == [str(process.pid)] and lines[-1].strip() == "ready":
                return True
            time.sleep(_POLL_SECONDS)
        return False

    def _run(self, argv: list[str | Path], *, fresh_log: bool) -> Guarded:
        log = datafolder.open_file(self.log, os.O_APPEND | (os.O_TRUNC if fresh_log else 0), self._runner)
        try:
            return guarded_popen(
                argv,
                user=self._runner.uid if self._runner else None,
                # Not our own environment: it may hold PGDATA, a locale this system lacks, and secrets.
                env={k: os.environ[k] for k in _KEPT_ENVIRONMENT if k in os.environ}
                | {"LC_ALL": "C", "TZ": "UTC"},
                cwd=self.data_folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                ladder=POSTGRES if argv[0] == self.binaries / "postgres" else GENTLE,
            )
        except OSError as error:
            raise SandboxError(f"{argv[0]} cannot be started: {error.strerror}") from error
        finally:
            os.close(log)

    def _remove_leftovers(self) -> None:
        self._stop_stale_server()
        for path in self.data_folder.glob(".s.PGSQL.*"):
            path.unlink(missing_ok=True)

    def _stop_stale_server(self) -> None:
        """Stop a server that outlived an earlier run. We hold the lock, so nobody else wants it."""
        pgdata = self.data_folder / "pgdata"
        lines = datafolder.pid_file(self.data_folder)
        if not lines or not lines[0].strip().isdigit():
            return
        pid = int(lines[0])
        until = time.monotonic() + _STALE_SECONDS
        number = signal.SIGQUIT
        while datafolder.serves(pid, pgdata):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            if time.monotonic() > until + _STALE_SECONDS:
                raise SandboxError(
                    f"an earlier server, process {pid}, does not end; its folder is {pgdata.parent}"
                )
            if time.monotonic() > until:
                number = signal.SIGKILL
            time.sleep(_POLL_SECONDS * 5)
        if datafolder.alive(pid):
            # The id belongs to another program now; PostgreSQL would take it for a running server.
            (pgdata / "postmaster.pid").unlink(missing_ok=True)

    def _last_words(self) -> str:
        """The log's last telling line."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
            telling = [line for line in lines if "FATAL" in line or "error:" in line] or lines
            if telling:
                return f"{telling[-1].strip()} (see {self.log})"
        return f"see {self.log}"
