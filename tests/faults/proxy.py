"""A loopback HTTP proxy in front of an S3 server that injects seeded faults and counts them.

The client's AWS_ENDPOINT_URL is the proxy's; the Host header, which signatures cover, is passed on unchanged, and
SeaweedFS checks the signature against it. Bodies go through memory: for small objects.
"""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, cast

Fault = Literal["", "error before", "error after", "cut request", "cut response", "corrupt"]
"""An error instead of passing the request on, or instead of its answer; a connection closed within a body; a changed
byte in the middle of the answer's body (only when asked for)."""

FAULT_KINDS: tuple[Fault, ...] = ("error before", "error after", "cut request", "cut response")
"""Those that come at random."""

ERRORS = {500: "InternalError", 503: "ServiceUnavailable"}
UPSTREAM_TIMEOUT_S = 60
NOT_PASSED_ON = ("connection", "expect", "transfer-encoding", "keep-alive")


class FaultProxy(ThreadingHTTPServer):
    """The proxy; `queue` has faults for the next requests, after which they come at random."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self, port: int) -> None:
        """Listen on a free port, in front of the server at `port` of 127.0.0.1."""
        super().__init__(("127.0.0.1", 0), _Relay)
        self.upstream_port = port
        self.counts: Counter[str] = Counter()
        self.sent_bytes = 0
        self.queue: deque[Fault] = deque()
        self._random, self._lock = random.Random(0), threading.Lock()
        self._errors = self._cuts = 0.0
        self.put_delay_s = 0.0
        """How long what is written waits before it is passed on."""

    def fail_at_random(self, *, seed: int, errors: float, cuts: float) -> None:
        """From now on.

        Args:
            seed: Of the faults.
            errors: Share of requests that are answered 500 or 503.
            cuts: Share of requests whose own body or whose answer is cut.
        """
        self._random = random.Random(seed)
        self._errors, self._cuts = errors, cuts

    @property
    def endpoint(self) -> str:
        """The URL for AWS_ENDPOINT_URL."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def draw(self, has_body: bool) -> tuple[Fault, int]:
        """The fault of the next request, counted, and the status of an error."""
        with self._lock:
            fault = self.queue.popleft() if self.queue else self._roll(has_body)
            status = self._random.choice(sorted(ERRORS))
            self.counts["requests"] += 1
            self.counts[fault] += bool(fault)
            return fault, status

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a client that hung up is no news here."""

    def _roll(self, has_body: bool) -> Fault:
        place, second = self._random.random(), self._random.random() < 0.5
        if place < self._errors:
            return "error before" if second else "error after"
        if place < self._errors + self._cuts:
            return "cut request" if second and has_body else "cut response"
        return ""


@contextmanager
def running_proxy(port: int) -> Iterator[FaultProxy]:
    """A proxy in front of the server at `port` of 127.0.0.1."""
    proxy = FaultProxy(port)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()


class _Relay(BaseHTTPRequestHandler):
    """One connection of a client and its twin to the server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave together

    def setup(self) -> None:
        super().setup()
        proxy = cast(FaultProxy, self.server)
        self._server = http.client.HTTPConnection("127.0.0.1", proxy.upstream_port, timeout=UPSTREAM_TIMEOUT_S)

    def finish(self) -> None:
        self._server.close()
        with suppress(OSError):
            super().finish()

    def handle_expect_100(self) -> bool:
        """Ask for the body at once."""
        self.send_response_only(100)
        self.end_headers()
        self.wfile.flush()
        return True

    def _relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        proxy = cast(FaultProxy, self.server)
        fault, status = proxy.draw(bool(body))
        if self.command == "PUT" and proxy.put_delay_s:
            time.sleep(proxy.put_delay_s)
        try:
            if fault == "error before":
                self._answer_error(status)
            elif fault == "cut request":
                self._send_on(body, len(body) // 2)
                self._hang_up()
            else:
                self._send_on(body, len(body))
                answer = self._server.getresponse()
                content = answer.read()
                if fault == "error after":
                    self._answer_error(status)
                    return
                if fault == "corrupt":
                    middle = len(content) // 2
                    content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
                self._pass_back(answer, content, cut=fault == "cut response")
        except (OSError, http.client.HTTPException):  # the server is away
            self._hang_up()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _relay

    def _send_on(self, body: bytes, length: int) -> None:
        self._server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in NOT_PASSED_ON:
                self._server.putheader(name, value)
        self._server.endheaders(body[:length] or None)

    def _pass_back(self, answer: http.client.HTTPResponse, content: bytes, *, cut: bool) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in (*NOT_PASSED_ON, "content-length"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length)
        if cut and not content:
            self._hang_up()  # before the head
            return
        self.end_headers()
        content = content[: len(content) // 2] if cut else content
        cast(FaultProxy, self.server).sent_bytes += len(content)
        self.wfile.write(content)
        if cut:
            self._hang_up()

    def _answer_error(self, status: int) -> None:
        content = f"<Error><Code>{ERRORS[status]}</Code><Message>injected</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _hang_up(self) -> None:
        self.close_connection = True
        self._server.close()
        with suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""
