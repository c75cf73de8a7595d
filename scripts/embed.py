#!/usr/bin/env python3
"""Turns a file into C source, so that it becomes part of the program.

    scripts/embed.py SYMBOL INPUT > out.c

The source defines `const char SYMBOL[]` (the bytes, and one NUL after them) and `const size_t SYMBOL_bytes`
(without the NUL). The same input always gives the same output.
"""

import re
import sys

LINE_BYTES = 72


def literal(chunk):
    """One C string literal. Octal escapes of three digits cannot swallow what follows."""
    out = []
    for byte in chunk:
        if byte in b'"\\':
            out.append("\\" + chr(byte))
        elif byte == 0x0A:
            out.append("\\n")
        elif 0x20 <= byte < 0x7F and byte != 0x3F:  # "?" is escaped: no trigraphs
            out.append(chr(byte))
        else:
            out.append(f"\\{byte:03o}")
    return '"' + "".join(out) + '"'


def main():
    if len(sys.argv) != 3 or sys.argv[1] in ("-h", "--help"):
        print(__doc__.strip(), file=sys.stderr)
        sys.exit(2)
    symbol, path = sys.argv[1:]
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", symbol):
        sys.exit(f"embed: {symbol!r} is not a C name")
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        sys.exit(f"embed: {path}: {error.strerror}")
    write = sys.stdout.write
    write("/* Made by scripts/embed.py; do not edit. */\n#include <stddef.h>\n\n")
    write(f"extern const char {symbol}[];\nextern const size_t {symbol}_bytes;\n\n")
    write(f"const char {symbol}[] =\n")
    for at in range(0, max(len(data), 1), LINE_BYTES):
        write("    " + literal(data[at:at + LINE_BYTES]) + "\n")
    write(f"    ;\nconst size_t {symbol}_bytes = {len(data)};\n")


if __name__ == "__main__":
    main()
