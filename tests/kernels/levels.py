#!/usr/bin/env python3
"""The kernels of the instruction-set levels that this machine does not have, under an emulator.

    levels.py --build build             levels of this processor family that this processor lacks
    levels.py --build build --aarch64   AArch64: cross-compiled here, each level under qemu-aarch64

Every level is run: here (suite checkasm), or here under qemu with `checkasm --quick`. What qemu does not know either is
said in a line that begins with `skipped:`. Prints one line per failure and `N passed, M failed`, with `, K skipped` if so.
"""
import argparse
import concurrent.futures
import os
import platform
import re
import shutil
import subprocess
import sys

CROSS_CC = "aarch64-linux-gnu-gcc"
QEMU = {"x86_64": ["qemu-x86_64", "-cpu", "max"], "aarch64": ["qemu-aarch64", "-cpu", "max"]}
# Processors that qemu plays, and the highest level that must be found on them.
AARCH64_CPUS = {"cortex-a72": "neon", "neoverse-n1": "dotprod", "max": "i8mm"}


class Count:
    """Passed, failed and skipped checks."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def check(self, good, line):
        self.passed += bool(good)
        self.failed += not good
        if not good:
            print("FAIL", line, flush=True)

    def skip(self, line):
        self.skipped += 1
        print("skipped:", line, flush=True)


def run(command):
    """Exit code and output."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def levels(command):
    """Levels that a checkasm has, lowest first, and those of them that run where it was asked."""
    code, text = run([*command, "--list"])
    rows = re.findall(r"^(\w+) (runs|does not run) here$", text, re.M)
    if code != 0 or not rows:
        sys.exit(f"levels: {' '.join(command)} --list: exit code {code}: {text}")
    return [name for name, _ in rows], [name for name, how in rows if how == "runs"]


def run_level(command, level):
    return level, *run([*command, "--quick", "--level", level])


def run_levels(count, command, names):
    """Some levels of a checkasm, several at a time."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for level, code, text in pool.map(lambda name: run_level(command, name), names):
            total = re.search(r"^(\d+) passed, (\d+) failed$", text, re.M)
            if total and (code != 0) == (int(total.group(2)) > 0):
                count.passed += int(total.group(1))
                count.failed += int(total.group(2))
                print(text if code else f"{level}: {total.group(0)}", flush=True)
            else:
                count.check(False, f"{level}: exit code {code} under {command[0]}: {text}")


def check_native(count, build):
    """What this processor lacks of its own family's levels."""
    program = [f"{build}/tests/checkasm"]
    known, here = levels(program)
    missing = [name for name in known if name not in here]
    count.check(known[0] == "ref" and here == known[:len(here)], f"levels {known}, here {here}")
    emulator = QEMU.get(platform.machine())
    if not missing or not emulator:
        print(f"levels here: {', '.join(here)}; they are checked by the suite checkasm", flush=True)
        return
    emulated = levels(emulator + program)[1] if shutil.which(emulator[0]) else here
    run_levels(count, emulator + program, [name for name in missing if name in emulated])
    for name in missing:
        if name not in emulated:
            count.skip(f"{name}: compiled, not run: this processor has no {name} and {emulator[0]} does not know it")


def check_aarch64(count, build):
    """All levels of the other family."""
    if platform.machine() == "aarch64":
        print("this machine is AArch64: its levels are checked by the suite checkasm", flush=True)
        count.check(True, "")
        return
    for tool in (CROSS_CC, QEMU["aarch64"][0]):
        if not shutil.which(tool):
            count.skip(f"AArch64: neither compiled nor run: no {tool} here (scripts/setup test installs it on Debian)")
            return
    code, text = run(["make", "-s", f"-j{os.cpu_count()}", f"BUILD={build}", "CFLAGS=-Werror", "checkasm-aarch64"])
    count.check(code == 0, f"cross-compiling for AArch64: exit code {code}: {text}")
    if code != 0:
        return
    program = [f"{build}/aarch64/tests/checkasm"]
    for cpu, top in AARCH64_CPUS.items():
        known, there = levels([QEMU["aarch64"][0], "-cpu", cpu, *program])
        count.check(there and there[-1] == top, f"on {cpu}: found {there} of {known}, and {top} should be the highest")
    known, there = levels(QEMU["aarch64"] + program)
    run_levels(count, QEMU["aarch64"] + program, known)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", required=True)
    parser.add_argument("--aarch64", action="store_true")
    args = parser.parse_args()
    count = Count()
    (check_aarch64 if args.aarch64 else check_native)(count, args.build)
    print(f"{count.passed} passed, {count.failed} failed" + (f", {count.skipped} skipped" if count.skipped else ""))
    sys.exit(1 if count.failed else 0)


if __name__ == "__main__":
    main()
