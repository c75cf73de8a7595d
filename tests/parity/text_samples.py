"""Texts for tokenizer.py, made from a seed: mixed scripts, and short strings at the edges of the pre-tokenizers.

Use: imported. Nothing here depends on anything but the seed.
"""

import random

SCRIPTS = [  # name, first and last code point
    ("latin-1", 0xA0, 0x17F), ("latin-b", 0x180, 0x2AF), ("marks", 0x300, 0x36F), ("greek", 0x370, 0x3FF),
    ("cyrillic", 0x400, 0x52F), ("armenian", 0x530, 0x58F), ("hebrew", 0x591, 0x5F4), ("arabic", 0x600, 0x6FF),
    ("arabic-ext", 0x870, 0x8FF), ("devanagari", 0x900, 0x97F), ("bengali", 0x980, 0x9FF), ("tamil", 0xB80, 0xBFF),
    ("malayalam", 0xD00, 0xD7F), ("thai", 0xE00, 0xE5B), ("tibetan", 0xF00, 0xFFF), ("myanmar", 0x1000, 0x109F),
    ("jamo", 0x1100, 0x11FF), ("ethiopic", 0x1200, 0x137F), ("khmer", 0x1780, 0x17FF), ("mongolian", 0x1800, 0x18AA),
    ("marks-ext", 0x1AB0, 0x1AFF), ("latin-add", 0x1E00, 0x1EFF), ("greek-ext", 0x1F00, 0x1FFF),
    ("punctuation", 0x2000, 0x206F), ("superscript", 0x2070, 0x209C), ("marks-sym", 0x20D0, 0x20F0),
    ("letterlike", 0x2100, 0x218B), ("math", 0x2200, 0x22FF), ("box", 0x2500, 0x257F), ("symbols", 0x2600, 0x27BF),
    ("cjk-radicals", 0x2E80, 0x2FD5), ("cjk-punct", 0x3000, 0x303F), ("kana", 0x3040, 0x30FF),
    ("cjk-ext-a", 0x3400, 0x4DBF), ("cjk", 0x4E00, 0x9FFF), ("yi", 0xA000, 0xA48C), ("hangul", 0xAC00, 0xD7A3),
    ("private", 0xE000, 0xE0FF), ("cjk-compat", 0xF900, 0xFAD9), ("alpha-forms", 0xFB00, 0xFB4F),
    ("arabic-forms", 0xFB50, 0xFDFF), ("half-full", 0xFF00, 0xFFEF), ("linear-b", 0x10000, 0x100FA),
    ("gothic", 0x10330, 0x1034A), ("todhri", 0x105C0, 0x105FF), ("kaithi", 0x11080, 0x110C2),
    ("dives-akuru", 0x11900, 0x11959), ("tulu", 0x11380, 0x113E2), ("cuneiform", 0x12000, 0x12399),
    ("music", 0x1D100, 0x1D1EA), ("math-alpha", 0x1D400, 0x1D7FF), ("emoji", 0x1F300, 0x1F6FF),
    ("emoji-ext", 0x1F900, 0x1FAFF), ("cjk-ext-b", 0x20000, 0x2A6DF), ("cjk-supp", 0x2F800, 0x2FA1D),
    ("cjk-ext-h", 0x31350, 0x323AF), ("cjk-ext-j", 0x323B0, 0x33479), ("tags", 0xE0020, 0xE007F),
]
WORDS = ("the of and to in a is that for it as was with be by on not he his but at are this have from or had an they "
         "which one you were all her she there would their we him been has when who will no more if out so up said what "
         "its about than into them can only other time new some could these two may first then do any like my now over "
         "such our man me even most made after also did many off before must well back through years where much your way "
         "down should because long each just state people those too mr how little good world make very year still see own "
         "work men day get here old life both between being under three never know same last another while us might great "
         "don't I'll you're we've he'd it's I'm JSON HTTP queue tokenizer naïve café Straße año garçon").split()
CODE = ["for (size_t i = 0; i < n; i++) {\n", "    return x->next ? x->next->value : NULL;\n", "}\n\n",
        "def f(self, *args, **kwargs):\n", "\tif __name__ == '__main__':\n", "        print(f\"{x!r:>10}\")\n",
        "SELECT id, name FROM users WHERE id != 12345;\n", "<div class=\"a b\">&nbsp;</div>\n", "// comment  \r\n",
        "#include <stdio.h>\r\n", "let v: Vec<&'static str> = vec![];\n", "x = 0x1F + 1e-5 * 3.14159;\n", "a\t=\tb;\n",
        "git commit -m \"it's done\"\n", "    \n", "\r\n\r\n", "  \t  \n", "$ ls -la /usr/lib/*.so\n"]
