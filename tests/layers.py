#!/usr/bin/env python3
"""The layers of src/: which folder may include which (docs/architecture.md draws them).

    tests/layers.py

A file includes what lies below its folder, never what is above or beside. cli/ and server/ see the library through the
public door include/qw.h alone. A header called *_private.h or *_internal.h stays in its folder. Every file opens with a
comment that says what it is for. Prints one line per failure and `N passed, M failed`.
"""
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Folder of src/ -> folders that its files may include, beside itself. What is not in the table is a mistake.
BELOW = {
    "base": (),
    "kernels": ("base",),
    "backend": ("kernels", "base"),
    "formats": ("kernels", "base"),
    "model": ("backend", "formats", "kernels", "base"),
    "text": ("formats", "kernels", "base"),
    "engine": ("model", "text", "backend", "formats", "kernels", "base"),
    "hub": ("formats", "kernels", "base"),
    "store": ("base",),
    "tools": ("model", "text", "backend", "formats", "kernels", "base"),
    "cli": ("hub", "store", "base"),
    "server": ("hub", "store", "base"),
}
# The public headers: plain types and errors are everybody's, the door belongs to those on either side of it.
PUBLIC = {"qw_status.h": set(BELOW), "qw_types.h": set(BELOW), "qw.h": {"engine", "cli", "server", "tools"}}

# What crosses the rule on purpose: file, include, why. A row that is not needed any more is a failure.
CROSSINGS = [
    ("src/tools/cmd_bench.c", "cli/cli.h", "a command: its options are parsed as all are"),
    ("src/tools/cmd_embed.c", "cli/cli.h", "a command: its options are parsed as all are"),
    ("src/tools/cmd_convert.c", "cli/cli.h", "a command: its options are parsed as all are"),
    ("src/tools/cmd_eval.c", "cli/cli.h", "a command: its options are parsed as all are"),
    ("src/tools/cmd_logits.c", "cli/cli.h", "a command: its options are parsed as all are"),
    ("src/tools/cmd_imatrix.c", "cli/cli.h", "a command: its options are parsed as all are"),
    ("src/tools/cmd_quantize.c", "cli/cli.h", "a command: its options are parsed as all are"),
    ("src/server/cmd_serve.c", "cli/cli.h", "a command: its options are parsed as all are"),
    ("src/cli/cmd_show.c", "formats/gguf.h", "lists what is in files that qw cannot run and the door does not open"),
]


def sources():
    """Paths of all C files of src/ and include/, from the root."""
    for top in ("src", "include"):
        for folder, _, names in os.walk(os.path.join(ROOT, top)):
            for name in sorted(names):
                if name.endswith((".c", ".h")):
                    yield os.path.relpath(os.path.join(folder, name), ROOT)


def include_fault(path, name):
    """Why this file may not include that name, or None."""
    layer = path.split("/")[1] if path.startswith("src/") else None
    if layer is None:
        return None if name in PUBLIC else f"{path} includes {name}: a public header includes public headers alone"
    if layer not in BELOW:
        return f"{path}: the folder src/{layer} has no row in the table of layers"
    if name in PUBLIC:
        return None if layer in PUBLIC[name] else f"{path} includes {name}: src/{layer} does not see the public door"
    other = name.split("/")[0]
    if other not in BELOW:
        return f"{path} includes {name}: want a path from src/ or include/"
    if other != layer and other not in BELOW[layer]:
        return f"{path} includes {name}: src/{other} is not below src/{layer}"
    if other != layer and re.search(r"_(private|internal)\.h$", name):
        return f"{path} includes {name}: that header is private to src/{other}"
    return None


def check(report):
    """Calls report(fault or None) once for each thing that was looked at."""
    crossings = {(path, name) for path, name, _ in CROSSINGS}
    used = set()
    for path in sources():
        with open(os.path.join(ROOT, path), encoding="utf-8") as file:
            text = file.read()
        report(None if text.startswith("/*") else f"{path}: want a comment on top that says what the file is for")
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.M):
            fault = include_fault(path, name)
            if fault and (path, name) in crossings:
                used.add((path, name))
                fault = None
            report(fault)
    for path, name, _ in CROSSINGS:
        report(None if (path, name) in used else f"tests/layers.py: {path} does not include {name} against the rule: remove the row")


def main():
    counts = [0, 0]

    def report(fault):
        counts[fault is not None] += 1
        if fault:
            print("FAIL", fault)

    check(report)
    print(f"{counts[0]} passed, {counts[1]} failed")
    sys.exit(1 if counts[1] else 0)


if __name__ == "__main__":
    main()
