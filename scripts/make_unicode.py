#!/usr/bin/env python3
"""Writes src/text/unicode_tables.c: what the tokenizer must know about each code point.

Use:   python scripts/make_unicode.py [--check]        (needs the package tokenizers==0.23.3)

The judge is the `tokenizers` package itself, not a data file: its regular expressions and its NFC each
follow a Unicode version of their own, and text must be cut exactly as they cut it. Every code point is
put through the package once; the versions seen are printed and written into the table's opening comment.

  class   letter \\p{L}, number \\p{N}, mark \\p{M}, white space \\s, or other
  known   the code point takes part in NFC: it decomposes, has a combining class, or composes with a
          neighbour. All others are inert, whatever a newer Unicode says of them
  stop    a known code point that may change or join what stands before it. A text without one is NFC

--check compares with the committed file, writes nothing and exits 1 when they differ.
"""

import os
import sys

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TARGET = os.path.join(ROOT, "src", "text", "unicode_tables.c")
WANTED = "0.23.3"
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
CLASSES = [("\\p{L}", 1), ("\\p{N}", 2), ("\\p{M}", 3), ("\\s", 4)]
KNOWN, STOP = 8, 16
BLOCK = 64

# The first letter (for the classes) and the first combining mark (for NFC) that a version brought.
LETTER_OF = [("13.0", 0x08C7), ("14.0", 0x0870), ("15.0", 0x31350), ("15.1", 0x2EBF0), ("16.0", 0x1C89),
             ("17.0", 0x323B0)]
MARK_OF = [("7.0", 0x1AB0), ("8.0", 0x08E3), ("9.0", 0x08D4), ("10.0", 0x1DF6), ("11.0", 0x07FD),
           ("12.0", 0x0EBA), ("13.0", 0x1ABF), ("14.0", 0x0898), ("15.0", 0x10EFD), ("16.0", 0x0897)]


def matching(pattern):
    """Set of the code points that one character class matches."""
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    found = set()
    for begin in range(0, len(CODE_POINTS), 4096):
        block = CODE_POINTS[begin:begin + 4096]
        kept = {ch for piece, _ in split.pre_tokenize_str("".join(map(chr, block))) for ch in piece}
        found.update(c for c in block if chr(c) not in kept)
    return found


def changed(normalizer, template):
    """Set of the code points c for which the normaliser changes template(c); a line each, one call."""
    lines = [template(chr(c)) for c in CODE_POINTS]
    out = normalizer.normalize_str("\n".join(lines)).split("\n")
    # U+000A itself makes one line more: its neighbours are judged alone.
    if len(out) != len(lines):
        newline = CODE_POINTS.index(10)
        extra = len(out) - len(lines)
        out[newline:newline + 1 + extra] = ["\n".join(out[newline:newline + 1 + extra])]
    return {c for c, a, b in zip(CODE_POINTS, lines, out) if a != b}


def nfc_roles():
    """(known, stop): which code points NFC touches, learned from the package's NFC and NFD."""
    nfc, nfd = normalizers.NFC(), normalizers.NFD()
    decomposes = changed(nfd, lambda ch: ch)
    unstable = changed(nfc, lambda ch: ch)
    marks = (changed(nfd, lambda ch: "a" + ch + "\u0334") | changed(nfd, lambda ch: "a\u0345" + ch)) - decomposes
    firsts, seconds = set(), set()
    for c in sorted(decomposes - unstable):
        parts = nfd.normalize_str(chr(c))
        first, second = nfc.normalize_str(parts[:-1]), parts[-1]
        if len(first) != 1 or nfc.normalize_str(first + second) != chr(c):
            sys.exit(f"make_unicode: U+{c:04X} is not composed as expected")
        firsts.add(ord(first))
        seconds.add(ord(second))
    stop = marks | unstable | seconds
    return stop | firsts | decomposes, stop


def version(table, known):
    """The last version in the table whose marker is known, all earlier ones being known too."""
    seen = [name for name, c in table if c in known]
    if seen != [name for name, _ in table[:len(seen)]]:
        sys.exit(f"make_unicode: markers of versions {seen} are known, which is no prefix")
    return seen[-1]


def rows_of(numbers):
    """Numbers as source lines of about 100 columns."""
    line, lines = "   ", []
    for number in numbers:
        text = f" {number},"
        if len(line) + len(text) > 100:
            lines.append(line)
            line = "   "
        line += text
    return "\n".join(lines + [line])


def build():
    """The whole text of unicode_tables.c."""
    values = [0] * 0x110000
    classes = {}
    for pattern, value in CLASSES:
        classes[pattern] = matching(pattern)
        for c in classes[pattern]:
            if values[c]:
                sys.exit(f"make_unicode: U+{c:04X} is in two classes")
            values[c] = value
    known, stop = nfc_roles()
    for c in known:
        values[c] |= KNOWN
    for c in stop:
        values[c] |= STOP
    letters, marks = version(LETTER_OF, classes["\\p{L}"]), version(MARK_OF, stop)
    counts = ", ".join(f"{pattern} {len(found)}" for pattern, found in classes.items())
    print(f"tokenizers {tokenizers.__version__}: classes are Unicode {letters} ({counts})")
    print(f"tokenizers {tokenizers.__version__}: NFC is Unicode {marks} ({len(known)} known, {len(stop)} stop)")

    blocks, index = {}, []
    for begin in range(0, 0x110000, BLOCK):
        block = tuple(values[begin:begin + BLOCK])
        index.append(blocks.setdefault(block, len(blocks)))
    print(f"{len(blocks)} blocks of {BLOCK}: {len(index) * 2} + {len(blocks) * BLOCK} bytes")
    body = "\n".join(f"    /* {i} */\n{rows_of(block)}" for block, i in blocks.items())
    return f"""/* unicode_tables.c: classes of every code point. Made by scripts/make_unicode.py; do not edit.
 *
 * As the package tokenizers {tokenizers.__version__} sees them: letters, numbers, marks and white space of Unicode
 * {letters}, roles in NFC of Unicode {marks}. Two stages: the high bits of a code point choose a block of
 * {BLOCK} entries, the low bits an entry (unicode_tables.h names its bits). Immutable; any thread.
 */
#include "text/unicode_tables.h"

const char qw_unicode_class_version[] = "{letters}";
const char qw_unicode_nfc_version[] = "{marks}";

const uint16_t qw_unicode_index[{len(index)}] = {{
{rows_of(index)}
}};

const uint8_t qw_unicode_blocks[{len(blocks) * BLOCK}] = {{
{body}
}};
"""


def main():
    if tokenizers.__version__ != WANTED:
        sys.exit(f"make_unicode: the tables are made with tokenizers {WANTED}, this is {tokenizers.__version__}")
    text = build()
    if "--check" in sys.argv[1:]:
        with open(TARGET, encoding="ascii") as f:
            same = f.read() == text
        print("unicode_tables.c is up to date" if same else "unicode_tables.c differs: run make_unicode.py")
        sys.exit(0 if same else 1)
    with open(TARGET, "w", encoding="ascii") as f:
        f.write(text)
    print("wrote src/text/unicode_tables.c")


if __name__ == "__main__":
    main()
