#!/usr/bin/env python3
"""Broken model files: each gets one line on standard error and exit code 1, quickly.

    broken.py --qw build/qw [--model REAL.gguf] [--seed N]

The committed tiny model is cut short, gets one bit flipped in each field of its header in turn, and counts, lengths and
sizes far too large; `qw show FILE` and `qw run -m FILE -p x -n 1` must refuse it with one line, or, where the bit only
changes the meaning of a text or a number, work. With --model the same is done to a real-sized file, on a sample of its
fields, in a copy whose weights are a hole. Prints one line per failure, the largest process time of a refusal, and
`N passed, M failed`. Standard library alone.
"""
import argparse
import concurrent.futures
import os
import random
import struct
import subprocess
import sys
import tempfile
import threading

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TINY = os.path.join(ROOT, "tests", "fixtures", "tiny-q4km.gguf")
SECONDS_MAX = 60
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes by value type
STRING, ARRAY = 8, 9
# Fields that a flipped bit always makes wrong, and hyper-parameters that the tensors' shapes contradict then.
STRUCTURE = {"magic", "n_tensors", "n_kv", "key length", "string length", "array count", "name length", "tensor name",
             "n_dims", "dim", "tensor type", "offset"}
SHAPES = {"block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv"}


class Field:
    def __init__(self, at, size, kind, label):
        self.at, self.size, self.kind, self.label = at, size, kind, label

    def __str__(self):
        return f"{self.kind} of {self.label} (byte {self.at})"


def walk(data):
    """Every field of the header, in order, and the first byte after the tensor infos."""
    fields, at = [], 0

    def take(fmt, kind, label):
        nonlocal at
        value, = struct.unpack_from("<" + fmt, data, at)
        fields.append(Field(at, struct.calcsize("<" + fmt), kind, label))
        at += struct.calcsize("<" + fmt)
        return value

    def text(kind, length_kind, label):
        nonlocal at
        n = take("Q", length_kind, label)
        if n:
            fields.append(Field(at, n, kind, label))
        at += n
        return bytes(data[at - n:at]).decode("utf-8", "replace")

    def value(kind, label):
        nonlocal at
        if kind == STRING:
            text("text", "string length", label)
        elif kind == ARRAY:
            elem = take("I", "element type", label)
            for i in range(take("Q", "array count", label)):
                value(elem, f"{label}[{i}]")
        else:
            fields.append(Field(at, SCALARS[kind], "number", label))
            at += SCALARS[kind]

    take("4s", "magic", "header")
    take("I", "version", "header")
    n_tensors, n_kv = take("Q", "n_tensors", "header"), take("Q", "n_kv", "header")
    for i in range(n_kv):
        key = text("key", "key length", f"key {i}")
        value(take("I", "value type", key), key)
    for i in range(n_tensors):
        name = text("tensor name", "name length", f"tensor {i}")
        for d in range(take("I", "n_dims", name)):
            take("Q", "dim", f"{name} {d}")
        take("I", "tensor type", name)
        take("Q", "offset", name)
    return fields, at


def must_fail(field, changed):
    """Whether the file with `changed` in the field's place has to be refused."""
    if field.kind == "version":
        return struct.unpack("<I", changed)[0] not in (2, 3)
    return field.kind in STRUCTURE or field.kind == "number" and field.label.partition(".")[2] in SHAPES


class Judge:
    """Runs the two commands on files and counts. Any thread."""

    def __init__(self, qw, home):
        self.qw, self.env = qw, dict(os.environ, QW_HOME=home, LC_ALL="C.UTF-8")
        self.lock = threading.Lock()
        self.passed = self.failed = self.refused = 0
        self.slowest, self.slowest_what = 0.0, ""

    def run(self, command):
        """(exit code or minus signal, standard output, standard error, seconds of process time)"""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = subprocess.Popen([self.qw, *command], stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                     env=self.env)
            timer = threading.Timer(SECONDS_MAX, child.kill)
            timer.start()
            _, status, usage = os.wait4(child.pid, 0)
            timer.cancel()
            child.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            err.seek(0)
            return child.returncode, out.read(), err.read(), usage.ru_utime + usage.ru_stime

    def check(self, what, path, command, refuse):
        """One command; refuse: True must, False must not, None may. Returns whether it refused."""
        code, out, err, seconds = self.run(command)
        lines = err.decode("utf-8", "replace").splitlines()
        one_line = len(lines) == 1 and err.endswith(b"\n") and len(lines[0]) > 10 and not out
        good = (code == 1 and one_line and refuse is not False) or (code == 0 and refuse is not True)
        with self.lock:
            self.passed += good
            self.failed += not good
            self.refused += code == 1
            if code == 1 and seconds > self.slowest:
                self.slowest, self.slowest_what = seconds, f"{what}, {command[0]}"
            if not good:
                said = err.decode("utf-8", "replace").replace(path, "FILE").strip()
                print(f"FAIL {what}: {command[0]}: exit code {code}, {len(out)} bytes of output, said {said[:300]!r}",
                      flush=True)
        return code == 1

    def both(self, what, path, refuse, run=(True, True)):
        """run: whether the run follows a refusal, and whether it follows a success, where it computes with the file."""
        refused = self.check(what, path, ["show", path], refuse)
        if run[0 if refused else 1]:
            self.check(what, path, ["run", "-m", path, "-p", "x", "-n", "1", "--no-pack-cache"],
                       True if refused else refuse)


