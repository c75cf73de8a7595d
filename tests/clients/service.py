"""A running `qw serve` for tests, raw HTTP to talk to it, and the counting of checks. Not a test itself."""
import argparse
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time

TIMEOUT_S = 120  # nothing here takes that long; a hang becomes a failure


class Service:
    """The program on a free port; ended by its own process id. home: of a service that was before, to find what that left."""

    def __init__(self, qw, model, *more, home=None):
        self.home = home or tempfile.TemporaryDirectory(prefix="qw-serve-")
        env = {"PATH": os.environ["PATH"], "HOME": self.home.name, "QW_HOME": os.path.join(self.home.name, "qw"),
               "LANG": "C.UTF-8"}
        env.update({k: v for k, v in os.environ.items() if k.endswith("SAN_OPTIONS") or k == "LD_LIBRARY_PATH"})
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen([os.path.abspath(qw), "serve", "-m", os.path.abspath(model), "--port", "0",
                                         *more], stdout=subprocess.PIPE, stderr=self.errors, env=env)
        line = self.process.stdout.readline().decode()
        found = re.fullmatch(r"listening on (http://(.+):(\d+))\n", line)
        if not found:
            self.process.wait()
            raise SystemExit(f"qw serve did not start: {line!r} {self.stderr()!r}")
        self.url, self.host, self.port = found.group(1), found.group(2).strip("[]"), int(found.group(3))

    def stderr(self):
        self.errors.seek(0)
        return self.errors.read().decode("utf-8", "replace")

    def complaints(self):
        """Standard error without notes, which are no faults."""
        return [line for line in self.stderr().splitlines() if not line.startswith("qw: note: ")]

    def signal(self, number):
        self.process.send_signal(number)

    def stop(self):
        """SIGTERM and the exit code."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        code = self.process.wait(TIMEOUT_S)
        self.process.stdout.close()
        return code

    def kill(self):
        """SIGKILL."""
        self.signal(signal.SIGKILL)
        self.process.wait(TIMEOUT_S)
        self.process.stdout.close()

    def saved(self):
        """(tokens, answers) on disk: of its only conversation, whose pages follow one another (docs/engine-state.md)."""
        pages, n_answers = {}, 0
        for _, _, names in os.walk(os.path.join(self.home.name, "qw", "cache", "state")):
            for name in names:
                n_answers += name.endswith(".an")
                if page := re.fullmatch(r"(\w{32})-\w{32}-(\d+)\.kv", name):
                    pages[page[1]] = max(int(page[2]), pages.get(page[1], 0))
        return sum(pages.values()), n_answers

    def connect(self, receive_bytes=None):
        s = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        if receive_bytes:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        s.settimeout(TIMEOUT_S)
        s.connect((self.host, self.port))
        return s

    def health(self):
        return json.loads(self.request("GET", "/health").body)

    def request(self, method, path, body=None, headers=()):
        """One request on a connection of its own."""
        with self.connect() as s:
            s.sendall(http_request(method, path, body, [*headers, ("Connection", "close")]))
            return Reader(s).reply(method)

    def wait_idle(self):
        """Until no answer is being made."""
        end = time.monotonic() + TIMEOUT_S
        while time.monotonic() < end:
            health = self.health()
            if health["now"]["answers"] == 0:
                return health
            time.sleep(0.02)
        raise TimeoutError("the engine is still busy")


def http_request(method, path, body=None, headers=()):
    """Bytes of a well-formed request; body: bytes, or something to write as JSON."""
    lines = [f"{method} {path} HTTP/1.1"]
    names = {name.lower() for name, _ in headers}
    if "host" not in names:
        lines.append("Host: localhost")
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    if body is not None:
        if "content-type" not in names:
            lines.append("Content-Type: application/json")
        if "content-length" not in names and "transfer-encoding" not in names:
            lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)

    def error(self):
        return self.json()["error"]


class Reader:
    """Replies from a socket, one after the other, with the framing checked."""

    def __init__(self, sock):
        self.sock, self.data = sock, b""

    def more(self):
        piece = self.sock.recv(65536)
        if not piece:
            raise EOFError(f"the connection ended after {self.data[-200:]!r}")
        self.data += piece

    def until(self, mark):
        while mark not in self.data:
            self.more()
        head, self.data = self.data.split(mark, 1)
        return head

    def take(self, n):
        while len(self.data) < n:
            self.more()
        head, self.data = self.data[:n], self.data[n:]
        return head

    def head(self):
        lines = self.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        found = re.fullmatch(r"HTTP/1\.1 (\d{3}) .+", lines[0])
        if not found:
            raise ValueError(f"not a status line: {lines[0]!r}")
        pairs = [line.split(": ", 1) for line in lines[1:]]
        return int(found.group(1)), {name.lower(): value for name, value in pairs}

    def chunks(self):
        while True:
            n = int(self.until(b"\r\n"), 16)
            data = self.take(n)
            if self.take(2) != b"\r\n":
                raise ValueError("a chunk is not followed by CRLF")
            if n == 0:
                return
            yield data

    def reply(self, method="GET"):
        status, headers = self.head()
        if method == "HEAD" or status in (100, 204):
            return Reply(status, headers, b"")
        if "transfer-encoding" in headers:
            return Reply(status, headers, b"".join(self.chunks()))
        if "content-length" in headers:
            return Reply(status, headers, self.take(int(headers["content-length"])))
        try:
            while True:
                self.more()
        except EOFError:
            data, self.data = self.data, b""
            return Reply(status, headers, data)

    def at_end(self):
        """True when the server closed and nothing more came."""
        try:
            return self.data == b"" and self.sock.recv(1) == b""
        except ConnectionResetError:
            return False


def sse(body):
    """The data of each server-sent event."""
    events = body.decode().split("\n\n")
    if events.pop() != "":
        raise ValueError("the stream does not end after an event")
    for event in events:
        if not event.startswith("data: "):
            raise ValueError(f"not an event: {event!r}")
        yield event[6:]


def endless(model_qw, model):
    """Ids of the model's end tokens, for logit_bias: an answer that goes on until it is stopped."""
    out = subprocess.run([os.path.abspath(model_qw), "tokenize", "-m", os.path.abspath(model), "--json", "--special"],
                         input=b"<|im_end|><|endoftext|>", capture_output=True, check=True, timeout=TIMEOUT_S).stdout
    return {str(i): -100 for i in json.loads(out)}


class Suite:
    """Counts checks; a check that raises is a failure with its reason."""

    def __init__(self):
        self.passed = self.failed = 0
        self.lock = threading.Lock()

    def check(self, ok, what, detail=""):
        with self.lock:
            self.passed += bool(ok)
            self.failed += not ok
            if not ok:
                print(f"FAIL {what}: {str(detail)[:600]}", flush=True)
        return bool(ok)

    def equal(self, got, want, what):
        return self.check(got == want, what, f"got {got!r}, want {want!r}")

    def run(self, test, *arguments):
        try:
            test(self, *arguments)
        except Exception as error:  # noqa: BLE001: whatever it is, the other tests go on
            self.check(False, test.__name__, f"{type(error).__name__}: {error}")

    def finish(self):
        print(f"{self.passed} passed, {self.failed} failed")
        return 1 if self.failed else 0


def arguments(text, *more):
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qw", default="build/qw", help="the program")
    parser.add_argument("--model", required=True, help="a GGUF file")
    for name, options in more:
        parser.add_argument(name, **options)
    return parser.parse_args()
