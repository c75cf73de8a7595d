"""Results of measurements: one JSON object a line in a file that grows, and the table that people read.

A record is one measurement of one model: date, commit, machine, limits, model, and rows as common.measure() makes them.
Times are seconds, memory is MB, speeds are tokens a second.
"""

import datetime
import json
import os
import statistics

import common

RESULTS = os.path.join(common.ROOT, "build", "bench", "results.jsonl")


def record(program, model, threads, lines, rows, engines):
    """One measurement of one model, as it is written to the file of results."""
    work = next((engine.work for engine in engines if isinstance(engine, common.Qw)), None)
    common.add_shares(rows, work)
    return {"date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"), "program": program,
            **common.source(), "machine": common.machine(), "threads": threads, "limits": lines, "work": work,
            "model": {key: model[key] for key in ("name", "bytes", "sha256")},
            "peers": {engine.name: engine.about for engine in engines if getattr(engine, "about", None)}, "rows": rows}


def append(path, found):
    """Adds one record to a file of results."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(found, separators=(",", ":")) + "\n")


def load(path):
    """All records of a file of results, oldest first; fails with one line."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    except OSError as error:
        common.fail(f"{path}: {error.strerror} (bench/bench.py and bench/peers.py write it)")
    found = []
    for number, line in lines:
        try:
            one = json.loads(line)
            one["rows"], one["model"]["sha256"], one["commit"]
        except (ValueError, KeyError, TypeError):
            common.fail(f"{path}:{number}: not a result of bench/bench.py or bench/peers.py")
        found.append(one)
    if not found:
        common.fail(f"{path}: holds no results")
    return found


def print_limits(lines):
    """The readable form of Limits.measure()."""
    for line in lines:
        value, unit = (line["gb_per_s"], "GB/s") if line["limit"] == "read" else (line["gmac_per_s"], "GMAC/s")
        name = "read" if line["limit"] == "read" else line["limit"] + " products"
        print(f"limit      {name}, {line['threads']} thread{'s' if line['threads'] > 1 else ''}: {value:.1f} {unit}"
              f"  ({line['how']})")


def digits(found):
    """Digits after the point that a row's values deserve."""
    return {"s": 3, "MB": 0}.get(found["unit"], 1)


def print_head(found):
    """The machine, the model and the limits of a record."""
    facts, model, work = found["machine"], found["model"], found["work"]
    print(f"machine    {facts['cpu']}, {facts['cores']} cores, {facts['system']}, {found['date']}")
    print(f"features   {' '.join(facts['flags']) or 'unknown'}")
    print(f"source     {found['commit']}{', changed' if found['changed'] else ''}; {found['threads']} threads")
    print(f"model      {model['name']}, {model['bytes'] / 1e6:.1f} MB, SHA-256 {model['sha256'][:12]}")
    if work:
        print(f"           a step reads {work['weight_bytes'] / 1e6:.1f} MB of weights and "
              f"{work['kv_token_bytes'] / 1e3:.1f} kB for each position; a token takes "
              f"{work['layer_macs'] / 1e9:.3f} GMAC in layers, {work['head_macs'] / 1e9:.3f} in the head")
    for name, about in found["peers"].items():
        print(f"peer       {name}: {about}")
    print_limits(found["limits"])


def print_table(found):
    """The rows of a record: one line for each test and engine."""
    print(f"\n{'test':22} {'engine':11} {'median':>8} {'':4} {'min .. max':>19} {'n':>2} {'others':>6} "
          f"{'qw / it':>8}  share of the limit")
    own = {one["test"]: statistics.median(one["values"]) for one in found["rows"] if one["engine"] == "qw"}
    for one in found["rows"]:
        middle, places = statistics.median(one["values"]), digits(one)
        lower = one["kind"] in ("start", "memory")
        ratio, note = "", ""
        if one["engine"] != "qw" and one["test"] in own:
            mine = own[one["test"]]
            ratio = f"{(middle / mine) if lower else (mine / middle):.2f}x"
        if "shares" in one:
            note = f"{100 * statistics.median(one['shares']):.0f}% of {statistics.median(one['limits']):.1f} t/s ("
            note += (f"read {statistics.median(one['read_gb_per_s']):.1f} GB/s)" if one["bound"] == "read" else
                     f"integer {statistics.median(one['gmac_per_s']):.0f} GMAC/s)")
        if one["kind"] == "memory":
            note = f"{1e6 * middle / found['model']['bytes']:.2f}x the file"
        if lower and one["engine"] == "llama.cpp":
            note += ("; " if note else "") + "Python included"
        spread = f"{min(one['values']):.{places}f} .. {max(one['values']):.{places}f}"
        print(f"{one['test']:22} {one['engine']:11} {middle:8.{places}f} {one['unit']:4} {spread:>19} "
              f"{len(one['values']):2} {statistics.mean(one['others']):6.2f} {ratio:>8}  {note}".rstrip())
    print("t/s: tokens a second, of all streams together; others: cores that other processes kept busy; \"qw / it\" "
          "above 1:\nqw is better. A share is of what the machine allowed around that sample; their median is shown.")
