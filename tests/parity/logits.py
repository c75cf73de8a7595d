#!/usr/bin/env python3
"""The full logits check on a real model: qw and llama.cpp against transformers float32, over 4,096 positions.

Use:   python3 tests/parity/logits.py --qw build/qw --model FILE.gguf [--positions N] [--tokens FILE] [--threads 2]

Compares, position by position over the whole vocabulary:
  qw logits --exact   largest absolute difference to the reference, at most 5e-4
  qw logits           mean KL(reference || qw) and share of equal best tokens, no worse than llama.cpp's
The reference (tests/parity/reference.py) and llama.cpp's distances are kept below build/parity and reused while model
file and tokens stay the same. Needs about 8 GB of disk and 6 GB of memory; without the cache, tens of minutes on two
cores. --positions below 4096 is for a quick look. The last line is the verdict; exit code 0 for PASS, 1 for FAIL.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time

import common

LIMIT_EXACT = 5e-4


def produce(script, environment, model, tokens_path, out, threads):
    """Runs a script that writes an array, unless the array is there already."""
    if os.path.exists(out):
        return
    common.say(f"running {script} (this takes minutes)")
    begin = time.monotonic()
    python = common.venv_python(environment)
    run = subprocess.run([python, os.path.join(os.path.dirname(os.path.abspath(__file__)), script), "--model", model,
                          "--tokens", tokens_path, "--out", out, "--threads", str(threads)])
    if run.returncode != 0:
        common.fail(f"{script} ended with exit code {run.returncode}")
    common.say(f"{script} took {time.monotonic() - begin:.0f} s")


def summary(result):
    """Small, storable numbers of one comparison."""
    import numpy
    kl = result["kl"]
    return {"max_abs": result["max_abs"], "position": int(result["where"][0]), "id": int(result["where"][1]),
            "mean_abs": result["mean_abs"], "kl_mean": float(kl.mean()), "kl_median": float(numpy.median(kl)),
            "kl_p99": float(numpy.quantile(kl, 0.99)), "kl_max": float(kl.max()),
            "top1": float(result["same_top"].mean())}


def show(label, s):
    """One line a comparison."""
    print(f"{label:14} max |d| {s['max_abs']:.3e} (position {s['position']}, id {s['id']}), "
          f"mean |d| {s['mean_abs']:.3e}; KL mean {s['kl_mean']:.3e} median {s['kl_median']:.3e} "
          f"p99 {s['kl_p99']:.3e} max {s['kl_max']:.3e}; top-1 {100 * s['top1']:.2f}%", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--qw", default=os.path.join(common.ROOT, "build", "qw"), help="the program under test")
    parser.add_argument("--model", required=True, help="GGUF file of the qwen2 family, or an installed name")
    parser.add_argument("--tokens", default=os.path.join(common.FIXTURES, "coder05b.tokens.npy"), help="token ids")
    parser.add_argument("--positions", type=int, default=4096, metavar="N")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="keep the large arrays of qw and llama.cpp")
    options = parser.parse_args()
    common.check_program(options.qw)
    common.enter("test")
    import numpy
    called = os.path.basename(options.model)
    options.model = common.model_path(options.qw, options.model)
    tokens = common.read_tokens(options.tokens)[:options.positions]
    if len(tokens) < options.positions:
        common.fail(f"{options.tokens} has {len(tokens)} tokens, {options.positions} wanted")

    folder = os.path.join(common.WORK, common.file_key(options.model, tokens))
    os.makedirs(folder, exist_ok=True)
    room, want = shutil.disk_usage(folder).free, len(tokens) * 160000 * 4 * 2
    if room < want:
        common.fail(f"{folder}: {want >> 20} MiB of free disk needed, {room >> 20} MiB there")
    tokens_path = os.path.join(folder, "tokens.txt")
    common.write_tokens(tokens_path, tokens)
    print(f"model {called}, tokens {os.path.basename(options.tokens)}, "
          f"{len(tokens)} positions", flush=True)

    reference_path = os.path.join(folder, "reference.npy")
    produce("reference.py", "oracle", options.model, tokens_path, reference_path, options.threads)
    reference = numpy.load(reference_path, mmap_mode="r")
    loss = [0.0]
    for begin in range(0, len(tokens) - 1, 64):
        rows = common.log_softmax(reference[begin:min(begin + 64, len(tokens) - 1)])
        loss += [-rows[i, tokens[begin + i + 1]] for i in range(len(rows))]
    print(f"reference      perplexity of the text {numpy.exp(sum(loss) / (len(loss) - 1)):.3f}", flush=True)

    results = {}
    llama_path = os.path.join(folder, "llama.json")
    if not os.path.exists(llama_path):
        array_path = os.path.join(folder, "llama.npy")
        produce("llama_logits.py", "peer", options.model, tokens_path, array_path, options.threads)
        results["llama"] = summary(common.distances(reference, numpy.load(array_path, mmap_mode="r")))
        with open(llama_path + ".new", "w") as file:
            json.dump(results["llama"], file, indent=1)
        os.rename(llama_path + ".new", llama_path)
        if not options.keep:
            os.unlink(array_path)
    with open(llama_path) as file:
        results["llama"] = json.load(file)
    show("llama.cpp", results["llama"])

    for name, label, exact in (("exact", "qw --exact", True), ("fast", "qw", False)):
        array_path = os.path.join(folder, f"qw-{name}.npy")
        begin = time.monotonic()
        array = common.run_qw(options.qw, options.model, tokens_path, len(tokens), array_path, options.threads, exact)
        common.say(f"{label}: {time.monotonic() - begin:.0f} s")
        if array is not None and array.shape[1] != reference.shape[1]:
            common.say(f"{label}: {array.shape[1]} columns, the reference has {reference.shape[1]}")
            array = None
        if array is None:
            print(f"parity: {label} gave no logits: FAIL")
            sys.exit(1)
        results[name] = summary(common.distances(reference, array))
        show(label, results[name])
        del array
        if not options.keep:
            os.unlink(array_path)

    exact, fast, llama = results["exact"], results["fast"], results["llama"]
    good = (exact["max_abs"] <= LIMIT_EXACT and fast["kl_mean"] <= llama["kl_mean"] and fast["top1"] >= llama["top1"])
    print(f"parity: exact max |d| = {exact['max_abs']:.2e} (limit 5e-4), KL qw {fast['kl_mean']:.3e} vs llama.cpp "
          f"{llama['kl_mean']:.3e}, top-1 qw {100 * fast['top1']:.2f}% vs llama.cpp {100 * llama['top1']:.2f}%: "
          f"{'PASS' if good else 'FAIL'}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
