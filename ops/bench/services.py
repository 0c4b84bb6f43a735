"""What the contestants of a race need beside them: PostgreSQL, Redis, an SMTP sink, a Postfix that relays.

Each is started for one contestant, with an empty folder of its own and a free port of the loopback, and ended
after it, so that nobody pays for another's leftovers. All of them end with this process, however it ends.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import smtplib
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from pgmail.errors import SandboxError
from pgmail.sandbox.bench.ground import SETTINGS, free_port, until, wait_for_port
from pgmail.sandbox.guard import guarded_popen
from pgmail.sandbox.postgres import EmbeddedPostgres
from pgmail.store import bench as store

SBIN = "/usr/sbin:/usr/local/sbin"
QUEUES = ("maildrop", "incoming", "active", "deferred")
_MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup    unix  n - n 60  1 pickup
cleanup   unix  n - n -   0 cleanup
qmgr      unix  n - n 300 1 qmgr
rewrite   unix  - - n -   - trivial-rewrite
bounce    unix  - - n -   0 bounce
defer     unix  - - n -   0 bounce
trace     unix  - - n -   0 bounce
verify    unix  - - n -   1 verify
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n -   - proxymap
proxywrite unix - - n -   1 proxymap
smtp      unix  - - n -   - smtp
relay     unix  - - n -   - smtp
showq     unix  n - n -   - showq
error     unix  - - n -   - error
retry     unix  - - n -   - error
discard   unix  - - n -   - discard
tlsmgr    unix  - - n 1000? 1 tlsmgr
anvil     unix  - - n -   1 anvil
scache    unix  - - n -   1 scache
postlog   unix-dgram n - n - 1 postlogd
"""
_MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/spool
data_directory = {folder}/data
maillog_file = {folder}/log
maillog_file_prefixes = {folder}
mail_owner = {owner}
setgid_group = {group}
myhostname = relay.example.com
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
mydestination =
alias_maps =
alias_database =
local_recipient_maps =
relayhost = [127.0.0.1]:{sink}
smtp_tls_security_level = none
default_destination_concurrency_limit = 20
"""


class Services:
    """Starts services below a folder. Each method is a context manager."""

    def __init__(self, work: Path) -> None:
        self.work = work

    @contextmanager
    def postgres(self) -> Iterator[str]:
        """An empty database on the embedded server, with the settings that pgmail's benches have; its DSN."""
        with EmbeddedPostgres(self.work / "postgres", settings=SETTINGS) as server:
            store.recreate(server.dsn(), "race")
            yield server.dsn("race")

    @contextmanager
    def redis(self) -> Iterator[int]:
        """Redis that appends to a file and syncs it once a second, as BullMQ's guide says; its port."""
        port, folder = free_port(), fresh(self.work / "redis")
        argv = [
            "redis-server",
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(folder),
            "--save",
            "",
        ]
        argv += ["--appendonly", "yes", "--appendfsync", "everysec", "--loglevel", "warning"]
        with guarded_popen(argv, stdout=subprocess.DEVNULL) as process:
            wait_for_port(process, port)
            yield port

    @contextmanager
    def sink(self) -> Iterator[int]:
        """Postfix's smtp-sink, the one that pgmail's benches use; its port."""
        port = free_port()
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        argv = [program("smtp-sink"), *user, f"127.0.0.1:{port}", "1000"]
        with guarded_popen(argv) as process:
            wait_for_port(process, port)
            yield port

    @contextmanager
    def postfix(self, sink: int) -> Iterator[Relay]:
        """A Postfix of its own that relays all mail to the sink. Needs root."""
        folder, port = fresh(self.work / "postfix"), free_port()
        conf = folder / "conf"
        for name in ("conf", "spool", "data"):
            (folder / name).mkdir(mode=0o755)
        owner = pwd.getpwnam("postfix")
        os.chown(folder / "data", owner.pw_uid, owner.pw_gid)
        main = _MAIN.format(folder=folder, sink=sink, owner="postfix", group=_postdrop())
        (conf / "main.cf").write_text(main, encoding="utf-8")
        (conf / "master.cf").write_text(_MASTER.format(port=port), encoding="utf-8")
        postfix = [program("postfix"), "-c", str(conf)]
        started = subprocess.run([*postfix, "start"], check=False, capture_output=True, text=True)
        try:
            if started.returncode != 0:
                raise SandboxError(f"postfix did not start: {started.stderr.strip()[-400:]}")
            until(lambda: answers(port), 20, "postfix does not answer")
            yield Relay(port, folder / "spool")
        finally:
            subprocess.run([*postfix, "stop"], check=False, capture_output=True)


class Relay(NamedTuple):
    """A running Postfix: where it listens and where its queue is."""

    port: int
    spool: Path

    def queued(self) -> int:
        """Mails that it still has."""
        return sum(_files(self.spool / name) for name in QUEUES)

    def drained(self, seconds: float) -> None:
        """Wait until it has none."""
        until(lambda: self.queued() == 0, seconds, "postfix still has mail")


def program(name: str) -> str:
    """The path of an installed program. SandboxError without it."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SBIN}")
    if found is None:
        raise SandboxError(f"{name} is not installed")
    return found


def has(*names: str) -> list[str]:
    """Those of the programs that are not installed."""
    path = f"{os.environ.get('PATH', '')}:{SBIN}"
    return [name for name in names if shutil.which(name, path=path) is None]


def fresh(folder: Path) -> Path:
    """An empty folder that other accounts may enter."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o755, parents=True)
    return folder


def answers(port: int) -> bool:
    """Whether an SMTP server greets on this port."""
    with suppress(OSError, smtplib.SMTPException), smtplib.SMTP("127.0.0.1", port, timeout=2):
        return True
    return False


def run(argv: Sequence[str | Path], *, seconds: float, cwd: Path | None = None, **env: str) -> str:
    """Run a program to its end, which comes with ours at the latest; what it printed.

    SandboxError when it fails or takes too long, OSError when it cannot be started.
    """
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as complaints,
        guarded_popen(argv, cwd=cwd, env={**os.environ, **env}, stdout=out, stderr=complaints) as process,
    ):
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise SandboxError(f"{Path(argv[0]).name} took longer than {seconds:g} s") from None
        texts = []
        for file in (out, complaints):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    if code != 0:
        said = (texts[1].strip() or texts[0].strip())[-400:]
        raise SandboxError(f"{Path(argv[0]).name} ended with code {code}: {said}")
    return texts[0]


def _postdrop() -> str:
    return grp.getgrnam("postdrop").gr_name


def _files(folder: Path) -> int:
    """Files below a folder that may change while it is looked at."""
    count = 0
    with suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            count += _files(Path(entry.path)) if entry.is_dir(follow_symlinks=False) else 1
    return count
