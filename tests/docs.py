#!/usr/bin/env python3
"""The pages stay true: paths, functions, options, links and examples in README.md, CONTRIBUTING.md, docs/ and the other pages;
and the layers of src/ (tests/layers.py).

    tests/docs.py --qw build/qw

Looked at is what stands in code: spans, fenced and indented blocks. A path must exist, `file.c:name` must be a function of that
file, a qw_ or QW_ word must be in the sources, an option must be in `--help` of the command (or in a program that the same
page names), a `make` target in the Makefile, a link must lead somewhere. NAME, FILE and the like, <angles> and `...`
are placeholders. The C example of the README is compiled and asked a question, when it stands beside the library. Needs no package.
Prints one line per failure and `N passed, M failed`.
"""
import argparse
import functools
import os
import re
import shlex
import subprocess
import sys
import tempfile

import layers

ROOT = layers.ROOT
TINY = "tests/fixtures/tiny-q4km.gguf"
SOURCE_ENDINGS = (".c", ".h", ".py", ".md")
# Options of other people's programs that pages tell the reader to use.
FOREIGN_OPTIONS = {"--vex-iropt-register-updates", "--libs", "--cflags", "--depth"}
# Must not stand in any page: places of one machine, and work left open.
FORBIDDEN = re.compile(r"(?<![\w.])/(?:work|tmp|root|home)/|\bTODO\b|\bFIXME\b|\bXXX\b")


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def exists(path):
    return os.path.exists(os.path.join(ROOT, path))


@functools.lru_cache(None)
def tree():
    """All files that belong to the project, from the root."""
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(f for f in folders if f not in (".git", "build", "node_modules", "__pycache__"))
        found += [os.path.relpath(os.path.join(folder, name), ROOT) for name in names]
    return sorted(found)


@functools.lru_cache(None)
def code_text(path):
    """A source file without comments, so that a function that is only talked about is not found."""
    text = read(path)
    return re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.S) if path.endswith((".c", ".h")) else text


@functools.lru_cache(None)
def words():
    """Every identifier of the C sources, the scripts and the Makefile."""
    seen = set()
    for path in tree():
        if path.endswith((".c", ".h", ".py")) or path == "Makefile":
            seen.update(re.findall(r"[A-Za-z_]\w*", read(path)))
    return seen


def pages():
    return [p for p in tree() if p.endswith(".md") and (os.sep not in p or p.startswith("docs/"))]


# ---- what is in a page ----------------------------------------------------------------------------


class Block:
    """A paragraph or a block of code: its page, first line, text, and the language of a block ("" without a name)."""

    def __init__(self, page, line, text, language=None):
        self.page, self.line, self.text, self.language = page, line, text, language

    @property
    def where(self):
        return f"{self.page}:{self.line}"

    def codes(self):
        """The pieces of code in it: lines of a block, spans of a paragraph."""
        if self.language is not None:
            return [line for line in self.text.split("\n") if line.strip()]
        return [m.group(2).strip() for m in re.finditer(r"(`+)(.+?)\1", self.text, re.S)]


def blocks_of(page):
    """Splits a page into paragraphs (a table row counts as one), fenced and indented blocks."""
    found, lines, fence, previous = [], [], None, ""

    def flush(end, language=None):
        text = "\n".join(lines)
        if text.strip():
            found.append(Block(page, end - len(lines), text, language))
        lines.clear()

    for number, line in enumerate(read(page).split("\n"), 1):
        opens = re.match(r"\s*```\s*(\w*)", line)
        if fence is None and opens:
            flush(number)
            fence = opens.group(1)
        elif fence is not None and line.strip() == "```":
            flush(number, fence)
            fence = None
        elif fence is not None:
            lines.append(line)
        elif line.startswith("    ") and not previous.strip():
            flush(number)
            found.append(Block(page, number, line.strip(), ""))
            continue  # `previous` stays blank: the next line may belong to the same block
        elif not line.strip() or line.startswith("|") or re.match(r"\s*[-*] ", line):
            flush(number)
            if line.strip():
                lines.append(line)
        else:
            lines.append(line)
        previous = line
    flush(number + 1)
    return found


def is_placeholder(text):
    return bool(re.search(r"[<>*{}$]|\.\.\.|(?<![A-Z])(?:NAME|FILE|MODEL|OUT|FOLDER|PATH|TEXT|OWNER|REPO|COMMAND)(?![A-Z])", text))


# ---- paths and names ------------------------------------------------------------------------------


def resolve(path, page):
    """The file or folder of the tree that is meant, or None. A bare name may stand for one file anywhere."""
    for base in ("", "src", "include", os.path.dirname(page)):
        candidate = os.path.normpath(os.path.join(base, path))
        if not candidate.startswith("..") and exists(candidate):
            return candidate
    hits = [p for p in tree() if p.endswith("/" + path)]
    return hits[0] if hits else None


