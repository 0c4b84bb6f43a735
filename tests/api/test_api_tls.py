"""HTTPS: the API speaks it when told, and refuses to speak plain HTTP to a network unless told."""

import socket
import ssl

import httpx
import pytest
import trustme

from pgmail.api import server
from pgmail.api.tls import server_options
from pgmail.config import Settings
from pgmail.errors import SettingsError
from tests.api.test_api_server import serving


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(authority, tmp_path) -> dict[str, str]:
    issued = authority.issue_cert("127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    return {"api_tls_cert": str(cert), "api_tls_key": str(key)}


def test_with_a_certificate_it_speaks_https_and_nothing_else(db, authority, files):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with serving(db.dsn_for("api"), **files) as url:
        answer = httpx.get(url.replace("http:", "https:") + "/health/live", verify=context)
        assert answer.json() == {"status": "ok"}
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{url}/health/live")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(url.replace("http:", "https:") + "/health/live")


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.7", "2001:db8::1"])
def test_plain_http_on_a_network_is_refused_unless_told(address):
    with pytest.raises(SettingsError, match="in the clear"):
        server_options(Settings(), address)
    assert server_options(Settings(api_plain_http=True), address) == {}


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1"])
def test_plain_http_on_this_machine_is_fine(address):
    assert server_options(Settings(), address) == {}


async def test_the_server_itself_does_not_start_so_and_leaves_the_port_free(db):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
    settings = Settings(api_database_url=db.dsn_for("api"), api_host="0.0.0.0", api_port=port)
    with pytest.raises(SettingsError, match="PGMAIL_API_HOST"):
        await server.run(settings)
    with socket.socket() as again:
        again.bind(("127.0.0.1", port))


def test_what_is_wrong_with_the_files_is_said_with_their_setting(files, tmp_path):
    def fault(**changes: str) -> str:
        with pytest.raises(SettingsError) as error:
            server_options(Settings(**(files | changes)), "127.0.0.1")
        return str(error.value)

    assert (
        fault(api_tls_cert="/nowhere.pem") == "PGMAIL_API_TLS_CERT: /nowhere.pem: No such file or directory"
    )
    assert "PGMAIL_API_TLS_KEY: /nowhere.pem" in fault(api_tls_key="/nowhere.pem")
    assert "there is no PGMAIL_API_TLS_CERT" in fault(api_tls_cert="")
    other = tmp_path / "other.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_pem.write_to_path(other)
    assert "KEY_VALUES_MISMATCH" in fault(api_tls_key=str(other)).upper().replace(" ", "_")
    other.write_text("nonsense")
    assert "not a PEM certificate" in fault(api_tls_key=str(other))
