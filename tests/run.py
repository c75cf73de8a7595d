#!/usr/bin/env python3
"""Runs every test suite, one after the other, and adds up what they say.

    tests/run.py --build build [--san] [--isa LEVEL] [--only WORD] [--list]

A suite is a program that ends with `N passed, M failed` (optionally `, K skipped`) or a cmocka program. Its output is shown
when it fails; otherwise one line with its count and its time. The last line is the sum of all. A suite that ends without a
count, or with another exit code than its count asks for, is one failure; its lines that begin with `skipped:` are shown.
Suites that need the real 0.5B model get it from `qw pull`, which fetches it once into build/models.

Numbers are computed as this processor's instruction-set level does; the tests that compare bits run at each level below it
as well. With --isa everything computes at that level: the test programs by QW_TEST_ISA (tests/unit/isa_cap.h), and in place
of qw its double qw-isa.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = "tests/fixtures/tiny-q4km.gguf"
REAL = "qwen2.5-coder:0.5b"
WITH_MTP = ("qwen35-r1", "qwen35-r2", "qwen35moe-r2", "qwen35moe-r3", "qwen3next-r1", "qwen3next-r3")
SUITE_SECONDS_MAX = 1200


def levels(b):
    """Instruction-set levels of this machine, lowest first."""
    return re.findall(r"^(\w+) runs here$", subprocess.check_output([f"{b}/tests/checkasm", "--list"], text=True), re.M)


def at_level(b, python, level):
    """Suites that compare bits, at a level below this machine's."""
    def parity(script):
        return ["env", f"QW_TEST_ISA={level}", python, f"tests/parity/{script}.py", "--qw", f"{b}/tests/qw-isa"]

    rows = [
        (f"test_bits, {level}", [f"{b}/tests/test_bits", "--isa", level], False),
        (f"logits, {level}", parity("logits_small"), False),
        (f"families, {level}", parity("families"), False),
    ]
    if level != "ref":  # minutes there
        rows += [(f"test_forward, {level}", [f"{b}/tests/test_forward", "--isa", level], False)]
    return rows


def suites(b, python, model, isa):
    """(name, command, also under the sanitizers). A command that names the model comes last: it may have to fetch it."""
    unit = sorted(f for f in os.listdir(f"{b}/tests") if f.startswith("test_") and "." not in f)
    rows = [(name, [f"{b}/tests/{name}"], True) for name in unit]
    if isa:
        rows += [("checkasm", [f"{b}/tests/checkasm", "--level", isa], True)]
    else:
        rows += [
            ("checkasm", [f"{b}/tests/checkasm"], True),
            ("kernels, levels not here", [python, "tests/kernels/levels.py", "--build", b], False),
            ("kernels, aarch64", [python, "tests/kernels/levels.py", "--build", b, "--aarch64"], False),
        ]
        rows += [row for level in levels(b)[:-1] for row in at_level(b, python, level)]
    # The reference kernels take a second for each of its positions.
    positions = ["--positions", "32"] if isa == "ref" else []
    qw = f"{b}/tests/qw-isa" if isa else f"{b}/qw"
    rows += [
        ("layers and docs", [python, "tests/docs.py", "--qw", f"{b}/qw"], False),
        ("blocks parity", [python, "tests/parity/blocks.py", "--tool", f"{b}/tests/blocks_tool"], True),
        ("folders parity", [python, "tests/parity/folders.py", "--qw", qw], True),
        ("families", [python, "tests/parity/families.py", "--qw", qw, "--folders"], True),
        ("families, mutants", [python, "tests/parity/families.py", "--qw", qw, "--mutants"], False),
        ("quantize", [python, "tests/parity/quantize.py", "--qw", f"{b}/qw"], True),
        ("nvfp4 scales", [python, "tests/parity/nvfp4.py", "--qw", qw], True),
        ("divergence", [python, "tests/parity/divergence.py", "--qw", qw], True),
        ("multi-token prediction", [python, "tests/parity/mtp.py", "--qw", qw,
                                    *(f"build/families/{name}.gguf" for name in WITH_MTP)], False),
        ("simulation", [f"{b}/tests/sim/sim", "--seeds", "200"], True),
        ("simulation, killed", [f"{b}/tests/sim_models/sim_models", "--seeds", "60"], True),
        ("simulation, killed, hybrid", [f"{b}/tests/sim_models/sim_models", "--seeds", "30", "--model",
                                        "tests/fixtures/families/qwen35-r1"], True),
        ("broken files", [python, "tests/parity/broken.py", "--qw", qw], True),
        ("command, test double", [python, "tests/cli/cli.py", "--qw", f"{b}/tests/qw-fake", "--model", TINY, "--fake"], True),
        ("command", [python, "tests/cli/cli.py", "--qw", qw, "--model", TINY], True),
        ("bench tools", [python, "tests/bench/tools.py", "--limits", f"{b}/bench/limits"], False),
        ("models on disk", [python, "tests/cli/hub.py", "--qw", f"{b}/qw"], False),
        ("http rules", [python, "tests/clients/http_rules.py", "--qw", qw, "--model", TINY], True),
        ("http rules, test double", [python, "tests/clients/http_rules.py", "--qw", f"{b}/tests/qw-fake", "--model", TINY, "--fake"],
         True),
        ("answers", [python, "tests/clients/answers.py", "--qw", qw], True),
        ("openai client", [python, "tests/clients/openai_client.py", "--qw", qw, "--model", TINY], True),
        ("chat page", [python, "tests/web/page.py", "--qw", qw, "--model", TINY], False),
        ("old processor", [python, "tests/cli/old_cpu.py", "--qw", f"{b}/qw"], False),
        ("valgrind", [python, "tests/cli/memcheck.py", "--qw", f"{b}/qw", "--model", TINY], False),
        ("logits", [python, "tests/parity/logits_small.py", "--qw", qw, "--model", model, *positions], False),
        ("embed and rerank", [python, "tests/parity/pooled.py", "--qw", qw, "--model", model], False),
        ("tokenizer parity", [python, "tests/parity/tokenizer.py", "--tool", f"{b}/tests/tokenizer_tool", "--model", model], False),
        ("constrained output", [python, "tests/parity/grammar.py", "--tool", f"{b}/tests/grammar_tool", "--model", model], True),
        ("chat parity", [python, "tests/parity/chat.py", "--tool", f"{b}/tests/tokenizer_tool", "--model", model], False),
    ]
    return rows


