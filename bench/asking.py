"""The real engine for one user in a process of its own (bench/ask.c), for programs in bench/ that compare its settings.

Several such processes stand side by side and answer in turns: who does not answer uses no processor.
"""

import json
import os
import subprocess

from common import ROOT, fail

PROGRAM = os.path.join(ROOT, "build", "bench", "ask")
WARM_UP = {"prompt": "Write one sentence about the weather.", "max_tokens": 16}


class Engine:
    """guess: none, all, or names of sources with commas; draft: None, or the file of a small model that guesses."""

    def __init__(self, program, model, threads, guess, draft=None):
        command = [program, model, "--threads", str(threads), "--guess", guess, *(["--draft", draft] if draft else [])]
        try:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        except OSError as error:
            fail(f"{program}: {error.strerror} (make {os.path.relpath(PROGRAM, ROOT)})")
        self.ask(**WARM_UP)

    def ask(self, **request):
        """What ask.c says of one answer, as a dict."""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            fail(f"ask ended with exit code {self.process.wait()}")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Engines:
    """One for each of {name: (guess, draft)}, as in Engine, for a with statement."""

    def __init__(self, program, model, threads, guesses):
        self.arguments, self.guesses = (program, model, threads), guesses

    def __enter__(self):
        self.engines = {name: Engine(*self.arguments, *guess) for name, guess in self.guesses.items()}
        return self.engines

    def __exit__(self, *reason):
        for engine in self.engines.values():
            engine.close()


def turns(names, number):
    """The names in the order of their turns: another one begins each time."""
    at = number % len(names)
    return names[at:] + names[:at]
