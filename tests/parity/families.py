#!/usr/bin/env python3
"""Logits of every family of Qwen text models against transformers, on the tiny models of tests/fixtures/families.

Use:   python3 tests/parity/families.py --qw build/qw [--only WORD] [--mutants] [--folders]

1. Each folder, converted by reference_convert.py: `qw logits --exact` within 1e-3 of transformers' float32 at every position
   (logits reach 15); default mode within what its arithmetic may cost, as median KL and equal best tokens.
   Of models that have one, a prompt of 1000 tokens at the positions that make_families.py kept.
2. The same in Q8_0 where rows allow it: default mode against --exact on the same file. It runs what dense BF16 does not: packed
   weights and experts of them.
3. --mutants, in place of 1 and 2: each model broken on purpose, in every way of family_mutants.py that changes its file, must
   be beyond 0.03.
4. --folders, as well: qw reads the folder itself, and `qw convert` makes the same keys and tensors as reference_convert.py.

Runs in the "test" environment (made on first use). Prints one line a check and ends with "N passed, M failed"; exit code 0
when nothing failed. make_families.py beside this file made the folders.
"""

import argparse
import concurrent.futures
import os
import subprocess
import sys
import tempfile

import common
import make_families
import reference_convert
from logits_small import Count

LIMIT = 1e-3
MUTANT_MIN = 0.03
KL_MAX, TOP1_MIN = 1e-4, 0.98
# 8-bit weights alone cost up to 1e-2 and 86 % on these models: a row's other expert is chosen here and there.
KL_MAX_Q8, TOP1_MIN_Q8 = 2e-2, 0.85


class Bench:
    """The engine under test, on one thread for each of several models at once."""

    def __init__(self, qw, folder):
        self.qw, self.folder = qw, folder

    def logits(self, model, tokens, label, exact=True):
        """The array of `qw logits`, or None after one line."""
        listed = os.path.join(self.folder, label + ".txt")
        common.write_tokens(listed, tokens)
        return common.run_qw(self.qw, model, listed, len(tokens), os.path.join(self.folder, label + ".npy"), 1, exact)

    def of_model(self, model, tokens, label, exact=True):
        """The same of a Model of reference_convert.py."""
        path = os.path.join(self.folder, label + ".gguf")
        reference_convert.write(model, path)
        array = self.logits(path, tokens, label, exact)
        os.unlink(path)
        return array


def near(count, what, want, have):
    """One check against the reference at every position."""
    if have is None or have.shape != want.shape:
        return count.check(False, f"{what}: no logits of the right shape")
    d = common.distances(want, have, want_kl=False)
    return count.check(d["max_abs"] <= LIMIT, f"{what}: max |d| {d['max_abs']:.2e} at position {d['where'][0]} id "
                       f"{d['where'][1]} (limit {LIMIT:.0e})")


def alike(count, what, want, have, kl_max, top1_min):
    """One check of two distributions."""
    import numpy
    if want is None or have is None or have.shape != want.shape:
        return count.check(False, f"{what}: no logits of the right shape")
    d = common.distances(want, have)
    kl, top = float(numpy.median(d["kl"])), float(d["same_top"].mean())
    return count.check(kl <= kl_max and top >= top1_min, f"{what}: median KL {kl:.2e} (limit {kl_max:.0e}), top-1 "
                       f"{100 * top:.1f}% (limit {100 * top1_min:.0f}%), max |d| {d['max_abs']:.2e}")


def check_mutants(count, bench, name, folder, tokens, want):
    """Every mutant that changes this model's file must be noticed."""
    import family_mutants

    def run(mutant):
        model = reference_convert.convert(folder)
        before = model.fingerprint()
        family_mutants.MUTANTS[mutant](model)
        if model.fingerprint() == before:
            return mutant, None
        have = bench.of_model(model, tokens, f"{name}-{mutant}".replace(" ", "-"))
        if have is None or have.shape != want.shape:
            return mutant, 0.0
        return mutant, common.distances(want, have, want_kl=False)["max_abs"]

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        gaps = [(gap, mutant) for mutant, gap in pool.map(run, family_mutants.MUTANTS) if gap is not None]
    for gap, mutant in gaps:
        if not gap >= MUTANT_MIN:
            count.check(False, f"{name}, broken in {mutant}: max |d| {gap:.2e}, want at least {MUTANT_MIN}")
    smallest = min(gaps)
    count.passed += sum(gap >= MUTANT_MIN for gap, _ in gaps)
    print(f"     {name}: {len(gaps)} mutants, the least noticed {smallest[1]}: max |d| {smallest[0]:.2g}", flush=True)
    return {mutant for _, mutant in gaps}