def built_from(path):
    """What a path below build/ is made from."""
    name = os.path.basename(path)
    known = {"build/qw": "src/cli/main.c", "build/libqw.a": "include/qw.h", "build/tests/checkasm": "tests/kernels/checkasm.c",
             "build/tests/qw-fake": "tests/cli/fake_engine.c", "build/tests/qw-isa": "tests/unit/isa_cap.c"}
    for candidate in (known.get(path), f"tests/unit/{name}.c", f"tests/parity/{name}.c"):
        if candidate and exists(candidate):
            return candidate
    return None


def check_paths(block, report):
    """Paths, `file:function` and identifiers."""
    tops = {p.split("/")[0] for p in tree() if "/" in p}
    for code in block.codes():
        for token in re.findall(r"[\w.][\w./+-]*(?::[A-Za-z_]\w*(?:\(\))?)?", code):
            path, _, name = token.partition(":")
            path, name = path.rstrip("."), name.removesuffix("()")
            before = code[:code.index(token)]
            if is_placeholder(path) or before.endswith(("/", "<", "*", "$", "@", "://")):
                continue
            top = path.split("/")[0]
            in_span = block.language is None
            if top == "build" and "/" in path:
                if path.startswith("build/tests/") or path in ("build/qw", "build/libqw.a"):
                    report(None if built_from(path) else f"{block.where}: nothing builds {path}")
                continue
            names_file = path.endswith(SOURCE_ENDINGS) and len(os.path.basename(path)) > 3
            if not ((top in tops and "/" in path) or (in_span and names_file)):
                continue
            found = resolve(path, block.page)
            if report(None if found else f"{block.where}: {path} does not exist") or not name or not found.endswith(SOURCE_ENDINGS):
                continue
            defined = re.search(rf"^[^\n#;]*\b{name}\s*\(|^def {name}\b|^[^\n]*\b{name}\b\s*(?:=|\{{|\[)", code_text(found), re.M)
            report(None if defined else f"{block.where}: {found} has no {name}")
        for word in re.findall(r"\b(?:qw|QW)_\w*[A-Za-z0-9]\b", code):
            if not re.search(re.escape(word) + r"(?:[*<]|_\b|\.\.\.)", code):
                report(None if word in words() else f"{block.where}: {word} is in no source")
        call = re.fullmatch(r"([a-z_]\w+)\(\)", code)
        if call:
            report(None if call.group(1) in words() else f"{block.where}: {call.group(1)}() is in no source")


# ---- links ----------------------------------------------------------------------------------------


def anchors(page):
    text = re.sub(r"```.*?```", "", read(page), flags=re.S)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
            for title in re.findall(r"^#+ +(.+?)\s*$", text, re.M)}


