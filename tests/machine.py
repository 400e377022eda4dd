"""The metadata service of a cloud machine: an HTTP server that gives out credentials."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil

_TOKEN, _ROLES = "/latest/api/token", "/latest/meta-data/iam/security-credentials"


@dataclass
class MetadataService:
    """What it answers, and what reached it."""

    endpoint: str = ""
    key: str = ""
    secret: str = ""
    valid: timedelta = timedelta(hours=6)
    """How long credentials are valid from when they are fetched."""
    decide: Callable[[int], int | None] = lambda _: None
    """Number of a request, from 0 → the status that refuses it."""
    requests: list[str] = field(default_factory=list)
    """Path of each."""
    fetches: Counter[int] = field(default_factory=Counter)
    """How often credentials were asked for, by process."""

    def count_fetches(self) -> int:
        """Return how often credentials were asked for. A fetch takes three requests."""
        return self.fetches.total()

    def answer(self, path: str, token: str | None, *, port: int) -> tuple[int, str]:
        """Return the status and the body of an answer to a process that asks from a port."""
        self.requests.append(path)
        if path.startswith(f"{_ROLES}/role"):
            self.fetches[_owner(port)] += 1
        refused = self.decide(len(self.requests) - 1)
        if refused is not None:
            return refused, ""
        if path == _TOKEN:
            return 200, "the-token"
        if token != "the-token":  # noqa: S105 (of nothing)
            return 401, ""
        if path.rstrip("/") == _ROLES:
            return 200, "role"
        if path != f"{_ROLES}/role":
            return 404, ""
        until = datetime.now(UTC) + self.valid
        return 200, json.dumps(
            {
                "Code": "Success",
                "AccessKeyId": self.key,
                "SecretAccessKey": self.secret,
                "Token": "",
                "Expiration": f"{until:%Y-%m-%dT%H:%M:%SZ}",
            }
        )


@contextmanager
def metadata_service(key: str, secret: str) -> Iterator[MetadataService]:
    """Answer version 2 of EC2's protocol on loopback: a token, the role's name, credentials."""
    service = MetadataService(key=key, secret=secret)
    handler = type("Handler", (_Handler,), {"service": service})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        service.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        yield service
        server.shutdown()


def _owner(port: int) -> int:
    """Return the process that has a port of this machine open."""
    own = [found for found in psutil.net_connections("tcp4") if found.laddr.port == port]
    return next((found.pid for found in own if found.pid is not None), 0)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service: MetadataService

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = self.headers.get("X-aws-ec2-metadata-token")
        status, text = self.service.answer(self.path, token, port=self.client_address[1])
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        with suppress(ConnectionError):  # who asked did not wait
            self.end_headers()
            self.wfile.write(text.encode())

    do_GET = do_PUT = _answer  # noqa: N815 (its names)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""
