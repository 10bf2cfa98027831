"""The explorer's server: the page and the runs it asks for, for this machine and one browser alone.

The standard library's server is enough: two kinds of requests, one run at a time. It listens on the loopback address;
it answers only under a secret path, since other users of the machine can reach that address too; and it refuses hosts
that are not this address, since a page of a foreign name that resolves to it could else ask (DNS rebinding).
"""

from __future__ import annotations

import json
import secrets
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from loopprobe.errors import LoopprobeError
from loopprobe.support.threads import Stopped, stoppable

if TYPE_CHECKING:
    from loopprobe.show.explore.exploration import Exploration

HOST = "127.0.0.1"
MOST_BYTES = 2**17  # of a request
PATIENCE = 0.5  # seconds that a run in progress is waited for at the end
POLICY = (  # the page fetches from its own server and from nowhere else
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class ExplorerServer(ThreadingHTTPServer):
    """The server of one exploration.

    Args:
        exploration: what is explored.
        port: 0 takes any that is free.

    Raises:
        LoopprobeError: the port is taken or not allowed.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, exploration: Exploration, port: int = 0) -> None:
        self.exploration, self.stop = exploration, threading.Event()
        self.token = secrets.token_urlsafe(16)
        try:
            super().__init__((HOST, port), Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise LoopprobeError(f"port {port} cannot be used ({reason}): choose another, or none") from None
        self.hosts = {f"{name}:{self.server_port}" for name in (HOST, "localhost")}
        self.page: bytes | None = None
        self.working: set[threading.Thread] = set()  # those that answer a request

    @property
    def url(self) -> str:
        """The address of the page, with its secret."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"


class Handler(BaseHTTPRequestHandler):
    """The answers to a browser: the page, views and effects; everything else is refused in a line."""

    server: ExplorerServer
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        """Send the page."""
        with self._working():
            if self._is_allowed("") and (page := self._made()) is not None:
                self._send(HTTPStatus.OK, page, "text/html; charset=utf-8")

    def do_POST(self) -> None:
        """Run what the page asks for."""
        with self._working():
            asked = self.path.rpartition("/")[2]
            if not self._is_allowed(asked if asked in ("view", "effects") else "view"):
                return
            if (tree := self._read()) is not None:
                answer = getattr(self.server.exploration, asked)
                if (found := self._tried(lambda: answer(tree))) is not None:
                    self._send(HTTPStatus.OK, json.dumps(found, allow_nan=False).encode())

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Note that this thread is at work; once the server is to stop, it ends after that."""
        self.server.working.add(threading.current_thread())
        try:
            yield
        finally:
            self.close_connection = self.close_connection or self.server.stop.is_set()
            if not self.close_connection:
                self.server.working.discard(threading.current_thread())

    def _made(self) -> bytes | None:
        """Make the page once."""
        if self.server.page is None:
            self.server.page = self._tried(lambda: self.server.exploration.html(live=True).encode())
        return self.server.page

    def _is_allowed(self, end: str) -> bool:
        """Whether this browser may ask: by the secret path, under a name of this machine, from the page itself."""
        origin = self.headers.get("Origin")
        if self.headers.get("Host") not in self.server.hosts:
            self._refuse(HTTPStatus.FORBIDDEN, f"this address is {self.server.server_name} alone, not another host")
        elif origin is not None and origin.removeprefix("http://") not in self.server.hosts:
            self._refuse(HTTPStatus.FORBIDDEN, "another page may not ask")
        elif not secrets.compare_digest(self.path.encode(), f"/{self.server.token}/{end}".encode()):
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here: open the address that loopprobe printed")
        else:
            return True
        return False

    def _read(self) -> dict[str, Any] | None:
        """Read the body of a request, a JSON object."""
        length = self.headers.get("Content-Length", "")
        if self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a request must be JSON")
        elif not length.isdecimal() or int(length) > MOST_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request may have {MOST_BYTES:,} bytes")
        else:
            try:
                tree = json.loads(self.rfile.read(int(length)))
            except (ValueError, RecursionError):
                tree = None
            if isinstance(tree, dict):
                return tree
            self._refuse(HTTPStatus.BAD_REQUEST, "a request must be one JSON object")
        return None

    def _tried(self, answer: Callable[[], Any]) -> Any:
        """Return an answer; where there is none, say why in a line and return None."""
        try:
            with stoppable(self.server.stop):
                return answer()
        except LoopprobeError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, " ".join(str(error).split()))
        except Stopped:
            self.close_connection = True
        except Exception as error:
            line = " ".join(f"unexpected {type(error).__name__}: {error}".split())
            print(f"loopprobe explore: {line}", file=sys.stderr)
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, line[:500])
        return None

    def _refuse(self, status: HTTPStatus, line: str) -> None:
        self.close_connection = True  # the body of the request is not read
        self._send(status, json.dumps({"error": line}).encode())

    def _send(self, status: HTTPStatus, body: bytes, kind: str = "application/json") -> None:
        try:
            self.send_response(status)
            headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Content-Security-Policy": POLICY}
            headers |= {
                "Cache-Control": "no-store",
                "Referrer-Policy": "no-referrer",
                "X-Content-Type-Options": "nosniff",
            }
            headers |= {"Connection": "close"} if self.close_connection else {}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):  # the browser has gone
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: the paths of requests hold the secret."""


def serve(exploration: Exploration, port: int, *, browser: bool, told: Callable[[str], None]) -> None:
    """Answer an exploration's page until Ctrl-C, see ``Exploration.serve``."""
    server = ExplorerServer(exploration, port)
    try:
        told(f"{exploration.title}: {server.url} (Ctrl-C ends it)")
        if browser:
            webbrowser.open(server.url)
        server.serve_forever(poll_interval=0.1)
    except KeyboardInterrupt:
        told("ended")
    finally:
        server.stop.set()
        server.server_close()
        until = time.monotonic() + PATIENCE
        for thread in list(server.working):  # a run stops between two loops
            thread.join(max(0.0, until - time.monotonic()))