def check_links(block, report):
    if block.language is not None:
        return
    for target in re.findall(r"\]\(([^)\s]+)\)", block.text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        full = os.path.normpath(os.path.join(os.path.dirname(block.page), path)) if path else block.page
        if report(None if exists(full) else f"{block.where}: the link {target} leads nowhere") or not anchor:
            continue
        report(None if anchor in anchors(full) else f"{block.where}: {full} has no heading for #{anchor}")


# ---- commands -------------------------------------------------------------------------------------


class Helps:
    """Options of every command of the program, from its own `--help`."""

    def __init__(self, qw):
        overview = self.output(qw, "--help")
        part = overview.split("Commands:\n")[1].split("\n\n")[0]
        self.commands = {name: self.options(self.output(qw, name, "--help")) for name in re.findall(r"^  (\w+)", part, re.M)}
        self.commands[""] = {"--help", "-h", "--version", "-V"}
        self.all = set().union(*self.commands.values())

    @staticmethod
    def output(*command):
        return subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout

    @staticmethod
    def options(text):
        part = text.split("Options:\n")[1].split("\n\n")[0]
        rows = re.findall(r"^  (?:(-\w)(?:, )?)? *(--[\w-]+)?", part, re.M)
        return {o for row in rows for o in row if o}


def shell_words(text):
    """Words of a command line; text that is no shell is cut at blanks."""
    try:
        return shlex.split(text, comments=True)
    except ValueError:
        return text.split()


def segments(code):
    """The simple commands of a line, as lists of words without variable assignments and redirections."""
    for part in re.split(r"\|\||&&|[|;]", code):
        parts = [w for w in shell_words(part.strip().removeprefix("$ ")) if w not in ("(", ")", "&")]
        while parts and re.match(r"[A-Z_]+=", parts[0]):
            parts.pop(0)
        if parts:
            yield parts


def named_programs(text):
    """Sources of the programs that a page names."""
    found = [resolve(p, "README.md") for p in re.findall(r"[\w/]+\.py\b", text)]
    if "checkasm" in text:
        found += ["tests/kernels/checkasm.c"]
    found += [p for p in (built_from("build/tests/" + name) for name in re.findall(r"\b\w+_tool\b", text))]
    return [p for p in found if p]


def option_known(option, block, helps):
    if option in helps.all or option in FOREIGN_OPTIONS:
        return True
    return any(option in read(path) for path in named_programs(read(block.page)))


def check_qw(parts, block, helps, report):
    """A command line of qw: the command exists, and it has these options."""
    command = parts[1] if len(parts) > 1 and not parts[1].startswith("-") else ""
    if is_placeholder(command):
        return
    if report(None if command in helps.commands else f"{block.where}: qw has no command {command}"):
        return
    for word in parts[1:]:
        option = word.split("=")[0] if word.startswith("--") else word
        if re.fullmatch(r"--[a-z][\w-]*|-[A-Za-z]", option):
            known = option in helps.commands[command]
            report(None if known else f"{block.where}: qw {command} has no option {option}")


def make_targets():
    return set(re.findall(r"^## ([\w-]+): ", read("Makefile"), re.M))


@functools.lru_cache(None)
def suites():
    """Names of the suites of tests/run.py."""
    unit = [os.path.basename(p)[:-2] for p in tree() if re.fullmatch(r"tests/unit/test_\w+\.c", p)]
    return unit + re.findall(r'^\s*\("([^"]+)", \[', read("tests/run.py"), re.M)


def check_commands(block, helps, report):
    for code in block.codes():
        whole_line = block.language in ("", "sh", "shell", "bash") or block.language is None
        if not whole_line:
            continue
        for parts in segments(code):
            if os.path.basename(parts[0]) == "qw" and len(parts) > 1:
                check_qw(parts, block, helps, report)
                continue
            if parts[0] == "make":
                for word in parts[1:]:
                    if re.fullmatch(r"[a-z][\w-]*", word):
                        report(None if word in make_targets() else f"{block.where}: the Makefile has no target {word}")
                    elif word.startswith("ONLY="):
                        report(None if any(word[5:] in s for s in suites()) else f"{block.where}: no suite is called {word[5:]}")
                continue
            for word in parts:
                option = word.split("=")[0].rstrip(",")
                if re.fullmatch(r"--[a-z][\w-]+|-[a-z]", option) and (block.language is None or os.path.exists(parts[0])):
                    report(None if option_known(option, block, helps) else f"{block.where}: no program named here has {option}")


# ---- examples -------------------------------------------------------------------------------------


def check_c_example(block, qw, report):
    """Compiles the README's program with the README's warnings, and lets it answer with a small model."""
    library = os.path.join(os.path.dirname(qw), "libqw.a")
    with tempfile.TemporaryDirectory() as folder:
        source, program = os.path.join(folder, "example.c"), os.path.join(folder, "example")
        with open(source, "w", encoding="utf-8") as file:
            file.write(block.text)
        libs = Helps.output("pkg-config", "--libs", "libutf8proc", "libcrypto", "jansson").split()
        made = subprocess.run(["cc", "-std=c17", "-Wall", "-Wextra", "-Werror", "-Iinclude", source, library, *libs, "-lpthread", "-lm",
                               "-o", program], cwd=ROOT, capture_output=True, text=True)
        if report(None if made.returncode == 0 else f"{block.where}: the example does not compile: {made.stderr[:600]}"):
            return
        ran = subprocess.run([program, TINY, "Hello"], cwd=ROOT, capture_output=True, env=dict(os.environ, QW_HOME=folder),
                             stdin=subprocess.DEVNULL, timeout=300)
        good = ran.returncode == 0 and ran.stdout and not ran.stderr
        report(None if good else f"{block.where}: the example ends with {ran.returncode}, {ran.stdout[:80]!r}, {ran.stderr[:200]!r}")


def check_examples(block, qw, report):
    if block.language == "c" and "int main" in block.text:
        check_c_example(block, qw, report)
    if block.language == "python":
        try:
            compile(block.text, block.where, "exec")
            report(None)
        except SyntaxError as bad:
            report(f"{block.where}: the Python example is no Python: {bad}")


def check_dependencies(report):
    """Every library that the Makefile asks pkg-config for has its reason in the README."""
    names = {"libcrypto": "OpenSSL", "libutf8proc": "utf8proc"}
    readme = read("README.md")
    for package in re.search(r"^DEPS\s*:=(.*)$", read("Makefile"), re.M).group(1).split():
        word = names.get(package, package.split("_")[0])
        report(None if word in readme else f"README.md: the library {package} ({word}) is linked and not explained")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--qw", required=True)
    args = parser.parse_args()
    qw = os.path.abspath(args.qw)
    os.chdir(ROOT)
    counts = [0, 0]

    def report(fault):
        """Counts one check; true when it failed."""
        counts[fault is not None] += 1
        if fault:
            print("FAIL", fault)
        return fault is not None

    layers.check(report)
    helps = Helps(qw)
    for page in pages():
        for block in blocks_of(page):
            check_paths(block, report)
            check_links(block, report)
            check_commands(block, helps, report)
            check_examples(block, qw, report)
            bad = FORBIDDEN.search(block.text)
            report(f"{block.where}: {bad.group(0)!r} has no place here" if bad else None)
    check_dependencies(report)
    print(f"{counts[0]} passed, {counts[1]} failed")
    sys.exit(1 if counts[1] else 0)


if __name__ == "__main__":
    main()
