"""A storage that fails as storages do: an HTTP server between a client and a real one."""

import http.client
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

RESET = "reset"
Answer = int | tuple[int, str] | str | None
"""A status without a body, a status and an S3 error code, `RESET`, or None: ask the real one."""


@dataclass
class FaultyStore:
    """What reached it."""

    endpoint: str
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of each."""
    connections: int = 0


@contextmanager
def faulty_store(
    behind: str,
    decide: Callable[[str, str], Answer] = lambda *_: None,
    headers: Mapping[str, str] = MappingProxyType({}),
    *,
    host: str = "127.0.0.1",
    ahead: timedelta = timedelta(0),
    certificate: Path | None = None,
) -> Iterator[FaultyStore]:
    """Stand before a store, also as the proxy before it.

    Args:
        behind: address of the real one, which must accept signatures for any host name.
        decide: method and path of a request → how to answer it. Before it answers, it may do
            whatever shall happen between the client's requests.
        headers: values of headers, in lower case, that take the place of those of the real answers.
        host: the address to listen on.
        ahead: how far its clock is ahead.
        certificate: file with its certificate and key, if it talks HTTPS.
    """
    seen = FaultyStore("")
    parts = {"seen": seen, "behind": behind, "decide": staticmethod(decide), "replaced": headers}
    parts["ahead"] = ahead
    with ThreadingHTTPServer((host, 0), type("Handler", (_Handler,), parts)) as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        scheme = "http" if certificate is None else "https"
        seen.endpoint = f"{scheme}://{host}:{server.server_address[1]}"
        yield seen
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: FaultyStore
    behind: str
    decide: Callable[[str, str], Answer]
    replaced: Mapping[str, str]
    ahead: timedelta

    def setup(self) -> None:
        super().setup()
        self.seen.connections += 1

    def handle(self) -> None:
        """Answer until either side goes away."""
        with suppress(ConnectionError):
            super().handle()

    def _answer(self) -> None:
        body = self._read_body()
        self.seen.requests.append((self.command, self.path))
        answer = self.decide(self.command, self.path)
        if answer is None:
            self._ask(body)
        elif isinstance(answer, str):
            self.close_connection = True
        else:
            status, code = answer if isinstance(answer, tuple) else (answer, "")
            text = f"<Error><Code>{code}</Code><Message>no</Message></Error>" if code else ""
            content = b"" if self.command == "HEAD" else text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815 (its names)

    def _read_body(self) -> bytes:
        """Return the body as it was sent, with the sizes of its chunks if it has any."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while True:
            line = self.rfile.readline()
            size = int(line.split(b";")[0], 16)
            body += line + self.rfile.read(size + 2)
            if not size:
                return body

    def _ask(self, body: bytes) -> None:
        """Relay the request and the answer. The signature covers the host that the client named."""
        scheme, _, address = self.behind.partition("://")
        kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
        onward = kind(address.rstrip("/"), timeout=30)
        onward.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() != "expect":
                onward.putheader(name, value)
        onward.endheaders(body)
        reply = onward.getresponse()
        content = reply.read()
        self.send_response_only(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection", "date"):
                self.send_header(name, self.replaced.get(name.lower(), value))
        now = datetime.now(UTC) + self.ahead
        self.send_header("Date", format_datetime(now, usegmt=True))
        length = reply.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        onward.close()

    def log_message(self, *_: object) -> None:
        """Keep quiet."""
