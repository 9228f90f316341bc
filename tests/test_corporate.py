"""Networks with a proxy and a certificate authority of their own."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from tests.running import Output, assert_whole
from tests.sandbox import Sandbox
from tests.test_http import assert_one_line, run_tap


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Pass on bytes until one side ends."""
    # The other direction may have ended the connection.
    with suppress(OSError), source, sink:
        while data := source.recv(1 << 16):
            sink.sendall(data)


def join(one: socket.socket, other: socket.socket) -> None:
    """Connect two sockets in both directions."""
    threading.Thread(target=pump, args=(one, other), daemon=True).start()
    pump(other, one)


@contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Serve each connection to a free loopback port in a thread; give the port."""
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield server.getsockname()[1]
    finally:
        # Closing alone leaves the accepting thread where it is.
        server.shutdown(socket.SHUT_RDWR)
        server.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority that no system knows."""
    return trustme.CA()


@pytest.fixture
def https_url(sandbox: Sandbox, authority: trustme.CA) -> Iterator[str]:
    """The sandbox behind TLS, with a certificate of the private authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    port = urlsplit(sandbox.url).port

    def serve(connection: socket.socket) -> None:
        try:
            secure = context.wrap_socket(connection, server_side=True)
        except OSError:
            connection.close()  # the client did not like the certificate
            return
        join(secure, socket.create_connection(("127.0.0.1", port)))

    with listening(serve) as tls_port:
        yield f"https://localhost:{tls_port}/export"


@pytest.fixture
def authority_file(authority: trustme.CA, tmp_path: Path) -> str:
    """The file that a company gives its people."""
    path = tmp_path / "company.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def assert_loaded(done: subprocess.CompletedProcess[str], sandbox: Sandbox) -> None:
    """Expect a run that has loaded everything."""
    assert done.returncode == 0, done.stderr
    assert_whole(sandbox.project, Output.read(done.stdout))


def test_a_private_authority_is_trusted_when_it_is_given(
    sandbox: Sandbox, https_url: str, authority_file: str
) -> None:
    """REQUESTS_CA_BUNDLE makes a company's certificates work."""
    # What a Python does with certificates when it starts must not matter, either.
    done = run_tap(https_url, {"REQUESTS_CA_BUNDLE": authority_file}, fresh=True)
    assert_loaded(done, sandbox)


def test_an_unknown_authority_stops_at_once(sandbox: Sandbox, https_url: str) -> None:
    """A certificate that cannot be verified is one line, not eight tries."""
    done = run_tap(https_url)
    assert_one_line(done, "TLS certificate cannot be verified", "REQUESTS_CA_BUNDLE")
    assert "trying again" not in done.stderr
    assert sandbox.requests == []


def test_a_proxy_is_used_unless_it_is_ruled_out(
    sandbox: Sandbox, https_url: str, authority_file: str
) -> None:
    """HTTPS_PROXY carries every connection, NO_PROXY none."""
    calls: list[str] = []

    def serve(connection: socket.socket) -> None:
        request = connection.recv(1 << 16).decode()
        calls.append(request.split(" ")[1])
        host, port = calls[-1].split(":")
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        join(connection, socket.create_connection((host, int(port))))

    with listening(serve) as port:
        proxy = {"HTTPS_PROXY": f"http://127.0.0.1:{port}", "REQUESTS_CA_BUNDLE": authority_file}
        assert_loaded(run_tap(https_url, proxy), sandbox)
        assert set(calls) == {urlsplit(https_url).netloc}
        calls.clear()
        assert_loaded(run_tap(https_url, proxy | {"NO_PROXY": "localhost"}), sandbox)
        assert calls == []


def test_a_proxy_that_is_not_there_is_one_line(https_url: str, authority_file: str) -> None:
    """A dead proxy is tried again like a dead endpoint, then said."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        proxy = f"http://127.0.0.1:{closed.getsockname()[1]}"
    done = run_tap(https_url, {"HTTPS_PROXY": proxy, "REQUESTS_CA_BUNDLE": authority_file})
    assert_one_line(done, "no way through the proxy: check HTTPS_PROXY")


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("REQUESTS_CA_BUNDLE", "/nowhere/company.pem", "REQUESTS_CA_BUNDLE names cannot be read"),
        ("REQUESTS_CA_BUNDLE", __file__, "REQUESTS_CA_BUNDLE names cannot be read"),
        ("HTTPS_PROXY", "http://user:pass_word@proxy:port", "check HTTPS_PROXY"),
        ("HTTPS_PROXY", "http:///", "check HTTPS_PROXY"),
    ],
)
def test_what_no_request_can_be_made_with_is_one_line(
    https_url: str, variable: str, value: str, says: str
) -> None:
    """A wrong path or proxy ends the run at once, and no password is shown."""
    done = run_tap(https_url, {variable: value})
    assert_one_line(done, says)
    assert "trying again" not in done.stderr
    assert "pass_word" not in done.stderr