class Copy:
    """A private copy of the model: the header, then the weights or a hole."""

    def __init__(self, source, header_bytes, folder, hole):
        self.size = os.path.getsize(source)
        fd, self.path = tempfile.mkstemp(dir=folder, suffix=".gguf")
        with open(source, "rb") as file:
            os.write(fd, file.read(header_bytes if hole else -1))
        os.ftruncate(fd, self.size)
        self.fd = fd

    def put(self, at, data):
        os.pwrite(self.fd, data, at)


def flips(fields, rng, per_field):
    """(what, byte, new bytes, old bytes, must fail?) of single flipped bits."""
    def make(data):
        for field in fields:
            for _ in range(min(per_field.get(field.kind, 1), field.size * 8)):
                bit = rng.randrange(field.size * 8)
                old = bytes(data[field.at:field.at + field.size])
                new = bytearray(old)
                new[bit // 8] ^= 1 << bit % 8
                refuse = True if must_fail(field, bytes(new)) else None
                yield f"bit {bit} of {field}", field.at, bytes(new), old, refuse
    return make


def huge(fields, rng):
    """Counts, lengths and sizes that no file holds."""
    kinds = {"n_tensors", "n_kv", "key length", "string length", "array count", "name length", "dim", "offset"}

    def make(data):
        for field in (f for f in fields if f.kind in kinds):
            for value in rng.sample([2**64 - 1, 2**63, 2**63 - 1, 2**40, 2**32, 2**31 + 1], 2):
                old = bytes(data[field.at:field.at + 8])
                yield f"{value} as {field}", field.at, struct.pack("<Q", value), old, True
    return make


def cuts(size, header_end, data_end, rng, n):
    """Lengths to which the file is cut: all of the first, the edges, and random ones in header and data."""
    lengths = set(range(0, 40)) | {header_end - 1, header_end, header_end + 1, data_end - 1, data_end - 1000}
    lengths |= {rng.randrange(40, header_end) for _ in range(n)}
    lengths |= {rng.randrange(header_end, data_end) for _ in range(n)}
    return sorted(x for x in lengths if 0 <= x < size)


def data_end_of(data, fields, header_end, size):
    """An upper bound below which the file lacks bytes of some tensor: the last tensor begins there or later."""
    offsets = [struct.unpack_from("<Q", data, f.at)[0] for f in fields if f.kind == "offset"]
    return min(size, (header_end + 31) // 32 * 32 + max(offsets) + 32)


def attack(judge, source, folder, rng, sample):
    """All cases on one model. sample: at most so many fields of every kind; 0: all, and the run as well."""
    with open(source, "rb") as file:
        data = memoryview(file.read(32 << 20))
    size = os.path.getsize(source)
    fields, header_end = walk(data)
    n_fields = len(fields)
    if sample:
        kinds = {}
        for field in fields:
            kinds.setdefault(field.kind, []).append(field)
        fields = [f for some in kinds.values() for f in (some if len(some) <= sample else rng.sample(some, sample))]
    jobs = []
    per_field = {"magic": 8, "version": 32, "n_tensors": 8, "n_kv": 8} if not sample else {}
    for make in (flips(fields, rng, per_field), huge(fields if sample else rng.sample(fields, n_fields // 4), rng)):
        jobs += [("put", job) for job in make(data)]
    data_end = data_end_of(data, *walk(data), size)
    jobs += [("cut", n) for n in cuts(size, header_end, data_end, rng, 10 if sample else 60)]
    # A large file is not computed with. An element of an array (a token, a merge) is refused by what both commands share.
    once_refused, once_taken = (True, not sample), (False, not sample)
    local = threading.local()
    name = os.path.basename(source)

    def do(job):
        if not hasattr(local, "copy"):
            local.copy = Copy(source, len(data), folder, bool(sample))
        copy, (kind, what) = local.copy, job
        if kind == "cut":
            os.ftruncate(copy.fd, what)
            judge.both(f"{name} cut to {what} bytes", copy.path, True)
            local.copy = Copy(source, len(data), folder, bool(sample))
            os.close(copy.fd)
            os.unlink(copy.path)
            return
        label, at, new, old, refuse = what
        copy.put(at, new)
        judge.both(f"{name}, {label}", copy.path, refuse, once_taken if "]" in label else once_refused)
        copy.put(at, old)

    whole = Copy(source, len(data), folder, bool(sample))
    judge.both(f"{name} as it is", whole.path, False, once_refused)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for done in [pool.submit(do, job) for job in jobs]:
            done.result()
    print(f"{name}: {n_fields} fields, {len(jobs)} broken files", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--qw", required=True)
    parser.add_argument("--model", help="a real-sized GGUF file, beside the tiny one")
    parser.add_argument("--seed", type=int, default=20240908)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    print(f"seed {args.seed}")
    with tempfile.TemporaryDirectory() as folder:
        judge = Judge(os.path.abspath(args.qw), os.path.join(folder, "home"))
        attack(judge, TINY, folder, rng, 0)
        tiny = judge.slowest, judge.slowest_what
        judge.slowest = 0.0
        if args.model:
            attack(judge, args.model, folder, rng, 12)
            print(f"slowest refusal of the real-sized file: {judge.slowest * 1000:.1f} ms of process time "
                  f"({judge.slowest_what})")
        print(f"slowest refusal of the tiny file: {tiny[0] * 1000:.1f} ms of process time ({tiny[1]})")
        print(f"{judge.refused} refusals")
    print(f"{judge.passed} passed, {judge.failed} failed")
    sys.exit(1 if judge.failed else 0)


if __name__ == "__main__":
    main()