EMOJI = ["👍🏽", "👩‍👩‍👧‍👦", "🇩🇪", "❤️", "🏳️‍🌈", "1️⃣", "🧑‍💻"]
SPACES = " \t\n\r\u000b\u000c\u0085\u00a0\u1680\u2003\u2028\u2029\u202f\u205f\u3000\u200b\u180e\ufeff\x1c\x1f"


def script_char(r):
    """A character of a random script."""
    _, first, last = r.choice(SCRIPTS)
    return chr(r.randint(first, last))


def script_word(r):
    """A word of one script, sometimes with combining marks."""
    _, first, last = r.choice(SCRIPTS)
    word = "".join(chr(r.randint(first, last)) for _ in range(r.randint(1, 12)))
    if r.random() < 0.2:
        word = "".join(c + chr(r.randint(0x300, 0x345)) * r.randint(0, 2) for c in word)
    return word


def document(r):
    """Some thousand characters of everything."""
    out = []
    for _ in range(r.randint(10, 60)):
        kind = r.random()
        if kind < 0.35:
            out.append(" ".join(r.choice(WORDS) for _ in range(r.randint(3, 25))) + r.choice(".,;:!?") + r.choice(" \n"))
        elif kind < 0.55:
            out.append("".join(r.choice(CODE) for _ in range(r.randint(1, 6))))
        elif kind < 0.85:
            out.append(r.choice(["", " ", ", "]).join(script_word(r) for _ in range(r.randint(1, 12))) + r.choice(["", " ", "\n"]))
        elif kind < 0.9:
            out.append("".join(r.choice(EMOJI) for _ in range(r.randint(1, 4))))
        elif kind < 0.95:
            out.append("".join(r.choice(SPACES) for _ in range(r.randint(1, 20))))
        else:
            out.append(str(r.randint(0, 10 ** r.randint(1, 20))) + r.choice(["%", " kg", "", "٣٤", "½", "Ⅷ"]))
    return "".join(out)


def documents(seed, bytes_min):
    """Documents of together at least bytes_min bytes of UTF-8."""
    r, out, total = random.Random(seed), [], 0
    while total < bytes_min:
        out.append(document(r))
        total += len(out[-1].encode())
    return out


def any_char(r):
    """Any scalar value, unassigned ones too."""
    c = r.randrange(0x110000 - 0x800)
    return chr(c if c < 0xD800 else c + 0x800)


def short_string(r):
    """A short string of what the pre-tokenizers look at."""
    parts = [lambda: "'", lambda: r.choice(["s", "S", "\u017f", "t", "T", "re", "Re", "rE", "VE", "ve", "m", "M", "ll",
                                            "lL", "LL", "d", "D", "v", "l", "r", "K", "\u212a", "\ufb05", "\u1e9e", "ß"]),
             lambda: r.choice(SPACES), lambda: r.choice(" \n\r\t") * r.randint(1, 4), lambda: r.choice("0123456789٣½Ⅷ²"),
             lambda: r.choice(".,!?-_#$%&*()[]{}<>|\\/\"`~^=+@;:’‘“«…—"), lambda: chr(r.randrange(0x20)),
             lambda: chr(r.randint(0x300, 0x36F)), lambda: script_char(r), lambda: any_char(r), lambda: r.choice("aZéxX"),
             lambda: r.choice(WORDS), lambda: r.choice(["\u0344", "\u0958", "\u0340", "\uac00\u11a8", "\u1100\u1161\u11a8",
                                                        "<\u0338", "\u0345\u0334", "\u09c7\u09be", "\ufb2c", "\u2126",
                                                        "\U0001d15e", "\U00011935\U00011930", "\U000105d2\u0307"])]
    return "".join(r.choice(parts)() for _ in range(r.randint(1, 10)))


def short_strings(seed, n):
    """n such strings."""
    r = random.Random(seed)
    return [short_string(r) for _ in range(n)]


def long_strings():
    """(name, text) that would be slow where something is not linear."""
    million = 1_000_000
    return [("letters", "a" * million), ("letters of two kinds", "ab" * (million // 2)), ("spaces", " " * million),
            ("line breaks", "\n" * million), ("spaces before a word", " " * million + "x"), ("apostrophes", "'" * million),
            ("one mark", "x" + "\u0301" * (million // 2)),
            ("marks in falling order", "x" + "\u0345" * (million // 4) + "\u0334" * (million // 4)),
            ("marks in mixed order", "a" + "\u0345\u0301\u0327\u0334" * (million // 8)),
            ("hangul", "한" * (million // 3)), ("jamo", "\u1112\u1161\u11ab" * (million // 9)),
            ("han", "中文字" * (million // 9)), ("digits", "1234567890" * (million // 10))]
