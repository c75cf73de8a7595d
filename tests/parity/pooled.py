#!/usr/bin/env python3
"""`qw embed` and `qw rerank` against what they are made of: the logits of the same tokens.

Use:   python3 tests/parity/pooled.py --qw build/qw --model NAME|FILE.gguf

Any model with a tokenizer serves: what is checked is the arithmetic, not whether the model is good at it. A logit is the
product of the head's row with the hidden state, so logits and head give the hidden state back by least squares; it is
compared with the embedding. A score is the sigmoid of the difference of two logits. Token ids come from
`qw tokenize --special` of the whole prompt, written here from the model cards of Qwen3-Embedding and Qwen3-Reranker.
Prints one line per check and `N passed, M failed`; exit code 0 when all pass.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

import common

TASK = "Given a web search query, retrieve relevant passages that answer the query"
DOCUMENT = "The capital of China is Beijing."
QUERY = "What is the capital of China? <|im_end|>"
RERANK = ("<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
          "provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n"
          "<Instruct>: {task}\n<Query>: {query}\n<Document>: {document}<|im_end|>\n<|im_start|>assistant\n"
          "<think>\n\n</think>\n\n")
EMBED_MAX = 1e-5
SCORE_MAX = 1e-5
ROWS = 8192  # of the head: several times what the hidden state has numbers


def call(qw, *arguments, text=""):
    """Standard output of one command; ends the program when it fails."""
    run = subprocess.run([qw, *arguments], input=text, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if run.returncode != 0:
        common.fail(f"qw {arguments[0]} ended with exit code {run.returncode}: {run.stderr.strip()}")
    return run.stdout


class Model:
    """A model under test and its head."""

    def __init__(self, qw, path):
        import gguf
        import numpy
        self.qw, self.path = qw, path
        tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
        head = tensors.get("output.weight", tensors["token_embd.weight"])
        self.head = gguf.quants.dequantize(head.data[:ROWS], head.tensor_type).astype(numpy.float64)

    def tokens(self, text):
        """Ids of a text in which control tokens count as such."""
        return json.loads(call(self.qw, "tokenize", "-m", self.path, "--json", "--special", text=text))

    def last_logits(self, ids):
        """Logits after the last of them, float32 throughout."""
        import numpy
        with tempfile.TemporaryDirectory() as folder:
            out = os.path.join(folder, "logits.npy")
            call(self.qw, "logits", "-m", self.path, "--exact", "--tokens", ",".join(map(str, ids)), "-o", out)
            return numpy.load(out)[-1]

    def lines(self, *arguments):
        """Results of a command as objects."""
        return [json.loads(line) for line in call(self.qw, *arguments, "-m", self.path, "--exact").splitlines()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--qw", default=os.path.join(common.ROOT, "build", "qw"))
    parser.add_argument("--model", required=True)
    options = parser.parse_args()
    common.check_program(options.qw)
    common.enter("test")
    import numpy
    model = Model(options.qw, common.model_path(options.qw, options.model))
    passed = failed = 0

    def check(what, good, detail):
        nonlocal passed, failed
        passed, failed = passed + good, failed + (not good)
        print(f"{'ok  ' if good else 'FAIL'} {what}: {detail}", flush=True)

    def hidden(ids):
        return numpy.linalg.lstsq(model.head, model.last_logits(ids)[:ROWS].astype(numpy.float64),
                                  rcond=None)[0]

    def compare(what, ids, got, n):
        want = hidden(ids)[:n]
        want /= numpy.linalg.norm(want)
        gap = float(numpy.abs(want - numpy.array(got["embedding"])).max())
        check(what, gap <= EMBED_MAX and got["tokens"] == len(ids), f"largest difference {gap:.1e}, limit {EMBED_MAX:.0e}")

    end = model.tokens("<|endoftext|>")
    width = model.head.shape[1]
    got = model.lines("embed", DOCUMENT, "x")
    compare("a document", model.tokens(DOCUMENT) + end, got[0], width)
    compare("another one", model.tokens("x") + end, got[1], width)
    got = model.lines("embed", "-q", "--dims", "128", QUERY)
    # A control token in somebody's text is text.
    plain = json.loads(call(model.qw, "tokenize", "-m", model.path, "--json", text=f"Instruct: {TASK}\nQuery:{QUERY}"))
    compare("a query, 128 numbers", plain + end, got[0], 128)
    norm = float(numpy.linalg.norm(got[0]["embedding"]))
    check("length", abs(norm - 1) < 1e-6, f"{norm:.8f}")

    yes, no = model.tokens("yes")[0], model.tokens("no")[0]
    documents = [DOCUMENT, "Bread is made of flour."]
    query = "What is the capital of China?"
    for document, got in zip(documents, model.lines("rerank", "-q", query, *documents)):
        logits = model.last_logits(model.tokens(RERANK.format(task=TASK, query=query, document=document)))
        want = 1 / (1 + numpy.exp(float(logits[no]) - float(logits[yes])))
        gap = abs(want - got["score"])
        check(f"score of {document!r}", gap <= SCORE_MAX, f"{got['score']:.6f}, difference {gap:.1e}, limit {SCORE_MAX:.0e}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
