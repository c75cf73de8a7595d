#!/usr/bin/env python3
"""A picture of results of bench/bench.py or bench/peers.py, as SVG.

Use:   bench/chart.py [--file build/bench/results.jsonl] [--out build/bench/results.svg] [--model NAME]... [--commit C]

Shows the last result of each model (of one commit with --commit; results of bench/peers.py have bars of both engines).
A bar is the median, the whisker goes from the smallest to the largest sample, the orange mark is what the machine
allowed at that time; for memory it is the size of the model file. Every test has a scale of its own.
"""

import argparse
import html
import os
import statistics

import common
import results

WIDTH, MARGIN = 900, 28
LABEL_END, ENGINE_END, VALUE_END, BAR_X, BAR_END, NOTE_X = 176, 248, 330, 344, 716, 732
BAR, BAR_GAP, ROW_GAP = 15, 4, 15
ENGINES = ["qw", "llama.cpp", "llama-bench", "ik-bench"]  # the order of bars and of colours c0, c1, ...
STYLE = """
  text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; font-size: 13px }
  text { fill: #1f2937 }
  .card { fill: #ffffff; stroke: #d8dee6 }
  .title { font-size: 17px; font-weight: 600 }
  .quiet { fill: #64707f; font-size: 12px }
  .strong { font-weight: 600 }
  .right { text-anchor: end }
  .track { fill: #f1f4f7 }
  .rule { stroke: #e3e8ee }
  .c0 { fill: #0e7c86 } .c1 { fill: #a3adba } .c2 { fill: #8592a3 } .c3 { fill: #c3cad3 }
  .whisker { stroke: #111827; stroke-width: 1.2; fill: none }
  .limit { stroke: #e07b00; stroke-width: 2.5 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e5e9ef }
    .card { fill: #14181f; stroke: #2c333d }
    .quiet { fill: #98a3b1 }
    .track { fill: #1e242d }
    .rule { stroke: #2a313b }
    .c0 { fill: #2bb3bd } .c1 { fill: #67727f } .c2 { fill: #7d8997 } .c3 { fill: #515b67 }
    .whisker { stroke: #f3f4f6 }
    .limit { stroke: #ff9d2e }
  }
"""


class Drawing:
    """Elements of the picture, and how far down it has come."""

    def __init__(self):
        self.parts, self.y = [], MARGIN

    def text(self, x, y, words, style=""):
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{style}">{html.escape(words)}</text>')

    def rect(self, x, y, width, height, style, radius=2):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" '
                          f'rx="{radius}" class="{style}"/>')

    def path(self, data, style):
        self.parts.append(f'<path d="{data}" class="{style}"/>')

    def whole(self):
        height = self.y + MARGIN - 24
        return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
                f'viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="Speed of qw">\n<style>{STYLE}</style>\n'
                f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:.0f}" rx="10" class="card"/>\n' +
                "\n".join(self.parts) + "\n</svg>\n")


def title_of(one):
    """A row's label, for people."""
    if one["kind"] == "start":
        return "Start to first token"
    if one["kind"] == "memory":
        return "Peak memory"
    if one["kind"] == "prefill":
        return f"Prefill, {one['n']} tokens" + (f" after {one['depth']}" if one["depth"] else "")
    text = "Decode" + (f" after {one['depth']} tokens" if one["depth"] else "")
    return text + (f", {one['streams']} streams" if one["streams"] > 1 else "")


def value_of(one):
    """A median with its unit, about three digits."""
    middle = statistics.median(one["values"])
    if one["unit"] == "s":
        return f"{1000 * middle:.0f} ms" if middle < 9.9995 else f"{middle:.1f} s"
    return f"{middle:.{0 if middle >= 100 else 1}f} {one['unit']}"


def mark_of(rows, file_bytes):
    """Where the limit mark stands, or None: of qw's samples, else of the first engine's."""
    if rows[0]["kind"] == "memory":
        return file_bytes / 1e6
    return statistics.median(rows[0]["limits"]) if rows[0].get("limits") else None


def notes_of(rows, file_bytes):
    """The words at the end of a row: ratio to the first peer, share of the limit."""
    notes, first = [], rows[0]
    middles = [statistics.median(one["values"]) for one in rows]
    if first["engine"] == "qw" and len(rows) > 1:
        ratio = middles[1] / middles[0] if first["kind"] in ("start", "memory") else middles[0] / middles[1]
        notes.append((f"{ratio:.2f}x" if ratio < 9.95 else f"{ratio:.0f}x", "strong"))
    if first["kind"] == "memory":
        notes.append((f"{1e6 * middles[0] / file_bytes:.2f}x the file", "quiet"))
    elif first.get("shares"):
        what = {"read": "bandwidth", "integer": "integer peak"}[first["bound"]]
        notes.append((f"{100 * statistics.median(first['shares']):.0f}% of {what}", "quiet"))
    return notes


