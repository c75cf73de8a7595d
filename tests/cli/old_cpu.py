#!/usr/bin/env python3
"""The program on a processor without AVX: an emulated Nehalem runs the same binary on the reference kernels.

    old_cpu.py --qw build/qw

The tiny models must give the same tokens as on this machine, and the same bits of logits. Prints one line per failure and `N passed, M failed`.
"""
import argparse
import os
import subprocess
import sys
import tempfile

EMULATOR = ["qemu-x86_64", "-cpu", "Nehalem"]
MODELS = ["tests/fixtures/tiny-q4km.gguf", "tests/fixtures/tiny-f32.gguf"]
TOKENS = ",".join(str(3 * i % 450) for i in range(24))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--qw", required=True)
    args = parser.parse_args()
    passed = failed = 0
    with tempfile.TemporaryDirectory() as home:
        env = dict(os.environ, QW_HOME=home)

        def output(prefix, *command):
            done = subprocess.run([*prefix, args.qw, *command], env=env, capture_output=True, stdin=subprocess.DEVNULL)
            return done.returncode, done.stdout, done.stderr

        def check(good, line):
            nonlocal passed, failed
            passed += bool(good)
            failed += not good
            if not good:
                print("FAIL", line)

        code, text, _ = output(EMULATOR, "version")
        check(code == 0 and b"qw" in text, f"version: exit code {code}, {text!r}")
        for model in MODELS:
            run = ["run", "-m", model, "-p", "hello", "-n", "8", "--greedy", "--json", "--logprobs", "0", "-t", "2"]
            here, there = output([], *run), output(EMULATOR, *run)
            check(there[0] == 0, f"{model}: exit code {there[0]}: {there[2].decode('utf-8', 'replace')}")
            cut = [o[1].split(b'"timings"')[0] for o in (here, there)]
            check(cut[0] and cut[0] == cut[1], f"{model}: another answer than on this machine: {cut}")
            files = [os.path.join(home, name) for name in ("here.npy", "there.npy")]
            for prefix, path in zip(([], EMULATOR), files):
                output(prefix, "logits", "-m", model, "--tokens", TOKENS, "-o", path)
            data = [open(path, "rb").read() if os.path.exists(path) else b"" for path in files]
            check(data[0] and data[0] == data[1], f"{model}: logits differ from this machine's bits")
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
