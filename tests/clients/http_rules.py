#!/usr/bin/env python3
"""The HTTP rules of `qw serve`, through raw sockets: framing, limits, security, slow and leaving clients.

    http_rules.py --qw build/qw --model tests/fixtures/tiny-q4km.gguf [--fake]

A small model with a chat format is enough. --fake says that the program is linked with tests/cli/fake_engine.c:
then what a real engine does rarely is tested, a full queue and an answer that fails. Needs no package. Prints one
line per failure and `N passed, M failed`.
"""
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

from service import TIMEOUT_S, Reader, Service, Suite, arguments, endless, http_request, sse

HOST = b"Host: localhost\r\n"
GET = b"GET /health HTTP/1.1\r\n" + HOST
POST = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
NEXT = b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n"
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "seed": 1}
BODY = json.dumps(CHAT).encode()

# Each is followed by a good request in the same bytes; a refused one must be the last thing that is answered.
REFUSED = [
    ("bare LF after the request line", b"GET /health HTTP/1.1\n" + HOST + b"\r\n", 400),
    ("bare LF after a header", b"GET /health HTTP/1.1\r\nHost: localhost\n\r\n", 400),
    ("bare LF at the end of the headers", GET + b"\n", 400),
    ("bare CR in a header", GET + b"A: b\rc\r\n\r\n", 400),
    ("NUL in a header", GET + b"A: b\0c\r\n\r\n", 400),
    ("control byte in a header", GET + b"A: \x01\r\n\r\n", 400),
    ("folded header", GET + b"A: b\r\n c\r\n\r\n", 400),
    ("space before the colon", GET + b"A : b\r\n\r\n", 400),
    ("header without a colon", GET + b"A\r\n\r\n", 400),
    ("two Hosts", GET + b"Host: localhost\r\n\r\n", 400),
    ("no Host in HTTP/1.1", b"GET /health HTTP/1.1\r\n\r\n", 400),
    ("Host with a user", b"GET /health HTTP/1.1\r\nHost: a@localhost\r\n\r\n", 400),
    ("HTTP/0.9", b"GET /health\r\n\r\n", 400),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("TLS on this port", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ("two spaces in the request line", b"GET  /health HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    ("lower-case version", b"GET /health http/1.1\r\n" + HOST + b"\r\n", 400),
    ("URL and Host differ", b"GET http://other/health HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    ("two lengths", POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
    ("two different lengths", POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
    ("list of lengths", POST + b"Content-Length: 5, 5\r\n\r\nhello", 400),
    ("signed length", POST + b"Content-Length: +5\r\n\r\nhello", 400),
    ("negative length", POST + b"Content-Length: -5\r\n\r\nhello", 400),
    ("padded length", POST + b"Content-Length: 05\r\n\r\nhello", 400),
    ("hexadecimal length", POST + b"Content-Length: 0x5\r\n\r\nhello", 400),
    ("empty length", POST + b"Content-Length:\r\n\r\n", 400),
    ("length of 2^64 + 5", POST + b"Content-Length: 18446744073709551621\r\n\r\nhello", 413),
    ("body above 16 MiB", POST + b"Content-Length: 16777217\r\n\r\n", 413),
    ("length and chunks", POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("chunks and length", POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
    ("chunked twice", POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("chunked in HTTP/1.0", POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("unknown coding", POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    ("coding behind a control byte", POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    ("chunk size that is no number", POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
    ("chunk size with 0x", POST + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", 400),
    ("chunk size with a sign", POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
    ("chunk size of 64 bits", POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffe\r\n", 413),
    ("chunk longer than its size", POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n", 400),
    ("chunk extension of 2000 bytes", POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"e" * 2000 + b"\r\nx\r\n", 400),
    ("unknown Expect", GET + b"Expect: something\r\n\r\n", 417),
    ("URL of 9000 bytes", b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
    ("101 headers", GET + b"A: b\r\n" * 100 + b"\r\n", 431),
    ("header of 40000 bytes", GET + b"A: " + b"a" * 40000 + b"\r\n\r\n", 431),
]

# Good requests: every one is answered and the next one too.
ACCEPTED = [
    ("plain", GET + b"\r\n", 200),
    ("empty line before", b"\r\n" + GET + b"\r\n", 200),
    ("query", b"GET /health?x=y HTTP/1.1\r\n" + HOST + b"\r\n", 200),
    ("absolute form", b"GET http://localhost/health HTTP/1.1\r\n" + HOST + b"\r\n", 200),
    ("100 headers", GET + b"A: b\r\n" * 99 + b"\r\n", 200),
    ("unknown path", b"GET /nothing HTTP/1.1\r\n" + HOST + b"\r\n", 404),
    ("path that only begins well", b"GET /health/x HTTP/1.1\r\n" + HOST + b"\r\n", 404),
    ("dots in the path", b"GET /../etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n", 404),
    ("wrong method", b"DELETE /health HTTP/1.1\r\n" + HOST + b"\r\n", 405),
    ("OPTIONS", b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", 404),
    ("chat by length", POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY, 200),
    ("chat in chunks", POST + b"Transfer-Encoding: chunked\r\n\r\n" +
     b"".join(b"%x;n=v\r\n%c\r\n" % (1, byte) for byte in BODY[:40]) +
     b"%x\r\n%s\r\n0\r\nTrailer: x\r\n\r\n" % (len(BODY) - 40, BODY[40:]), 200),
    ("body of GET is read and ignored", GET + b"Content-Length: 5\r\n\r\nhello", 200),
    ("empty body", POST + b"Content-Length: 0\r\n\r\n", 400),
    ("not JSON", POST + b"Content-Length: 5\r\n\r\nhello", 400),
]


def test_refused(s, service):
    for name, data, status in REFUSED:
        try:
            with service.connect() as c:
                c.sendall(data + NEXT)
                reader = Reader(c)
                reply = reader.reply()
                s.equal(reply.status, status, name)
                s.check(reply.headers.get("connection") == "close" and "message" in reply.error(), name + ": error",
                        reply.body)
                s.check(reader.at_end(), name + ": nothing after it", reader.data)
        except Exception as error:
            s.check(False, name, repr(error))


def test_accepted(s, service):
    for name, data, status in ACCEPTED:
        for piece in (len(data) + len(NEXT), 1):  # at once, and byte by byte
            with service.connect() as c:
                c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                whole = data + NEXT
                for at in range(0, len(whole), piece):
                    c.sendall(whole[at:at + piece])
                reader = Reader(c)
                s.equal(reader.reply().status, status, f"{name}, {piece} bytes at a time")
                s.equal(reader.reply().json()["object"], "list", f"after {name}, {piece} bytes at a time")


def test_head_and_versions(s, service):
    with service.connect() as c:
        reader = Reader(c)
        c.sendall(b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n" + NEXT)
        head = reader.reply("HEAD")
        s.check(head.status == 200 and int(head.headers["content-length"]) > 500, "HEAD", head.headers)
        s.equal(reader.reply().status, 200, "no body after HEAD")
    with service.connect() as c:
        c.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        reader = Reader(c)
        s.equal(reader.reply().status, 200, "HTTP/1.0 without Host")
        s.check(reader.at_end(), "HTTP/1.0 is closed")
    with service.connect() as c:
        reader = Reader(c)
        for _ in range(2):
            c.sendall(b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            s.equal(reader.reply().headers.get("connection"), "keep-alive", "HTTP/1.0 keep-alive")
    with service.connect() as c:
        body = json.dumps({**CHAT, "stream": True}).encode()
        c.sendall(POST.replace(b"1.1", b"1.0") + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        reply = Reader(c).reply()
        s.check("transfer-encoding" not in reply.headers and list(sse(reply.body))[-1] == "[DONE]",
                "HTTP/1.0 stream ends with the connection", reply.body)
    with service.connect() as c:
        c.sendall(GET + b"Connection: close\r\n\r\n" + NEXT)
        reader = Reader(c)
        s.equal(reader.reply().headers.get("connection"), "close", "Connection: close")
        s.check(reader.at_end(), "closed after Connection: close", reader.data)


def test_headers_of_replies(s, service):
    page = service.request("GET", "/")
    s.check("default-src" in page.headers["content-security-policy"] and "unsafe" not in
            page.headers["content-security-policy"], "policy of the page", page.headers)
    for path in ("/", "/app.js", "/app.css", "/health", "/v1/models", "/nothing"):
        reply = service.request("GET", path, headers=[("Origin", "http://evil.example")])
        names = set(reply.headers)
        s.check(reply.headers.get("x-content-type-options") == "nosniff" and "x-request-id" in names and
                "date" in names and not any(n.startswith("access-control") for n in names), f"headers of {path}",
                reply.headers)
    allow = service.request("PUT", "/v1/chat/completions", {})
    s.check(allow.status == 405 and allow.headers.get("allow") == "POST", "Allow of a 405", allow.headers)


def test_host_and_type(s, service):
    port = str(service.port)
    for host, status in (("localhost", 200), ("LOCALHOST:" + port, 200), ("127.0.0.1:" + port, 200), ("[::1]", 200),
                         ("127.8.8.8", 200), ("evil.example", 403), ("127.0.0.1.evil.example", 403),
                         ("localhost.evil.example:" + port, 403), ("10.0.0.1", 403), ("[fe80::1]", 403),
                         ("named.example", 200)):
        s.equal(service.request("GET", "/", headers=[("Host", host)]).status, status, f"Host: {host}")
        got = service.request("POST", "/v1/chat/completions", CHAT, [("Host", host)]).status
        s.equal(got, status, f"chat with Host: {host}")
    for kind, status in (("application/json", 200), ("Application/JSON; charset=utf-8", 200), ("text/plain", 415),
                         ("application/x-www-form-urlencoded", 415), ("multipart/form-data; boundary=x", 415),
                         ("application/jsonx", 415), ("", 415)):
        got = service.request("POST", "/v1/chat/completions", CHAT, [("Content-Type", kind)]).status
        s.equal(got, status, f"Content-Type: {kind}")
    got = service.request("POST", "/v1/chat/completions", CHAT, [("Content-Encoding", "gzip")]).status
    s.equal(got, 415, "compressed body")


def test_expect_continue(s, service):
    with service.connect() as c:
        reader = Reader(c)
        c.sendall(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        s.equal(reader.reply().status, 100, "100 Continue")
        c.sendall(BODY)
        s.equal(reader.reply().status, 200, "reply after 100 Continue")
    with service.connect() as c:
        reader = Reader(c)
        c.sendall(b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + b"Content-Type: text/plain\r\n"
                  b"Expect: 100-continue\r\nContent-Length: 10\r\n\r\n")
        s.equal(reader.reply().status, 415, "refused instead of 100 Continue")
        s.check(reader.at_end(), "closed, since the body never came")


def test_refused_before_body(s, service):
    """A client that sends all of a body before it reads still gets the reply, and no reset."""
    with service.connect() as c:
        n = 1 << 20
        c.sendall(b"POST /nothing HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % n + b"x" * n)
        reader = Reader(c)
        s.equal(reader.reply().status, 404, "reply to a refused body")
        s.check(reader.at_end(), "a clean end after it")


def test_large_body(s, service):
    text = "a" * (15 << 20)
    reply = service.request("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": text}]})
    s.equal((reply.status, reply.error()["code"]), (400, "context_length_exceeded"), "15 MiB prompt")
    deep = b'{"messages":' + b"[" * 70 + b"]" * 70 + b"}"
    reply = service.request("POST", "/v1/chat/completions", deep)
    s.check(reply.status == 400 and "64" in reply.error()["message"], "70 arrays inside each other", reply.body)
    wide = b'{"x":[' + b"0," * 1100000 + b"0]}"
    reply = service.request("POST", "/v1/chat/completions", wide)
    s.check(reply.status == 400 and "1000000" in reply.error()["message"], "1.1 million values", reply.body)


def test_pipelining(s, service):
    with service.connect() as c:
        c.sendall((http_request("POST", "/v1/chat/completions", CHAT) + NEXT +
                   http_request("POST", "/v1/chat/completions", {**CHAT, "stream": True}) + GET + b"\r\n") * 3)
        reader = Reader(c)
        kinds = []
        for _ in range(12):
            reply = reader.reply()
            kinds.append("stream" if "event-stream" in reply.headers["content-type"] else
                         reply.json().get("object") or reply.json()["status"])
        s.equal(kinds, ["chat.completion", "list", "stream", "ok"] * 3, "12 pipelined requests, in order")
    with service.connect() as c:  # the client says it is done sending, then reads
        c.sendall(NEXT * 3)
        c.shutdown(socket.SHUT_WR)
        reader = Reader(c)
        s.equal([reader.reply().status for _ in range(3)], [200] * 3, "replies after a half close")
        s.check(reader.at_end(), "then it is closed")


def test_pipelining_without_reading(s, service):
    """Replies do not pile up for a client that only sends: it is held back, and others are served."""
    with service.connect(receive_bytes=4096) as c:
        c.setblocking(False)
        sent = 0
        request = b"GET /app.js HTTP/1.1\r\n" + HOST + b"\r\n"
        idle = 0
        while idle < 20 and sent < 64 << 20:
            try:
                sent += c.send(request * 500)
                idle = 0
            except BlockingIOError:
                idle += 1
                time.sleep(0.02)
        s.check(sent < 16 << 20, "a client that does not read is held back", sent)
        s.equal(service.request("GET", "/health").status, 200, "others are served meanwhile")


def leave_reset(c):
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    c.close()


def test_leaving(s, service, bias):
    """Clients that leave: while queued, while a stream runs, while a whole answer is made; by FIN and by RST."""
    long = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4000, "logit_bias": bias, "seed": 3}
    for how in (socket.socket.close, leave_reset):
        for stream in (True, False):
            before = service.health()["since_start"]["completion_tokens"]
            clients = []
            for _ in range(5):  # the first runs, the others wait
                c = service.connect()
                c.sendall(http_request("POST", "/v1/chat/completions", {**long, "stream": stream}))
                clients.append(c)
            if stream:
                Reader(clients[0]).until(b"data: ")
            for c in reversed(clients):
                how(c)
            made = service.wait_idle()["since_start"]["completion_tokens"] - before
            s.check(made < 4000, f"five clients left, stream={stream}, {how.__name__}", f"{made} tokens were made")
            reply = service.request("POST", "/v1/chat/completions", CHAT)
            s.equal(reply.status, 200, "the next client is served")


def test_slow_reader(s, service, bias):
    """256 KiB waiting for a client that does not read: its answer ends with an error, the engine is free."""
    request = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3900, "logit_bias": bias,
               "logprobs": True, "top_logprobs": 20, "stream": True, "seed": 5}
    with service.connect(receive_bytes=4096) as c:
        c.sendall(http_request("POST", "/v1/chat/completions", request))
        before = service.health()["since_start"]["completion_tokens"]
        made = service.wait_idle()["since_start"]["completion_tokens"] - before
        s.check(0 < made < 3900, "the answer of a client that does not read is ended", f"{made} tokens were made")
        reader = Reader(c)
        events = list(sse(reader.reply().body))
        s.check("error" in json.loads(events[-1]) and "slowly" in events[-1] and len(events) > 20,
                "it is told why", events[-1])
        s.check(reader.at_end(), "and its connection is closed")


def test_too_much_pipelined(s, service, bias):
    request = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4000, "logit_bias": bias}
    before = service.health()["since_start"]["completion_tokens"]
    with service.connect() as c:
        c.sendall(http_request("POST", "/v1/chat/completions", request))
        try:
            c.sendall(NEXT * 3000)
        except OSError:
            pass  # closed while sending
        made = service.wait_idle()["since_start"]["completion_tokens"] - before
        s.check(made < 4000, "more than 64 KiB sent during an answer end it", f"{made} tokens were made")


def test_connection_limit(s, service):
    idle = []
    try:
        while len(idle) < 256:
            c = service.connect()
            c.sendall(b"GET")  # has begun, so it stays
            idle.append(c)
        with service.connect() as c:
            reply = Reader(c).reply()
            s.check(reply.status == 503 and reply.headers.get("retry-after"), "the 257th connection", reply.headers)
    finally:
        for c in idle:
            c.close()
    for _ in range(100):
        try:
            if service.health()["now"]["connections"] <= 2:
                break
        except (OSError, KeyError, EOFError):
            pass
        time.sleep(0.05)
    s.equal(service.request("GET", "/health").status, 200, "served again after they left")


def test_timeouts(s, service):
    """A header that does not come is given up; run beside the other tests, for it takes ten seconds."""
    silent, slow = service.connect(), service.connect()
    slow.sendall(b"GET /health HTTP/1.1\r\nHo")
    with slow:
        s.equal(Reader(slow).reply().status, 408, "half a header")
    with silent:
        s.check(Reader(silent).at_end(), "a connection without a byte is closed")


def test_shutdown(s, args, bias):
    """SIGTERM lets a running answer finish, a second one does not; both exit with 0."""
    long = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 600, "logit_bias": bias, "stream": True}
    service = Service(args.qw, args.model)
    idle = service.connect()
    with service.connect() as c:
        c.sendall(http_request("POST", "/v1/chat/completions", long))
        reader = Reader(c)
        reader.until(b"data: ")
        service.signal(signal.SIGTERM)
        rest = b""
        try:
            while True:
                reader.more()
        except EOFError:
            rest = reader.data
        s.check(b"data: [DONE]" in rest, "a running answer is finished after SIGTERM", rest[-300:])
    with idle:
        s.check(Reader(idle).at_end(), "an idle connection is closed")
    s.equal(service.stop(), 0, "exit code after SIGTERM")
    s.equal(service.complaints(), [], "nothing on standard error")

    service = Service(args.qw, args.model)
    clients = []
    for _ in range(40):  # enough work for longer than two signals take
        c = service.connect()
        c.sendall(http_request("POST", "/v1/chat/completions", {**long, "max_tokens": 3900}))
        clients.append(c)
    Reader(clients[0]).until(b"data: ")
    service.signal(signal.SIGINT)
    time.sleep(0.2)  # two signals of one kind at the same time are one
    service.signal(signal.SIGINT)
    last = Reader(clients[-1])
    reply = last.reply()
    s.check(reply.status == 503 and "shutting down" in reply.error()["message"], "a waiting client is told", reply.body)
    s.equal(service.process.wait(TIMEOUT_S), 0, "exit code after two signals")
    for c in clients:
        c.close()


def test_shutdown_with_unread_requests(s, args):
    """Requests that the service has not read yet when it is told to end are answered, not reset."""
    ask = http_request("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]})
    service = Service(args.qw, args.model)
    with service.connect() as known:
        known.sendall(http_request("GET", "/health"))
        known_reader = Reader(known)
        s.equal(known_reader.reply().status, 200, "health")
        service.signal(signal.SIGSTOP)
        clients = [service.connect() for _ in range(5)]  # they wait in the system's queue
        for c in [known, *clients]:
            c.sendall(ask)
        service.signal(signal.SIGTERM)
        service.signal(signal.SIGCONT)
        for reader in [known_reader, *map(Reader, clients)]:
            s.check(reader.reply().status in (200, 503), "an unread request at the end")  # signal or request: either is first
        for c in clients:
            c.close()
    s.equal(service.stop(), 0, "exit code")


def test_start(s, args):
    """What keeps the service from starting is said in one line."""
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    for more, code, part in ((["--host", "0.0.0.0"], 2, "--allow-remote"), (["--host", "::"], 2, "--allow-remote"),
                             (["--host", "no such host"], 2, "--host"), (["--port", "70000"], 2, "port"),
                             (["--port", str(taken.getsockname()[1])], 1, "--port")):
        p = subprocess.run([os.path.abspath(args.qw), "serve", "-m", os.path.abspath(args.model), *more],
                           capture_output=True, timeout=TIMEOUT_S)
        text = p.stderr.decode()
        s.check(p.returncode == code and text.count("\n") == 1 and part in text and p.stdout == b"",
                f"serve {' '.join(more)}", (p.returncode, text))
    taken.close()
    service = Service(args.qw, args.model, "--host", "0.0.0.0", "--allow-remote", "--verbose")
    for host, status in (("10.1.2.3:80", 200), ("evil.example", 403), (socket.gethostname(), 200)):
        s.equal(service.request("GET", "/", headers=[("Host", host)]).status, status, f"remote, Host: {host}")
    secret = {"messages": [{"role": "user", "content": "TOPSECRET"}], "max_tokens": 2}
    service.request("POST", "/v1/chat/completions?key=TOPSECRET", secret)
    service.stop()
    log = service.stderr()
    s.check("POST /v1/chat/completions 200" in log and "TOPSECRET" not in log, "the log has requests, no texts", log)


# ---- with the test double only ------------------------------------------------------------------------

def chat(text, **more):
    return {"messages": [{"role": "user", "content": text}], **more}


def test_fake_failure(s, service):
    reply = service.request("POST", "/v1/chat/completions", chat("fail please"))
    s.check(reply.status == 500 and reply.error()["type"] == "server_error", "an answer that fails", reply.body)
    with service.connect() as c:
        c.sendall(http_request("POST", "/v1/chat/completions", chat("fail please", stream=True)))
        reader = Reader(c)
        reply = reader.reply()
        events = [json.loads(event) for event in sse(reply.body)]
        s.check(reply.status == 200 and "error" in events[-1] and "choices" in events[-2],
                "a stream that fails ends with an error event", events[-1])
        s.check(reader.at_end(), "and its connection is closed")
    s.equal(service.health()["status"], "failed", "health after the model's file was found broken")


def test_fake_busy(s, service):
    """Sixteen requests fill the queue of the test double."""
    clients = []
    while len(clients) < 16:  # each connects when it has something to say: an idle one is closed after ten seconds
        clients.append(service.connect())
        clients[-1].sendall(http_request("POST", "/v1/chat/completions", chat("slow answer")))
        while service.health()["now"]["answers"] < len(clients):
            time.sleep(0.01)
    clients.append(service.connect())
    clients[16].sendall(http_request("POST", "/v1/chat/completions", chat("hello")))
    reply = Reader(clients[16]).reply()
    s.check(reply.status == 503 and reply.headers.get("retry-after") and reply.error()["code"] == "overloaded",
            "a full queue", (reply.headers, reply.body))
    for c in reversed(clients):
        c.close()
    made = service.wait_idle()["since_start"]["completion_tokens"]
    s.check(made < 2000, "all of them left: nothing is made for them", made)


def test_fake_reasoning(s, service):
    whole = service.request("POST", "/v1/chat/completions", chat("think first")).json()["choices"][0]["message"]
    s.equal((whole["reasoning_content"], whole["content"]), ("let me see", "You said: think first"), "reasoning")
    body = service.request("POST", "/v1/chat/completions", chat("think first", stream=True)).body
    deltas = [json.loads(event)["choices"][0]["delta"] for event in list(sse(body))[:-1]]
    s.equal("".join(d.get("reasoning_content", "") for d in deltas), "let me see", "reasoning in a stream")


def test_fake_calls(s, service):
    def ask(text, **more):
        return service.request("POST", "/v1/chat/completions", chat(text, **more))
    whole = ask("call them").json()["choices"][0]
    calls = whole["message"]["tool_calls"]
    s.equal([c["function"] for c in calls], [{"name": "weather", "arguments": '{"place": "Rom"}'},
                                             {"name": "clock", "arguments": "{}"}], "calls of a whole reply")
    s.equal((whole["message"]["content"], whole["finish_reason"]), ("You said: call them", "tool_calls"), "beside them")
    s.check(ask("call only").json()["choices"][0]["message"]["content"] is None, "nothing beside them: null")
    events = [json.loads(event) for event in list(sse(ask("call them", stream=True).body))[:-1]]
    pieces = [d["tool_calls"][0] for d in (e["choices"][0]["delta"] for e in events) if "tool_calls" in d]
    s.equal([(p["index"], p["function"].get("name"), p["function"]["arguments"]) for p in pieces],
            [(0, "weather", ""), (0, None, '{"place": '), (0, None, '"Rom"}'), (1, "clock", ""), (1, None, "{}")],
            "calls in a stream")
    s.check(all(("id" in p) == ("type" in p) == ("name" in p["function"]) for p in pieces), "the first piece has the id")
    before = service.health()["since_start"]["warnings"]
    broken = ask("broken").json()["choices"][0]
    s.equal((broken["message"]["tool_calls"][0]["function"]["arguments"], broken["finish_reason"]), ('{"place": ', "stop"),
            "a call that broke off")
    s.equal(service.health()["since_start"]["warnings"], before + 1, "warnings are counted")


def test_fake_drain(s, args):
    """The answer takes longer than a shutdown waits: its client is told. Takes ten seconds."""
    service = Service(args.qw, args.model)
    with service.connect() as c:
        c.sendall(http_request("POST", "/v1/chat/completions", chat("slow answer", stream=True)))
        reader = Reader(c)
        status, _ = reader.head()
        service.signal(signal.SIGTERM)
        events = list(sse(b"".join(reader.chunks())))
        s.check(status == 200 and "shutting down" in events[-1], "an answer that takes too long", events[-1])
    s.equal(service.stop(), 0, "exit code")


def main_fake(s, args):
    service = Service(args.qw, args.model)
    for test in (test_fake_busy, test_fake_reasoning, test_fake_calls, test_fake_failure):
        s.run(test, service)
    s.equal(service.stop(), 0, "exit code")
    s.run(test_fake_drain, args)
    return s.finish()


def main():
    args = arguments(__doc__, ("--fake", {"action": "store_true", "help": "the program has the test double inside"}))
    s = Suite()
    if args.fake:
        return main_fake(s, args)
    bias = endless(args.qw, args.model)
    service = Service(args.qw, args.model, "--allow-host", "named.example")
    beside = threading.Thread(target=s.run, args=(test_timeouts, service))
    beside.start()
    for test in (test_refused, test_accepted, test_head_and_versions, test_headers_of_replies, test_host_and_type,
                 test_expect_continue, test_refused_before_body, test_large_body, test_pipelining,
                 test_pipelining_without_reading):
        s.run(test, service)
    for test in (test_leaving, test_slow_reader, test_too_much_pipelined):
        s.run(test, service, bias)
    beside.join()
    s.run(test_connection_limit, service)
    s.equal(service.stop(), 0, "exit code")
    s.equal(service.complaints(), [], "nothing on standard error")
    s.run(test_shutdown, args, bias)
    s.run(test_shutdown_with_unread_requests, args)
    s.run(test_start, args)
    return s.finish()


if __name__ == "__main__":
    sys.exit(main())