def count(output):
    """(passed, failed, skipped) of a suite's output, or None."""
    plain = re.findall(r"^(\d+) passed, (\d+) failed(?:, (\d+) skipped)?$", output, re.M)
    if plain:
        return tuple(int(n or 0) for n in plain[-1])
    ran = re.search(r"^\[==========\] (\d+) test\(s\) run\.", output, re.M)
    if ran:
        failed = re.search(r"^\[  FAILED  \] (\d+) test\(s\)", output, re.M)
        n_failed = int(failed.group(1)) if failed else 0
        return int(ran.group(1)) - n_failed, n_failed, 0
    return None


def run(command, env):
    """Exit code and output of one suite."""
    try:
        done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=SUITE_SECONDS_MAX)
        return done.returncode, done.stdout.decode("utf-8", "replace")
    except subprocess.TimeoutExpired as late:
        return 1, (late.stdout or b"").decode("utf-8", "replace") + f"\nno end after {SUITE_SECONDS_MAX} s\n"
    except OSError as bad:
        return 1, f"{command[0]}: {bad}\n"


def fetch_model(build, env):
    """Path of the real model, fetched into a store below build/ on first use."""
    qw = f"{build}/qw"
    env = dict(env, QW_HOME=os.path.join(ROOT, "build", "models"))
    subprocess.run([qw, "pull", "--quiet", "--if-missing", REAL], env=env, check=True, stdin=subprocess.DEVNULL)
    return json.loads(subprocess.check_output([qw, "show", "--json", REAL], env=env))["path"]


def convert_families(python):
    """The tiny models of all families as GGUF files in build/families, for the test programs."""
    subprocess.run([python, "tests/parity/reference_convert.py", "--all", "build/families"], check=True,
                   stdin=subprocess.DEVNULL)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", default="build")
    parser.add_argument("--san", action="store_true", help="a sanitizer build: leave out what tests other programs' speed")
    parser.add_argument("--isa", help="an instruction-set level of this machine to compute at: ref, avx2, ...")
    parser.add_argument("--only", help="suites whose name holds this word")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    os.chdir(ROOT)
    # Nothing of the user's own store or caches is read or written.
    env = dict(os.environ, QW_HOME=os.path.join(ROOT, "build", "test-home"), LC_ALL="C.UTF-8")
    env.pop("HF_TOKEN", None)
    if args.isa:
        env["QW_TEST_ISA"] = args.isa
    python = subprocess.check_output([sys.executable, "scripts/venv.py", "test"], text=True).strip()
    model = "MODEL"
    if not args.list:
        convert_families(python)
        model = fetch_model(args.build, env)
    passed = failed = skipped = 0
    for name, command, sanitized in suites(args.build, python, model, args.isa):
        if (args.san and not sanitized) or (args.only and args.only not in name):
            continue
        if args.list:
            print(name, "::", " ".join(command))
            continue
        start = time.monotonic()
        code, output = run(command, env)
        numbers = count(output)
        if numbers is None or (code != 0) != (numbers[1] > 0):
            numbers = ((numbers or (0, 0, 0))[0], (numbers or (0, 0, 0))[1] + 1, 0)
            output += f"\n{name}: ended with exit code {code} and no count to match\n"
        passed, failed, skipped = passed + numbers[0], failed + numbers[1], skipped + numbers[2]
        shown = output.rstrip() if numbers[1] else "\n".join(re.findall(r"^skipped: .*", output, re.M))
        if shown:
            print(shown)
        print(f"{'FAIL' if numbers[1] else 'ok':4} {name}: {numbers[0]} passed, {numbers[1]} failed"
              f"{f', {numbers[2]} skipped' if numbers[2] else ''} ({time.monotonic() - start:.1f} s)", flush=True)
    if not args.list:
        print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    sys.exit(1 if failed or not (passed or args.list) else 0)


if __name__ == "__main__":
    main()
