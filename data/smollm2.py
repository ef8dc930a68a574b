"""Makes what configs/smollm2-recover.yaml trains on: a student without a quarter of its layers, and questions.

    workbench fetch smollm2 build/smollm2
    python data/smollm2.py build/smollm2 build       # build/smollm2-pruned and build/smollm2-data

The questions need no hub. Their texts are the first paragraphs of docstrings of Python's standard library, so they
depend on the version of Python. Kinds: rephrase a paragraph, add two digits, repeat a word, name a capital.

    train.jsonl, held-out.jsonl   share no module, pair of digits, word or country
    prose.jsonl                   held-out paragraphs as questions
    passages.jsonl                questions about invented facts, for dopd: the captions, which only the teacher sees,
                                  have the answers
"""

import importlib
import inspect
import json
import random
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

LAYERS = range(12, 20)  # without these eight the model loses least, of eight choices of eight that were tried
TRAIN = (
    "argparse ast asyncio bisect calendar collections configparser contextlib csv datetime decimal difflib email enum "
    "fractions ftplib functools gettext glob gzip hashlib heapq hmac html http.client imaplib inspect io ipaddress "
    "itertools linecache locale logging mailbox mimetypes multiprocessing operator os pathlib pickle platform"
)
HELD_OUT = "shutil socket sqlite3 statistics string subprocess tarfile tempfile textwrap threading urllib.parse zipfile"
CAPITALS = (
    "France Paris, Germany Berlin, Italy Rome, Spain Madrid, Japan Tokyo, China Beijing, Russia Moscow, Egypt Cairo, "
    "Greece Athens, Austria Vienna, Ireland Dublin, Cuba Havana, Poland Warsaw, Norway Oslo, Sweden Stockholm, "
    "Portugal Lisbon, Hungary Budapest, Finland Helsinki, Denmark Copenhagen, Belgium Brussels, Turkey Ankara, "
    "Iran Tehran, Iraq Baghdad, Kenya Nairobi, Peru Lima, Chile Santiago, Canada Ottawa, Thailand Bangkok, "
    "Ukraine Kyiv, Romania Bucharest, Bulgaria Sofia, Syria Damascus"
)
TOWNS = ("Ondrel", "Kessary", "Mowbrae", "Tillenford", "Vask", "Pellin")


def paragraphs(modules: Iterable[str]) -> list[str]:
    """First paragraphs of the docstrings of public functions and classes, of 8 to 40 words, in one line each."""
    texts = {}
    for name in modules:
        module = importlib.import_module(name)
        for key, value in sorted(vars(module).items()):
            if key.startswith("_") or not (inspect.isclass(value) or inspect.isroutine(value)):
                continue
            text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
            if 8 <= len(text.split()) <= 40 and "->" not in text and text.isascii():
                texts[text] = None
    return list(texts)


def rows(texts: list[str], pairs: list, words: list[str], capitals: list) -> list[dict]:
    """Questions of all kinds; all but rephrasing have an answer."""
    questions = [("rephrase", f"Say this in other words: {text}", None) for text in texts]
    questions += [("add", f"What is {a} + {b}?", str(a + b)) for a, b in pairs]
    questions += [("repeat", f"Repeat this word: {word}", word) for word in words]
    questions += [("capital", f"What is the capital of {country}?", capital) for country, capital in capitals]
    return [
        {"id": f"{kind}-{number}", "domain": kind, "question": question} | ({"answer": answer} if answer else {})
        for number, (kind, question, answer) in enumerate(questions)
    ]


def passages(draw: random.Random) -> list[dict]:
    """Questions about invented facts, which only the passage in the caption answers; the number is privileged."""
    buildings = [f"{kind} of {town}" for kind in ("library", "museum", "market", "bank") for town in TOWNS]
    draw.shuffle(buildings)
    return [
        {
            "id": f"passage-{number}",
            "question": f"When does the {building} close? Give the hour.",
            "answer": str(closes),
            "caption": f"The {building} opens at {draw.randint(6, 11)} o'clock and closes at {closes} o'clock.",
            "marks": [{"pattern": r"(\d+)", "kind": "answer", "truth": "privileged"}],
        }
        for number, building in enumerate(buildings)
        for closes in [draw.randint(13, 22)]
    ]


def questions() -> dict[str, list[dict]]:
    """Rows of each file, by its name."""
    draw = random.Random(0)
    train, held_out = (paragraphs(names.split()) for names in (TRAIN, HELD_OUT))
    held_out = [text for text in held_out if text not in train]
    words = sorted(set(re.findall(r"\b[a-z]{5,9}\b", " ".join(train))))
    pairs = [(a, b) for a in range(1, 10) for b in range(1, 10)]
    capitals = [entry.split() for entry in CAPITALS.split(", ")]
    for values in (train, held_out, words, pairs, capitals):
        draw.shuffle(values)
    return {
        "train": rows(train[:200], pairs[16:], words[16:80], capitals[16:]),
        "held-out": rows([], pairs[:16], words[:16], capitals[:16]),
        "prose": rows(held_out[:24], [], [], []),
        "passages": passages(draw),
    }


def write_data(folder: Path) -> None:
    """Write the four files."""
    folder.mkdir(parents=True)
    for name, values in questions().items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in values)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{folder / name}.jsonl: {len(values)} rows")


def prune(source: Path, target: Path) -> None:
    """Write `source` without LAYERS, other weights unchanged."""
    model = AutoModelForCausalLM.from_pretrained(source)
    layers = model.model.layers
    for layer in reversed(LAYERS):
        del layers[layer]
    model.config.num_hidden_layers = len(layers)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)
    print(f"{target}: {len(layers)} layers")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    build = Path(sys.argv[2])
    write_data(build / "smollm2-data")
    prune(Path(sys.argv[1]), build / "smollm2-pruned")
