#!/usr/bin/env python3
"""Answers that think and call tools, end to end: what the `openai` package, a pipe and a terminal get of them.

    answers.py --qw build/qw

The models are made here and say what they are told to (script_model.py), so every byte that has to come is known. Needs the
packages openai, gguf, numpy and pexpect. Prints one line per failure and `N passed, M failed`.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time

import openai
import pexpect

import script_model
from service import TIMEOUT_S, Service, Suite

THOUGHT = "Let me look. The place is Rome,\n\nthe days are two."
SAID = "I will ask about 北京."
CALLS = [("weather", '{"place": "Rom", "days": 2}'), ("clock", "{}")]
PLAIN = "Rome is sunny, no need to think."
HALF = '<tool_call>\n{"name": "weather", "arguments": {"place": "Ro'
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Weather of a place", "parameters": {
    "type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "integer"}}, "required": ["place"]}}},
    {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}]

JSON_CALLS = "\n".join(f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
                       for name, arguments in CALLS)
XML_CALL = "<tool_call>\n<function=weather>\n<parameter=place>\nRom\n</parameter>\n<parameter=days>\n2\n</parameter>\n" \
           "</function>\n</tool_call>"
SCRIPTS = {  # name: format, what follows one line break (thinking), and two (no thinking)
    "qwen3": ("qwen3", f"<think>\n{THOUGHT}\n</think>\n\n{SAID}\n{JSON_CALLS}", PLAIN),
    "qwen3.5": ("qwen3.5", f"{THOUGHT}\n</think>\n\n{XML_CALL}", PLAIN),
    "broken": ("qwen2.5", HALF, PLAIN),
    "lost": ("qwen3.5", "I think and think", PLAIN),
}


class Chat:
    def __init__(self, service):
        self.service = service
        self.client = openai.OpenAI(base_url=service.url + "/v1", api_key="none", max_retries=0, timeout=TIMEOUT_S)

    def ask(self, messages=None, **more):
        messages = messages or [{"role": "user", "content": "What is the weather?"}]
        return self.client.chat.completions.create(model="default", messages=messages, **more)

    def warnings(self):
        return self.service.health()["since_start"]["warnings"]


def gather(s, chunks):
    """What a client puts together of a stream: (thinking, content, calls, finish reason)."""
    thinking = content = ""
    calls, finish = [], None
    for chunk in chunks:
        if not chunk.choices:
            continue
        choice = chunk.choices[0]
        extra = choice.delta.model_extra or {}
        if extra.get("reasoning_content") != extra.get("reasoning"):
            s.check(False, "both names of the thinking say the same", extra)
        thinking += extra.get("reasoning_content") or ""
        content += choice.delta.content or ""
        for call in choice.delta.tool_calls or []:
            if call.index == len(calls):
                s.check(re.fullmatch(r"call_[0-9a-f]{24}", call.id) and call.type == "function" and call.function.name and
                        call.function.arguments == "", "the first chunk of a call", call)
                calls.append([call.function.name, "", call.id])
            else:
                s.check(call.index == len(calls) - 1 and call.id is None and call.function.name is None and
                        call.function.arguments, "a piece of the newest call", call)
                calls[call.index][1] += call.function.arguments
        finish = choice.finish_reason or finish
    return thinking, content, calls, finish


def test_whole(s, chat):
    r = chat.ask(tools=TOOLS)
    m, usage = r.choices[0].message, r.usage
    s.equal(m.model_extra.get("reasoning_content"), THOUGHT, "reasoning_content")
    s.equal(m.model_extra.get("reasoning"), THOUGHT, "reasoning")
    s.equal(m.content, SAID, "content beside calls")
    s.equal([(c.function.name, c.function.arguments) for c in m.tool_calls], CALLS, "calls")
    s.check(all(re.fullmatch(r"call_[0-9a-f]{24}", c.id) and c.type == "function" for c in m.tool_calls) and
            len({c.id for c in m.tool_calls}) == 2, "ids of calls", m.tool_calls)
    s.equal(r.choices[0].finish_reason, "tool_calls", "finish_reason")
    n = usage.completion_tokens_details.reasoning_tokens
    s.check(len(THOUGHT) / 8 < n < usage.completion_tokens / 2, "reasoning_tokens", usage)
    again = chat.ask(tools=TOOLS, temperature=1.5, seed=4)
    s.equal(again.choices[0].message.tool_calls[0].function.arguments, CALLS[0][1], "the script is said at any temperature")
    s.check(again.choices[0].message.tool_calls[0].id != m.tool_calls[0].id, "ids differ between answers")


def test_stream(s, chat):
    chunks = list(chat.ask(tools=TOOLS, stream=True, stream_options={"include_usage": True}))
    thinking, content, calls, finish = gather(s, chunks)
    s.equal((thinking, content, [tuple(c[:2]) for c in calls], finish), (THOUGHT, SAID, CALLS, "tool_calls"), "a stream")
    kinds = ["thinking" if "reasoning" in (d.model_extra or {}) else "calls" if d.tool_calls else "text" if d.content else ""
             for d in (c.choices[0].delta for c in chunks if c.choices)]
    s.equal(sorted(set(kinds) - {""}, key=kinds.index), ["thinking", "text", "calls"], "they come in this order")
    s.check(kinds.count("thinking") > 3 and kinds.count("calls") > 6, "all of it comes in pieces", kinds)
    s.check(chunks[-1].usage.completion_tokens_details.reasoning_tokens > 0, "reasoning_tokens of a stream", chunks[-1])
    with chat.client.chat.completions.stream(model="default", tools=TOOLS,
                                             messages=[{"role": "user", "content": "?"}]) as stream:
        last = stream.get_final_completion().choices[0]
    s.equal([(c.function.name, c.function.arguments) for c in last.message.tool_calls], CALLS, "the package's own helper")
    s.equal(last.message.content, SAID, "content by the package's own helper")


def test_choices(s, chat):
    """Without tools, with one call at most, and what cannot be obeyed."""
    for what, more in (("no tools", {}), ("tool_choice none", {"tools": TOOLS, "tool_choice": "none"})):
        c = chat.ask(**more).choices[0]
        s.equal((c.message.content, c.message.tool_calls, c.finish_reason), (f"{SAID}\n{JSON_CALLS}", None, "stop"), what)
    r = chat.ask(tools=TOOLS, parallel_tool_calls=False)
    s.equal([c.function.name for c in r.choices[0].message.tool_calls], ["weather"], "parallel_tool_calls: false")
    s.equal(r.choices[0].finish_reason, "tool_calls", "finish_reason of one call")
    _, _, calls, finish = gather(s, chat.ask(tools=TOOLS, parallel_tool_calls=False, stream=True))
    s.equal(([c[0] for c in calls], finish), (["weather"], "tool_calls"), "the same in a stream")
    s.equal(len(chat.ask(tools=TOOLS, parallel_tool_calls=True).choices[0].message.tool_calls), 2, "and true")
    # Without thinking: a form wants its tags as tokens, and this model spells them.
    r = chat.ask(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "weather"}},
                 extra_body={"enable_thinking": False})
    s.equal((r.choices[0].message.tool_calls[0].function.name, r.choices[0].message.content), ("weather", None),
            "tool_choice by name begins with its call")
    try:
        chat.ask(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "nothing"}})
        s.check(False, "tool_choice of no tool", "no error")
    except openai.BadRequestError as error:
        s.check("nothing" in str(error), "tool_choice of no tool", error)


def test_switch(s, chat):
    for extra in ({"enable_thinking": False}, {"chat_template_kwargs": {"enable_thinking": False}},
                  {"reasoning_effort": "none"}):
        r = chat.ask(extra_body=extra)
        m = r.choices[0].message
        s.equal((m.content, m.model_extra.get("reasoning_content"),
                 r.usage.completion_tokens_details.reasoning_tokens), (PLAIN, None, 0), f"no thinking: {extra}")
    s.equal(chat.ask(extra_body={"enable_thinking": True}).choices[0].message.model_extra["reasoning"], THOUGHT, "thinking on")


def test_limits(s, chat):
    """An answer that is cut in its thinking, or in a call."""
    r = chat.ask(tools=TOOLS, max_tokens=8)
    m = r.choices[0].message
    s.check(THOUGHT.startswith(m.model_extra["reasoning_content"]) and m.content == "" and m.tool_calls is None and
            r.choices[0].finish_reason == "length", "cut in the thinking", r)
    s.equal(r.usage.completion_tokens_details.reasoning_tokens, 6, "its tokens, from the one that made <think> whole")
    c = chat.ask(tools=TOOLS, stop=['"days"']).choices[0]
    s.equal([(x.function.name, x.function.arguments) for x in c.message.tool_calls], [("weather", '{"place": "Rom", ')],
            "a stop string in the arguments")
    s.equal(c.finish_reason, "stop", "a call that broke off is no reason to call")
    c = chat.ask(stop=["</think>"]).choices[0]
    s.equal((c.message.model_extra["reasoning_content"], c.message.content), (THOUGHT + "\n", ""), "a tag as stop string")


def test_logprobs(s, chat, script):
    r = chat.ask(tools=TOOLS, logprobs=True, top_logprobs=1)
    tokens = r.choices[0].logprobs.content
    s.equal(len(tokens), r.usage.completion_tokens - 1, "every token has its log-probability, the end token aside")
    s.equal(b"".join(bytes(t.bytes) for t in tokens).decode(), script, "their bytes are all that the model wrote")
    streamed = [t for c in chat.ask(tools=TOOLS, logprobs=True, stream=True) for t in (c.choices[0].logprobs or
                type("none", (), {"content": []})).content]
    s.equal([t.token for t in streamed], [t.token for t in tokens], "the same tokens in a stream")


def test_memory(s, chat):
    """An answer sent back as it came has the tokens that were sampled: only what is new is computed."""
    user = {"role": "user", "content": "What is the weather there?"}
    first = chat.ask([user], tools=TOOLS)
    back = first.choices[0].message.model_dump(exclude_none=True)
    known = first.usage.prompt_tokens + first.usage.completion_tokens - 1  # the end token is said, not read
    results = iter(range(100))  # each is new
    def result(message):
        return {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": f"{next(results)} degrees"}
    def cached(message):
        return chat.ask([user, message, result(message)], tools=TOOLS, max_tokens=1).usage.prompt_tokens_details.cached_tokens
    spaced = json.loads(json.dumps(back))
    for call in spaced["tool_calls"]:
        call["function"]["arguments"] = json.dumps(json.loads(call["function"]["arguments"]), indent=2)
    trimmed = {k: v for k, v in back.items() if k not in ("reasoning", "reasoning_content")}
    renamed = json.loads(json.dumps(back))
    for i, call in enumerate(renamed["tool_calls"]):
        call["id"] = f"mine-{i}"
    s.equal(cached(back), known, "cached tokens of an answer as it came")
    for what, message in (("JSON written anew", spaced), ("without its thinking", trimmed), ("with other ids", renamed)):
        n = cached(message)
        s.check(n > known, f"an answer {what}: the same, and how the result before it began", (n, known))
    edited = {**back, "content": SAID + " Or not."}
    n = cached(edited)
    s.check(known - len("".join(a for _, a in CALLS)) > n > first.usage.prompt_tokens + 10, "edited: up to there", (n, known))
    talk = [user, back, result(back)]
    second = chat.ask(talk, tools=TOOLS)
    third = chat.ask([*talk, second.choices[0].message.model_dump(exclude_none=True),
                      result(second.choices[0].message.model_dump())], tools=TOOLS, max_tokens=1)
    s.equal(third.usage.prompt_tokens_details.cached_tokens,
            second.usage.prompt_tokens + second.usage.completion_tokens - 1, "and of two answers")


def test_restarts(s, qw, model):
    """A conversation that begins with calls goes on where it was, in the service's next life and after SIGKILL."""
    service = Service(qw, model)
    talk, known = [{"role": "user", "content": "What is the weather there?"}], 0
    for turn in range(6):
        usage = (r := Chat(service).ask(talk, tools=TOOLS)).usage
        s.equal(usage.prompt_tokens_details.cached_tokens, known, f"cached after a restart, turn {turn}")
        known = usage.prompt_tokens + usage.completion_tokens - 1
        message = r.choices[0].message.model_dump(exclude_none=True)
        talk += [message, {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": f"{turn} degrees"}]
        if turn == 3:  # clients that keep neither ids nor thinking
            message["tool_calls"][0]["id"] = talk[-1]["tool_call_id"] = "mine"
            message.pop("reasoning", None), message.pop("reasoning_content", None)
        if turn % 2:
            # An answer is saved by its place and its calls, and once by its words, which are always the same.
            all_of_it, end = (known, (turn + 1) * (1 + len(CALLS)) + 1), time.monotonic() + TIMEOUT_S
            while service.saved() != all_of_it and time.monotonic() < end:
                time.sleep(0.1)
            s.equal(service.saved(), all_of_it, f"on disk before SIGKILL, turn {turn}")
            service.kill()
        else:
            s.equal(service.stop(), 0, "exit code before a restart")
        service = Service(qw, model, home=service.home)
    service.stop()


def test_budget(s, chat):
    for extra in ({"thinking_budget": 7}, {"thinking_token_budget": 7}, {"chat_template_kwargs": {"thinking_budget": 7}},
                  {"thinking": {"type": "enabled", "budget_tokens": 7}}):
        r = chat.ask(extra_body=extra)
        thought = r.choices[0].message.model_extra["reasoning_content"]
        s.check(thought.startswith(THOUGHT[:6]) and thought.endswith("directly now.") and THOUGHT[:30] not in thought,
                f"closed in words: {extra}", thought)
        s.equal(r.choices[0].message.content, PLAIN, f"then it answers: {extra}")
    r = chat.ask(extra_body={"thinking_budget": 7, "structured_outputs": {"choice": ["no", PLAIN]}})
    s.equal(r.choices[0].message.content, PLAIN, "a form begins after the closing words")
    for extra in ({"thinking_budget": 0}, {"thinking": {"type": "disabled"}}):
        s.equal(chat.ask(extra_body=extra).choices[0].message.content, PLAIN, f"no thinking: {extra}")
    for words, content in (("hi /no_think", PLAIN), ("hi /no_think please", f"{SAID}\n{JSON_CALLS}")):
        s.equal(chat.ask([{"role": "user", "content": words}]).choices[0].message.content, content, words)
    for extra in ({"thinking_budget": -1}, {"thinking_budget": "much"}, {"thinking": {}}, {"stop_loops": 1}):
        try:
            chat.ask(extra_body=extra)
            s.check(False, f"{extra}", "no error")
        except openai.BadRequestError as error:
            s.check(next(iter(extra)) in str(error), f"{extra}", error)


def test_in_force(s, chat):
    """What was made of the request's words."""
    on = {"mode": "on", "budget": None, "effort": None}
    for extra, want in (({}, on), ({"enable_thinking": True}, on), ({"enable_thinking": False}, {**on, "mode": "off"}),
                        ({"thinking_budget": 7}, {**on, "budget": 7}), ({"reasoning_effort": "low"}, {**on, "budget": 1024}),
                        ({"reasoning_effort": "medium"}, {**on, "budget": 8192}), ({"reasoning_effort": "high"}, on),
                        ({"reasoning_effort": "none"}, {**on, "mode": "off"}),
                        ({"thinking_budget": 0}, {**on, "mode": "off"}),
                        ({"thinking": {"type": "enabled", "budget_tokens": 9}, "reasoning_effort": "low"}, {**on, "budget": 9})):
        s.equal(chat.ask(extra_body=extra, max_tokens=2).model_extra["qw_thinking"], want, f"in force: {extra}")
    r = chat.ask([{"role": "user", "content": "hi /no_think"}], max_tokens=2)
    s.equal(r.model_extra["qw_thinking"]["mode"], "off", "in force: the user's own words")
    last = list(chat.ask(stream=True, stream_options={"include_usage": True}, extra_body={"thinking_budget": 7}))[-1]
    s.equal(last.model_extra["qw_thinking"], {**on, "budget": 7}, "in force, of a stream")


def test_history(s, chat):
    """Of an answer that it does not know the service shows the model what the client sends."""
    user = {"role": "user", "content": "What is the weather?"}
    answer = chat.ask([user], tools=TOOLS).choices[0].message
    back = answer.model_dump(exclude_none=True)
    for i, call in enumerate(back["tool_calls"]):
        call["id"] = f"mine-{i}"
    user["content"], back["content"] = "What is the weather elsewhere?", "Elsewhere."
    result = {"role": "tool", "tool_call_id": back["tool_calls"][0]["id"], "content": "sunny"}
    def count(message):
        return chat.ask([user, message, result], tools=TOOLS, max_tokens=1).usage.prompt_tokens
    whole = count(back)
    without = {k: v for k, v in back.items() if k not in ("reasoning", "reasoning_content")}
    s.check(whole - count(without) >= len(THOUGHT) - 2, "reasoning_content is used", (whole, count(without)))
    s.equal(count({**without, "reasoning": THOUGHT}), whole, "by either name")
    calls_gone = {k: v for k, v in back.items() if k != "tool_calls"}
    s.check(whole - count(calls_gone) > len(CALLS[0][1]), "tool_calls are used", (whole, count(calls_gone)))
    s.equal(count({**back, "content": None}), whole - len("Elsewhere.") - 1, "content null")


def test_xml(s, chat):
    r = chat.ask(tools=TOOLS)
    m = r.choices[0].message
    s.equal((m.model_extra["reasoning_content"], m.content), (THOUGHT, None), "thinking that the prompt began; content null")
    s.equal(json.loads(m.tool_calls[0].function.arguments), {"place": "Rom", "days": 2}, "XML arguments have their types")
    thinking, content, calls, finish = gather(s, chat.ask(tools=TOOLS, stream=True))
    s.equal((thinking, content, calls[0][0], json.loads(calls[0][1]), finish),
            (THOUGHT, "", "weather", {"place": "Rom", "days": 2}, "tool_calls"), "the same in a stream")
    s.equal(chat.ask(extra_body={"enable_thinking": False}).choices[0].message.content, PLAIN, "thinking off")
    s.equal(chat.warnings(), 0, "no warnings")


def test_broken(s, chat):
    r = chat.ask(tools=TOOLS).choices[0]
    s.equal([(c.function.name, c.function.arguments) for c in r.message.tool_calls], [("weather", '{"place": "Ro')],
            "what came of a call that broke off")
    s.equal(r.finish_reason, "stop", "its finish_reason")
    s.equal(chat.warnings(), 1, "it is counted")
    _, _, calls, finish = gather(s, chat.ask(tools=TOOLS, stream=True))
    s.equal((calls[0][1], finish, chat.warnings()), ('{"place": "Ro', "stop", 2), "the same in a stream")
    s.equal(chat.ask().choices[0].message.content, HALF, "without tools it is text")
    log = chat.service.stderr()
    s.equal(len(re.findall(r"^chatcmpl-[0-9a-f]{24}: the answer ended inside a tool call$", log, re.M)), 2, "and said in the log")


# ---- pipe and terminal --------------------------------------------------------------------------------


class Program:
    def __init__(self, qw, folder):
        self.qw, self.folder = os.path.abspath(qw), folder
        self.env = {"PATH": os.environ["PATH"], "HOME": folder, "QW_HOME": os.path.join(folder, "home"), "TERM": "xterm",
                    "LANG": "C.UTF-8"}
        self.env.update({k: v for k, v in os.environ.items() if k.endswith("SAN_OPTIONS") or k == "LD_LIBRARY_PATH"})

    def run(self, *args, stdin=b""):
        p = subprocess.run([self.qw, *args], input=stdin, capture_output=True, env=self.env, cwd=self.folder,
                           timeout=TIMEOUT_S)
        errors = [line for line in p.stderr.decode().splitlines() if "the chat template of this model" not in line]
        return p.returncode, p.stdout.decode(), errors

    def spawn(self, *args):
        return pexpect.spawn(self.qw, list(args), env=self.env, cwd=self.folder, encoding="utf-8", timeout=TIMEOUT_S,
                             echo=False, dimensions=(40, 200))


ANSWER = f"{SAID}\n{JSON_CALLS}"  # in the terminal no tools are offered: calls are text


def test_pipe(s, program, path):
    run = ["run", "-m", path("qwen3"), "-p", "hi"]
    s.equal(program.run(*run), (0, ANSWER + "\n", []), "qw run: a pipe gets the answer alone")
    s.equal(program.run(*run, "--no-think"), (0, PLAIN + "\n", []), "qw run --no-think")
    rc, out, _ = program.run(*run, "--json", "--logprobs", "0")
    r = json.loads(out)
    s.equal((rc, r["reasoning"], r["text"]), (0, THOUGHT, ANSWER), "qw run --json")
    s.equal(len(r["tokens"]), r["usage"]["completion_tokens"] - 1, "all tokens with --logprobs")
    s.check(0 < r["usage"]["reasoning_tokens"] < r["usage"]["completion_tokens"], "reasoning_tokens", r["usage"])
    s.check("reasoning" not in json.loads(program.run(*run, "--json", "--no-think")[1]), "no thinking: no field")
    s.equal(program.run("run", "-m", path("lost"), "-p", "hi"),
            (0, PLAIN + "\n", ["qw: note: the model would have ended within its thinking; the thinking was closed for it"]),
            "an end inside the thinking")
    r = json.loads(program.run(*run, "--json", "--think-budget", "7")[1])
    s.check(r["reasoning"].endswith("directly now.") and r["text"] == PLAIN, "--think-budget", r)
    rc, out, err = program.run("run", "-m", path("broken"), "-p", "hi", "--think")
    s.equal((rc, out, err), (0, HALF + "\n", ["qw: note: this model does not think before it answers"]), "--think in vain")
    for args in (["--think", "--no-think"], ["--effort", "high"], ["--raw", "--think"]):
        rc, out, err = program.run(*run, *args)
        s.check(rc == 2 and out == "" and len(err) == 1 and "--" in err[0], f"qw run {' '.join(args)}", (rc, out, err))
    for name, thinks in (("qwen3", True), ("broken", False)):
        shown = json.loads(program.run("show", "-m", path(name), "--json")[1])
        s.equal((shown["thinks"], shown["thinks_always"]), (thinks, False), f"qw show: does {name} think")
    rc, out, _ = program.run("chat", "-m", path("qwen3"), "--no-think", stdin=b"hi\n/think on\nhi\n/think off\nhi\n")
    s.equal((rc, out), (0, f"{PLAIN}\n{ANSWER}\n{PLAIN}\n"), "qw chat in a pipe, and /think")


DIM = re.compile(r"\x1b\[2m(.*?)\x1b\[0m", re.S)


def dim_and_plain(text):
    """The dim text of a terminal's output, and the rest of it."""
    text = text.replace("\r\n", "\n")
    return "".join(DIM.findall(text)), DIM.sub("", text)


def test_run_terminal(s, program, path):
    p = program.spawn("run", "-m", path("qwen3"), "-p", "hi")
    p.expect(pexpect.EOF)
    p.close()
    dim, plain = dim_and_plain(p.before)
    s.equal((p.exitstatus, dim), (0, THOUGHT), "qw run on a terminal: thinking is dim")
    s.check(plain.endswith(f"\n\n{ANSWER}\n"), "and the answer comes after an empty line", plain)


def test_chat_terminal(s, program, path):
    prompt = "\x1b[?2004h"
    p = program.spawn("chat", "-m", path("qwen3"))
    p.expect_exact(prompt)
    def ask(text):
        p.send(text + "\r")
        p.expect_exact(prompt)
        return dim_and_plain(p.before)
    dim, plain = ask("hi")
    s.check(THOUGHT in dim and ANSWER in plain and "Let me" not in plain, "thinking is dim", (dim, plain))
    dim, _ = ask("/stats")
    s.check(re.search(r"[1-9]\d* of them thinking", dim), "/stats counts it", dim)
    s.check("/think takes on, off or auto" in (dim := ask("/think")[0]) and "thinking is auto" in dim, "/think", dim)
    ask("/think off")
    dim, plain = ask("again")
    s.check("Let me" not in dim and PLAIN in plain, "/think off", (dim, plain))
    ask("/save talk.json")
    ask("/save talk.md")
    p.send("\x04")
    p.expect(pexpect.EOF)
    p.close()
    with open(os.path.join(program.folder, "talk.json")) as f:
        talk = json.load(f)["messages"]
    s.equal(talk, [{"role": "user", "content": "hi"},
                   {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT},
                   {"role": "user", "content": "again"}, {"role": "assistant", "content": PLAIN}], "/save as JSON")
    with open(os.path.join(program.folder, "talk.md")) as f:
        text = f.read()
    s.check(f"## Thinking\n\n{THOUGHT}\n\n## Assistant\n\n{ANSWER}" in text, "/save as Markdown", text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qw", default="build/qw", help="the program")
    args = parser.parse_args()
    s = Suite()
    with tempfile.TemporaryDirectory(prefix="qw-answers-") as folder:
        path = lambda name: os.path.join(folder, name + ".gguf")
        for name, script in SCRIPTS.items():
            script_model.write(path(name), *script)
        for name, tests in (("qwen3", [test_whole, test_stream, test_choices, test_switch, test_limits, test_memory, test_budget,
                                    test_in_force, test_history]),
                            ("qwen3.5", [test_xml]), ("broken", [test_broken])):
            service = Service(args.qw, path(name), "--verbose")
            chat = Chat(service)
            for test in tests:
                s.run(test, chat)
            if name == "qwen3":
                s.run(test_logprobs, chat, SCRIPTS[name][1])
            s.equal(service.stop(), 0, f"exit code of the service, {name}")
        s.run(test_restarts, args.qw, path("qwen3"))
        program = Program(args.qw, folder)
        for test in (test_pipe, test_run_terminal, test_chat_terminal):
            s.run(test, program, path)
    return s.finish()


if __name__ == "__main__":
    sys.exit(main())
