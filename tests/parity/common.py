"""Shared by the logits parity scripts: environments, token files, the engine under test, distances in float64.

Use: imported by logits.py, logits_small.py, reference.py, llama_logits.py and make_fixtures.py. Only `enter` and the
functions that say so may be called before numpy is known to exist.
"""

import hashlib
import json
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FIXTURES = os.path.join(ROOT, "tests", "fixtures")
WORK = os.path.join(ROOT, "build", "parity")


def fail(message):
    """Ends the program with one line. No numpy needed."""
    print(f"parity: {message}", file=sys.stderr)
    sys.exit(1)


def say(message):
    """One line of progress on standard error. No numpy needed."""
    print(f"parity: {message}", file=sys.stderr, flush=True)


def venv_python(name):
    """Path of the python of a named environment of scripts/venv.py, made when missing. No numpy needed."""
    run = subprocess.run([sys.executable, os.path.join(ROOT, "scripts", "venv.py"), name],
                         stdout=subprocess.PIPE, text=True)
    if run.returncode != 0:
        fail(f"the Python environment {name!r} could not be made")
    return run.stdout.strip()


def enter(name):
    """Restarts this script inside a named environment, unless it already runs there. No numpy needed."""
    folder = os.path.join(ROOT, "build", "venv", name)
    if os.path.realpath(sys.prefix) == os.path.realpath(folder):
        return
    python = venv_python(name)
    os.execv(python, [python, os.path.abspath(sys.argv[0]), *sys.argv[1:]])


def read_tokens(path):
    """Token ids from a .npy file, a JSON array, or text with ids between spaces or commas."""
    if path.endswith(".npy"):
        import numpy
        return [int(x) for x in numpy.load(path)]
    with open(path, encoding="utf-8") as file:
        text = file.read()
    if text.lstrip().startswith("["):
        return [int(x) for x in json.loads(text)]
    return [int(x) for x in re.split(r"[\s,]+", text.strip()) if x]


def write_tokens(path, tokens):
    """Token ids as `qw logits --tokens-file` reads them. No numpy needed."""
    with open(path, "w", encoding="ascii") as file:
        for i in range(0, len(tokens), 16):
            file.write(" ".join(str(x) for x in tokens[i:i + 16]) + "\n")


def check_program(qw):
    """Fails with one line when the program is not there. It may have a launcher, as in "qemu-x86_64 build/qw"."""
    if not qw.split() or not os.access(qw.split()[-1], os.R_OK):
        fail(f"no such program: {qw} (build it first)")


def model_path(qw, model):
    """A model given as a file, or by the name under which qw has it installed; fails with one line."""
    if os.path.isfile(model):
        return model
    run = subprocess.run([*qw.split(), "show", "--json", model], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL, text=True)
    try:
        return json.loads(run.stdout)["path"]
    except (ValueError, KeyError, TypeError):
        fail(f"no such model file, and qw has no model of that name: {model}")


def file_key(path, tokens):
    """A short name for (model file, tokens): every token, the file's size and 64 pieces of it, wherever it lies."""
    size = os.path.getsize(path)
    digest = hashlib.sha256(f"{size} {tokens}".encode())
    with open(path, "rb") as file:
        for i in range(64):
            file.seek(max(0, size - 65536) * i // 63)
            digest.update(file.read(65536))
    return f"{len(tokens)}-{digest.hexdigest()[:16]}"


def run_qw(qw, model, tokens_path, n_tokens, out, threads, exact):
    """Runs `qw logits` and returns its array, memory-mapped; None and one printed line when it fails."""
    import numpy
    command = [*qw.split(), "logits", "-m", model, "--tokens-file", tokens_path, "-o", out, "-t", str(threads),
               "-c", str((n_tokens + 255) // 256 * 256)]
    if exact:
        command.append("--exact")
    if os.path.exists(out):
        os.unlink(out)
    run = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if run.returncode != 0:
        last = (run.stderr.strip().splitlines() or ["(no message)"])[-1]
        say(f"qw logits ended with exit code {run.returncode}: {last}")
        return None
    try:
        array = numpy.load(out, mmap_mode="r")
    except (OSError, ValueError) as error:
        say(f"qw logits wrote no readable {os.path.basename(out)}: {error}")
        return None
    if array.dtype != numpy.float32 or array.ndim != 2 or array.shape[0] != n_tokens:
        say(f"qw logits wrote {array.dtype} {array.shape}; want float32 [{n_tokens}, vocabulary]")
        return None
    return array


def log_softmax(rows):
    """Log-probabilities in float64 of float32 logits [n, vocab]."""
    import numpy
    x = rows.astype(numpy.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - numpy.log(numpy.exp(x).sum(axis=1, keepdims=True))


def distances(reference, other, rows_at_once=64, want_kl=True):
    """Compares two logit arrays [n, vocab] piece by piece.

    Returns a dict: max_abs (and where: position, id), mean_abs, and with want_kl the per-position kl
    KL(reference || other) in nats and same_top (bool), each an array [n]. A value that is not finite makes max_abs
    infinite.
    """
    import numpy
    n = reference.shape[0]
    kl, same_top = numpy.zeros(n), numpy.zeros(n, dtype=bool)
    biggest, where, total = 0.0, (0, 0), 0.0
    for begin in range(0, n, rows_at_once):
        a = numpy.asarray(reference[begin:begin + rows_at_once])
        b = numpy.asarray(other[begin:begin + rows_at_once])
        gap = numpy.abs(a.astype(numpy.float64) - b)
        gap[~numpy.isfinite(gap)] = numpy.inf
        at = int(gap.argmax())
        if gap.flat[at] > biggest:
            biggest, where = float(gap.flat[at]), (begin + at // gap.shape[1], at % gap.shape[1])
        total += float(gap.mean(axis=1).sum())
        same_top[begin:begin + len(a)] = a.argmax(axis=1) == b.argmax(axis=1)
        if want_kl:
            p, q = log_softmax(a), log_softmax(b)
            kl[begin:begin + len(a)] = (numpy.exp(p) * (p - q)).sum(axis=1)
    return {"max_abs": biggest, "where": where, "mean_abs": total / n, "kl": kl, "same_top": same_top}