def check_folder(count, bench, name, folder, tokens, want):
    """qw on the folder as it is, and on what `qw convert` makes of it."""
    near(count, f"{name}, folder", want, bench.logits(folder, tokens, name + "-folder"))
    path = os.path.join(bench.folder, name + "-qw.gguf")
    run = subprocess.run([*bench.qw.split(), "convert", folder, path], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                         stderr=subprocess.PIPE, text=True)
    if run.returncode != 0:
        count.check(False, f"{name}: qw convert: {run.stderr.strip()}")
        return
    near(count, f"{name}, qw convert", want, bench.logits(path, tokens, name + "-qw"))
    differences = reference_convert.compare(reference_convert.convert(folder), path)
    count.check(not differences, f"{name}: qw convert against the reference: {'; '.join(differences[:5]) or 'the same'}")


def check_depth(count, bench, name, path):
    """`qw bench` at a depth: a recurrent state, which cannot be rewound, is computed again for each run."""
    run = subprocess.run([*bench.qw.split(), "bench", "-m", path, "-p", "8", "-n", "4", "-d", "8", "-r", "2", "-t", "1",
                          "--no-pack-cache", "--json"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
    count.check(run.returncode == 0 and run.stdout.count('"depth":8') == 2, f"{name}: bench at a depth{run.stderr.rstrip()}")


def check_long(count, bench, name, folder):
    """The long prompt of models that have one."""
    import numpy
    if name not in make_families.LONG_NAMES:
        return
    tokens = common.read_tokens(os.path.join(folder, "long.tokens.json"))
    have = bench.of_model(reference_convert.convert(folder), tokens, name + "-long")
    near(count, f"{name} --exact, {len(tokens)} tokens", numpy.load(os.path.join(folder, "long.logits.npy")),
         None if have is None else have[list(make_families.LONG_POSITIONS)])


def check_model(count, bench, name, folder, tokens, want):
    """All checks of one folder but for the mutants."""
    model = reference_convert.convert(folder)
    near(count, f"{name} --exact", want, bench.of_model(model, tokens, name))
    alike(count, name, want, bench.of_model(model, tokens, name, exact=False), KL_MAX, TOP1_MIN)
    model.quantize("Q8_0")
    path = os.path.join(bench.folder, name + "-q8.gguf")
    reference_convert.write(model, path)
    alike(count, f"{name}, Q8_0", bench.logits(path, tokens, name + "-q8-exact"),
          bench.logits(path, tokens, name + "-q8", exact=False), KL_MAX_Q8, TOP1_MIN_Q8)
    check_depth(count, bench, name, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--qw", required=True)
    parser.add_argument("--only", default="", help="folders whose name holds this word")
    parser.add_argument("--mutants", action="store_true")
    parser.add_argument("--folders", action="store_true")
    options = parser.parse_args()
    common.enter("test")
    common.check_program(options.qw)
    import numpy
    import family_mutants
    count = Count()
    bitten = set()
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(options.qw, work)
        for name in [name for name in reference_convert.family_folders() if options.only in name]:
            folder = os.path.join(reference_convert.FAMILIES, name)
            case = (count, bench, name, folder, common.read_tokens(os.path.join(folder, "tokens.json")),
                    numpy.load(os.path.join(folder, "logits.npy")))
            if options.mutants:
                bitten |= check_mutants(*case)
            else:
                check_model(*case)
                check_long(*case[:4])
            if options.folders:
                check_folder(*case)
    if options.mutants and not options.only:
        unused = sorted(set(family_mutants.MUTANTS) - bitten)
        count.check(not unused, f"every mutant breaks some model{': not ' + ', '.join(unused) if unused else ''}")
    print(f"{count.passed} passed, {count.failed} failed")
    sys.exit(1 if count.failed or not count.passed else 0)


if __name__ == "__main__":
    main()
