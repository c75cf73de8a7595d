#!/usr/bin/env python3
"""The program under valgrind: no error and no leak.

    memcheck.py --qw build/qw --model FILE.gguf

valgrind has no AVX-512: the program finds that out as on any processor without it. Prints one line per failure and
`N passed, M failed`.
"""
import argparse
import os
import subprocess
import sys
import tempfile

VALGRIND = ["valgrind", "--quiet", "--error-exitcode=99", "--leak-check=full", "--show-leak-kinds=definite,indirect,possible",
            "--errors-for-leak-kinds=definite,indirect,possible"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--qw", required=True)
    parser.add_argument("--model", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        cases = [
            ("run", ["run", "-m", args.model, "-n", "2", "-p", "hello"], b""),
            ("run without the side file", ["run", "-m", args.model, "-n", "2", "-p", "hello", "--no-pack-cache"], b""),
            ("run --exact --json", ["run", "-m", args.model, "-n", "2", "-p", "hello", "--exact", "--json", "--logprobs", "3"],
             b""),
            ("chat through a pipe", ["chat", "-m", args.model, "-n", "3"], b"one\ntwo\n"),
            ("tokenize", ["tokenize", "-m", args.model, "--json"], "a \u00e9 \u4e2d\n".encode() + b"\xff\x00"),
            ("logits", ["logits", "-m", args.model, "--tokens", "1,2,3", "-o", os.path.join(home, "out.npy")], b""),
            ("show", ["show", args.model], b""),
            ("list", ["list"], b""),
        ]
        passed = failed = 0
        for name, command, given in cases:
            env = dict(os.environ, QW_HOME=home)
            done = subprocess.run(VALGRIND + [args.qw] + command, input=given, env=env, capture_output=True)
            if done.returncode == 0:
                passed += 1
            else:
                failed += 1
                print(f"FAIL {name}: exit code {done.returncode}\n{done.stderr.decode('utf-8', 'replace')}")
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
