#!/usr/bin/env python3
"""Compares two results of bench/bench.py or bench/peers.py: did qw become faster or slower?

Use:   bench/compare.py [OLD NEW] [--file build/bench/results.jsonl] [--model NAME] [--fail-below R]

OLD and NEW are commits (the beginning is enough; the last result of each counts). Without them: the last two results of
each model that come from the same processor with the same number of threads. For each test that both have: the medians
and their spread, the ratio (above 1: better), and what to think of it:

  better, worse       the spreads do not overlap, those of the shares of the machine's limit neither
  machine changed     the spreads do not overlap, those of the shares do: the machine allowed more or less
  within the spread   nothing to see
  one sample          no spread is known

Exit code 0; with --fail-below R it is 1 when a test is worse and its ratio is below R.
"""

import argparse
import statistics
import sys

import common
import results


def key(found):
    """Results with the same key can be compared."""
    return found["model"]["sha256"], found["machine"]["cpu"], found["threads"]


def latest(records, commit):
    """The last result of a commit, for each key."""
    chosen = {key(found): found for found in records if found["commit"].startswith(commit)}
    if not chosen:
        common.fail(f"no result of commit {commit}")
    return chosen


def pairs(records, old, new):
    """(older, newer) for each key."""
    if old:
        before, after = latest(records, old), latest(records, new)
        return [(before[k], after[k]) for k in after if k in before]
    groups = {}
    for found in records:
        groups.setdefault(key(found), []).append(found)
    return [tuple(group[-2:]) for group in groups.values() if len(group) > 1]


def apart(a, b):
    """Whether the ranges of two lists do not overlap."""
    return max(a) < min(b) or max(b) < min(a)


def judge(old, new, ratio):
    """What to think of two rows of the same test."""
    if len(old["values"]) < 2 or len(new["values"]) < 2:
        return "one sample"
    if not apart(old["values"], new["values"]):
        return "within the spread"
    if "shares" in old and "shares" in new and not apart(old["shares"], new["shares"]):
        return "machine changed"
    return "better" if ratio > 1 else "worse"


def qw_rows(found):
    return {one["test"]: one for one in found["rows"] if one["engine"] == "qw"}


def shown(one):
    """Median and spread of a row."""
    places = results.digits(one)
    return (f"{statistics.median(one['values']):.{places}f} ({min(one['values']):.{places}f} .. "
            f"{max(one['values']):.{places}f})")


def compare(older, newer):
    """Prints one table. Returns [(ratio, verdict)]."""
    print(f"{newer['model']['name']}: {older['commit']}{'+' if older['changed'] else ''} of {older['date']} -> "
          f"{newer['commit']}{'+' if newer['changed'] else ''} of {newer['date']}")
    before, after, found = qw_rows(older), qw_rows(newer), []
    for name in [name for name in after if name in before]:
        old, new = before[name], after[name]
        ratio = statistics.median(new["values"]) / statistics.median(old["values"])
        if old["kind"] in ("start", "memory"):
            ratio = 1 / ratio
        verdict = judge(old, new, ratio)
        shares = ""
        if "shares" in old and "shares" in new:
            shares = f"{100 * statistics.median(old['shares']):.0f}% -> {100 * statistics.median(new['shares']):.0f}%"
        print(f"  {name:22} {shown(old):>26} -> {shown(new):>26} {new['unit']:4} {ratio:6.3f}x  {shares:12}  {verdict}")
        found.append((ratio, verdict))
    print("  (+: with changes that were not committed; percentages are shares of the machine's limit)")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs="*", metavar="COMMIT", help="OLD and NEW, or nothing")
    parser.add_argument("--file", default=results.RESULTS, help="the results")
    parser.add_argument("--model", help="only this model")
    parser.add_argument("--fail-below", type=float, metavar="R",
                        help="exit code 1 when a test is worse than this ratio")
    options = parser.parse_args()
    if len(options.commits) not in (0, 2):
        parser.error("give two commits, or none")
    records = [found for found in results.load(options.file) if options.model in (None, found["model"]["name"])]
    chosen = pairs(records, *(options.commits or (None, None)))
    if not chosen:
        common.fail("there are no two results of one model, one processor and one number of threads")
    found = [one for pair in chosen for one in compare(*pair)]
    limit = options.fail_below or 0
    below = [ratio for ratio, verdict in found if verdict == "worse" and ratio < limit]
    if below:
        print(f"{len(below)} test{'s' if len(below) > 1 else ''} below {limit:g}x, the lowest {min(below):.3f}x")
    sys.exit(1 if below else 0)


if __name__ == "__main__":
    main()
