"""Servers on loopback for the programs in bench/, and streamed answers with the time at which each piece came.

An answer is only received while it is measured: bytes and times are kept, and taken apart afterwards, so that reading takes
next to nothing from the processors that the servers need. All answers of a measurement are read by one thread.
"""

import bisect
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request

from common import fail

START_SECONDS = 300
ANSWER_SECONDS = 600  # between two pieces of an answer


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A server process on loopback that can be restarted. command: of a port."""

    def __init__(self, name, command):
        self.name, self.command, self.process, self.port = name, command, None, 0

    def start(self):
        self.port = free_port()
        try:
            self.process = subprocess.Popen(self.command(self.port), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                            stderr=subprocess.DEVNULL)
        except OSError as error:
            fail(f"{self.command(self.port)[0]}: {error.strerror}")
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                fail(f"{self.name} ended with {self.process.returncode} while it started")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as reply:
                    if reply.status == 200:
                        return
            except OSError:
                time.sleep(0.1)
        fail(f"{self.name} does not answer")

    def stop(self, how=signal.SIGTERM):
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait()
            self.process = None

    def cpu_seconds(self):
        """Processor time of the running process so far; 0 where that is not known."""
        try:
            with open(f"/proc/{self.process.pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, AttributeError, IndexError):
            return 0.0


def qw_server(name, qw, model, threads, *more):
    return Server(name, lambda port: [*qw.split(), "serve", "-m", model, "--port", str(port), "-t", str(threads), *more])


def llama_server(path, model, threads, slots, context):
    """llama.cpp's server: context tokens for each slot, flash attention, keys and values in f16; the rest as it comes."""
    return Server("llama-server", lambda port: [path, "-m", model, "--port", str(port), "-t", str(threads), "-fa", "on", "-np",
                                                str(slots), "-c", str(slots * context)])


class Home:
    """A QW_HOME of its own for a measurement: nothing is known yet, and nothing stays."""

    def __enter__(self):
        self.path = tempfile.mkdtemp(prefix="qw-bench-")
        os.environ["QW_HOME"] = self.path
        return self

    def __exit__(self, *reason):
        shutil.rmtree(self.path, ignore_errors=True)


# ---- streamed answers -------------------------------------------------------------------------------


def unchunk(raw):
    """(body, ends): what a chunked body holds as far as it came; ends: of each chunk in the body and in raw."""
    body, ends, at = bytearray(), [], 0
    while (line := raw.find(b"\r\n", at)) >= 0:
        size = int(raw[at:line].split(b";")[0], 16)
        at = line + 2 + size
        if size == 0 or at > len(raw):
            break
        body += raw[line + 2:at]
        ends.append((len(body), at))
        at += 2
    return bytes(body), ends


def timeline(raw, marks):
    """[(seconds, object)]: the events of a streamed answer. marks: (bytes so far, seconds) after each time something came."""
    head, _, chunked = raw.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise ValueError(raw[-2000:].decode("utf-8", "replace"))
    skipped = len(head) + 4
    body, ends = unchunk(chunked)
    found, at = [], 0
    while (end := body.find(b"\n\n", at)) >= 0:
        event, at = body[at:end], end + 2
        if event.startswith(b"data: {"):
            of_raw = skipped + ends[bisect.bisect_left(ends, (at, 0))][1]
            found.append((marks[bisect.bisect_left(marks, (of_raw, 0))][1], json.loads(event[6:])))
    return found


class Answer:
    """A chat completion that is on its way."""

    def __init__(self, server, body):
        text = json.dumps({"model": "default", "stream": True, "stream_options": {"include_usage": True}, **body}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n" \
               f"Content-Length: {len(text)}\r\nConnection: close\r\n\r\n"
        self.name, self.raw, self.marks, self.n_events, self.ended = server.name, bytearray(), [], 0, False
        self.begun = time.monotonic()
        self.socket = socket.create_connection(("127.0.0.1", server.port))
        self.socket.sendall(head.encode() + text)

    def fileno(self):
        return self.socket.fileno()

    def receive(self):
        piece = self.socket.recv(1 << 16)
        self.raw += piece
        self.marks.append((len(self.raw), time.monotonic()))
        self.n_events += piece.count(b"data: {")  # about: one may come in two pieces
        self.ended = not piece

    def close(self):
        """The server sees its client leave."""
        self.socket.close()

    def pieces(self):
        """([seconds of each piece of text], usage or None, why it ended or None)."""
        try:
            events = timeline(bytes(self.raw), self.marks)
        except ValueError as error:
            fail(f"{self.name}: {error}")
        times, usage, finish = [], None, None
        for seconds, event in events:
            if "error" in event:
                fail(f"{self.name}: {event['error']}")
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                finish = choice.get("finish_reason") or finish
                if choice["delta"].get("content") or choice["delta"].get("reasoning_content"):
                    times.append(seconds)
        return times, usage, finish


def receive(answers, done):
    """Reads all of these answers as they come, until done() or all have ended."""
    with selectors.DefaultSelector() as selector:
        for answer in answers:
            if not answer.ended:
                selector.register(answer, selectors.EVENT_READ)
        while selector.get_map() and not done():
            ready = selector.select(ANSWER_SECONDS)
            if not ready:
                fail(f"nothing came for {ANSWER_SECONDS} s")
            for key, _ in ready:
                key.fileobj.receive()
                if key.fileobj.ended:
                    selector.unregister(key.fileobj)


def begin(server, prompt, n_tokens):
    """A greedy answer without penalties or thinking, in the words of either server."""
    return Answer(server, {"messages": [{"role": "user", "content": prompt}], "max_tokens": n_tokens, "temperature": 0,
                           "repetition_penalty": 1, "repeat_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0,
                           "stop_loops": False, "ignore_eos": True, "chat_template_kwargs": {"enable_thinking": False}})