def draw_bar(d, one, scale, y):
    """One engine's bar with its whisker."""
    middle, low, high = statistics.median(one["values"]), min(one["values"]), max(one["values"])
    centre = y + BAR / 2
    d.text(ENGINE_END, centre + 4.5, one["engine"], "quiet right")
    d.text(VALUE_END, centre + 4.5, value_of(one), "right" + (" strong" if one["engine"] == "qw" else ""))
    d.rect(BAR_X, y, BAR_END - BAR_X, BAR, "track")
    colour = ENGINES.index(one["engine"]) if one["engine"] in ENGINES else len(ENGINES) - 1
    d.rect(BAR_X, y, middle * scale, BAR, f"c{colour}")
    if high > low:
        a, b = BAR_X + low * scale, BAR_X + high * scale
        d.path(f"M{a:.1f} {centre - 4:.1f}v8M{a:.1f} {centre:.1f}H{b:.1f}M{b:.1f} {centre - 4:.1f}v8", "whisker")


def draw_test(d, rows, file_bytes):
    """All engines of one test."""
    mark = mark_of(rows, file_bytes)
    scale = (BAR_END - BAR_X - 6) / max([max(one["values"]) for one in rows] + ([mark] if mark else []))
    height = len(rows) * (BAR + BAR_GAP) - BAR_GAP
    d.text(MARGIN, d.y + BAR / 2 + 4.5, title_of(rows[0]))
    for i, one in enumerate(rows):
        draw_bar(d, one, scale, d.y + i * (BAR + BAR_GAP))
    if mark:
        d.path(f"M{BAR_X + mark * scale:.1f} {d.y - 3:.1f}V{d.y + height + 3:.1f}", "limit")
    notes = notes_of(rows, file_bytes)
    if len(rows) == 1 and len(notes) == 1:
        d.text(NOTE_X, d.y + BAR / 2 + 4.5, *notes[0])
    else:
        for i, (words, style) in enumerate(notes):
            d.text(NOTE_X, d.y + i * (BAR + BAR_GAP) + BAR / 2 + 4.5, words, style)
    d.y += height + ROW_GAP


def draw_legend(d, engines, limits):
    """What the colours and marks mean."""
    x = MARGIN
    for engine in engines:
        d.rect(x, d.y, 12, 12, f"c{ENGINES.index(engine) if engine in ENGINES else len(ENGINES) - 1}")
        d.text(x + 18, d.y + 10.5, engine, "quiet")
        x += 34 + 7 * len(engine)
    d.path(f"M{x + 1} {d.y + 2}v8M{x + 1} {d.y + 6}h16M{x + 17} {d.y + 2}v8", "whisker")
    d.text(x + 24, d.y + 10.5, "smallest to largest sample", "quiet")
    if limits:
        x += 196
        d.path(f"M{x} {d.y - 1}v14", "limit")
        d.text(x + 8, d.y + 10.5, "what the machine allows (for memory: the model file)", "quiet")
    d.y += 30


def draw_result(d, found):
    """One model: its title, and its tests."""
    model, facts = found["model"], found["machine"]
    d.y += 14
    d.text(MARGIN, d.y, model["name"], "title")
    d.y += 19
    peers = "".join(f"; {name} {about.split(',')[0]}" for name, about in found["peers"].items())
    d.text(MARGIN, d.y, f"{facts['cpu'].split(' (')[0]}, {found['threads']} threads; {found['date'][:10]}, "
           f"{found['commit']}{' with changes' if found['changed'] else ''}{peers}", "quiet")
    groups = {}
    for one in found["rows"]:
        groups.setdefault(one["test"], []).append(one)
    order = {name: i for i, name in enumerate(ENGINES)}
    for head, kinds in (("Longer is better", ("prefill", "decode")), ("Shorter is better", ("start", "memory"))):
        chosen = [rows for rows in groups.values() if rows[0]["kind"] in kinds]
        if not chosen:
            continue
        d.y += 24
        d.text(MARGIN, d.y, head, "quiet")
        d.path(f"M{MARGIN + 104} {d.y - 4}H{WIDTH - MARGIN}", "rule")
        d.y += 14
        for rows in chosen:
            draw_test(d, sorted(rows, key=lambda one: order.get(one["engine"], len(order))), model["bytes"])
    d.y += 10


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", default=results.RESULTS, help="the results")
    parser.add_argument("--out", default=os.path.splitext(results.RESULTS)[0] + ".svg", help="the picture")
    parser.add_argument("--model", action="append", help="only this model; may be repeated")
    parser.add_argument("--commit", default="", help="only results of this commit")
    options = parser.parse_args()
    chosen = {}
    for found in results.load(options.file):
        name = found["model"]["name"]
        if found["commit"].startswith(options.commit) and (not options.model or name in options.model):
            chosen[found["model"]["sha256"]] = found
    if not chosen:
        common.fail(f"{options.file}: no such results")
    records = sorted(chosen.values(), key=lambda found: found["model"]["bytes"])
    rows = [one for found in records for one in found["rows"]]
    d = Drawing()
    draw_legend(d, [name for name in ENGINES if any(one["engine"] == name for one in rows)],
                any("limits" in one or one["kind"] == "memory" for one in rows))
    for found in records:
        draw_result(d, found)
    with open(options.out, "w", encoding="utf-8") as file:
        file.write(d.whole())
    print(options.out)


if __name__ == "__main__":
    main()
