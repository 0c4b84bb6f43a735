"""TLS to PostgreSQL: a real server with a real certificate, or none where no server here has OpenSSL."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from pgmail.errors import DatabaseAway
from pgmail.sandbox import programs
from pgmail.sandbox.postgres import EmbeddedPostgres
from pgmail.sqlfiles import Query
from pgmail.store import migrate
from pgmail.store.database import Database
from pgmail.store.listen import Listener
from pgmail.store.single import lend
from tests.fix_db import PREFIX, other_servers
from tests.waiting import eventually

SAFE = Query("safe", "one", "select ssl, version from pg_stat_ssl where pid = pg_backend_pid()", "Is it TLS.")

ALL = Query(
    "all",
    "one",
    "select count(*) filter (where not ssl) as plain, count(*) as n "
    "from pg_stat_ssl join pg_stat_activity using (pid) where datname is not null and backend_type = 'client backend'",
    "How many are not.",
)


class Secured:
    """A server that speaks TLS by a certificate for `db.example.com`, and its authority."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("db.example.com")
        self.ca, stranger = folder / "ca.pem", folder / "stranger.pem"
        self.stranger = stranger
        authority.cert_pem.write_to_path(self.ca)
        trustme.CA().cert_pem.write_to_path(stranger)
        cert, key = folder / "server.pem", folder / "server.key"
        issued.private_key_pem.write_to_path(key)
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        self.server = EmbeddedPostgres(
            folder / "data",
            durable=False,
            binaries=binaries,
            settings={"ssl": "on", "ssl_cert_file": str(cert), "ssl_key_file": str(key)},
        )
        folder.chmod(0o755)
        key.chmod(0o600)
        if (account := programs.account()) is not None:  # who the server runs as, where this is root
            shutil.chown(key, account.uid, account.gid)
        self.server.start()

    def dsn(self, *, ca: Path | None = None, host: str = "db.example.com") -> str:
        address = self.server.address
        return (
            f"{address.dsn()}?sslmode=verify-full&sslrootcert={ca or self.ca}"
            f"&host={host}&hostaddr=127.0.0.1&port={address.port}"
        )


@pytest.fixture(scope="module")
def secured() -> Iterator[Secured]:
    found = other_servers()
    if not found:
        pytest.skip("no installed PostgreSQL here, and the embedded ones are built without OpenSSL")
    folder = Path(tempfile.mkdtemp(prefix="pgmail-tls-"))
    made = Secured(folder, found[max(found)])
    yield made
    made.server.remove()
    shutil.rmtree(folder, ignore_errors=True)


async def test_everything_that_connects_does_so_by_verified_tls_when_the_address_says_so(secured):
    migrate.upgrade(secured.dsn(), prefix=PREFIX)
    async with lend(secured.dsn()) as connection:
        assert (await (await connection.execute(SAFE.text.encode())).fetchone())[0]
    database = Database(secured.dsn(), name="tls", low=1, high=2)
    listener = Listener(secured.dsn(), lambda: None)
    await database.open()
    await listener.start()
    try:
        row = await database.one(SAFE)
        assert row.ssl
        assert row.version.startswith("TLSv1.")
        await eventually(lambda: _several(database), what="pool and listener, by TLS")
    finally:
        await listener.stop()
        await database.close()


async def _several(database: Database) -> bool:
    found = await database.one(ALL)
    assert found.plain == 0
    return found.n >= 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"host": "other.example.com"}, 'does not match host name "other.example.com"'),
        ({"ca": "stranger"}, "certificate verify failed"),
    ],
)
async def test_another_name_and_another_authority_are_refused_in_one_clear_line(secured, change, words):
    given = {name: secured.stranger if value == "stranger" else value for name, value in change.items()}
    with pytest.raises(DatabaseAway, match=words) as refused:
        async with lend(secured.dsn(**given)):
            pass
    assert secured.server.address.password not in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(DatabaseAway, match=words):
        migrate.upgrade(secured.dsn(**given), prefix=PREFIX)


async def test_a_server_without_tls_is_refused_where_tls_is_asked_for(db):
    with pytest.raises(DatabaseAway, match="does not support SSL"):
        async with lend(f"{db.dsn}?sslmode=verify-full&sslrootcert=system"):
            pass
