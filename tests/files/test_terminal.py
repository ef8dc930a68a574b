"""What is printed drives no terminal: escapes of data, models and run files are shown, not sent."""

import contextlib
import io
import json
import logging
import shutil
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from workbench.cli import main
from workbench.files.terminal import CleanStream, clean, clean_but_colors
from workbench.runs.folder import RunFolder
from workbench.runs.printed import tail

NASTY = {
    "color": "\x1b[31mred\x1b[0m",
    "clear": "\x1b[2J\x1b[H",
    "bell": "\x07",
    "link": "\x1b]8;;http://x\x1b\\text\x1b]8;;\x1b\\",
    "clipboard": "\x1b]52;c;cm0gLXJm\x07",
    "c1": "\x9b31m\x90\x9d52;c;eA==\x9c",
    "back": "abc\b\b\bxyz\x7f",
    "return": "real\rfake",
    "bidi": "\u202eevil\u202c \u2066x\u2069 \u200fx",
    "separators": "a\u2028b\u2029c\x85d",
    "tags": "\U000e0041\U000e0042",
    "half": "\ud83d",
    "nul": "\0",
}
EVIL = "".join(NASTY.values())
ALLOWED = set("\n\t")


def is_clean(text: str) -> bool:
    return all(sign.isprintable() or sign in ALLOWED or sign in "\u3000\xa0" for sign in text)


@pytest.mark.parametrize("text", NASTY.values(), ids=list(NASTY))
def test_clean_control_characters_are_escaped(text: str) -> None:
    cleaned = clean(f"a{text}b")
    assert is_clean(cleaned) and cleaned.startswith("a") and cleaned.endswith("b") and len(cleaned) > len(text)


def test_clean_words_of_all_scripts_are_unchanged() -> None:
    text = "naïve עברית العربية नमस्ते 日本語　全角 می\u200cخواهم 👩\u200d🔬 a\xa0b\tc\nd"
    assert clean(text) == text
    assert clean("a\r\nb") == "a\nb"


def test_clean_but_colors_keeps_own_colors_only() -> None:
    ours = "\x1b[38;2;1;2;3m\x1b[48;2;4;5;6mword\x1b[0m"
    assert clean_but_colors(ours) == ours
    assert clean_but_colors(f"{ours}\x1b[2J\x1b]52;c;x\x07") == f"{ours}\\u001b[2J\\u001b]52;c;x\\u0007"


def test_clean_stream_progress_bar_works() -> None:
    plain, cleaned = io.StringIO(), io.StringIO()
    for stream in (plain, CleanStream(cleaned, bars=True)):
        for _ in tqdm(range(3), file=stream, mininterval=0, bar_format="{n}/{total}", desc="x"):
            tqdm.write("line", file=stream)
    assert cleaned.getvalue() == plain.getvalue() and "\r" in plain.getvalue()


def test_clean_stream_of_small_encoding_escapes() -> None:
    raw = io.BytesIO()
    few = io.TextIOWrapper(raw, "latin-1", write_through=True)
    print("─ é 日", file=CleanStream(few))
    assert raw.getvalue() == b"\\u2500 \xe9 \\u65e5\n"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run whose files hold escapes wherever there is text."""
    run = Path(shutil.copytree(trained / "opd", tmp_path / "runs" / "opd"))
    folder = RunFolder(run)
    facts = {
        "skipped": {EVIL: 3},
        "warnings": [EVIL],
        "error": EVIL,
        "prepared": {EVIL: EVIL},
        "method": EVIL,
        "missing": [EVIL],
    }
    (run / "run.json").write_text(json.dumps({**folder.status, **facts}))
    for file in (run / "evals").glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        changed = [{**row, "policy": f"{row['policy']}{EVIL}", "domain": EVIL} for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in changed))
    (run / "skipped.jsonl").write_text(json.dumps({"example": EVIL, "reason": EVIL, "message": EVIL}) + "\n")
    return run


@pytest.mark.parametrize(
    "command",
    [
        ["summary", "{run}"],
        ["resume", "{run}"],
        ["resume", "{run}", f"seed={EVIL[:-1]}"],
        ["eval", "{run}", "--max-examples", "2"],
        ["eval", "{run}", "--data", f"scenes:{EVIL[:-1]}"],
        ["show", "{run}", "--step", "1"],
        ["show", "{run}", "--step", "1", "--color"],
        ["summary", f"runs/{EVIL[:-2]}"],
        ["train", f"{EVIL[:-2]}.yaml"],
        ["export", "{run}", "--to", "{run}"],
        ["methods", EVIL[:-2]],
        [EVIL[:-2]],
        ["import", f"{EVIL[:-2]}.jsonl", "out"],
    ],
    ids=lambda command: command[0][:8] + str(len(command)),
)
def test_commands_print_no_escapes(run: Path, command: list[str], capsys: pytest.CaptureFixture) -> None:
    with contextlib.suppress(SystemExit):  # of argparse
        main([part.replace("{run}", str(run)) for part in command])
    out, err = capsys.readouterr()
    assert out + err
    colors = out if "--color" not in command else ""
    bars = err.replace("\r", "").replace("\x1b[A", "")
    assert is_clean(colors) and is_clean(bars)
    assert "\x1b[2J" not in out and "\x1b]" not in out
    assert sys.stdout is not None and not isinstance(sys.stdout, CleanStream)


def test_logs_are_stored_and_shown_clean(tmp_path: Path) -> None:
    evil = EVIL.replace("\ud83d", "")  # pytest keeps what is logged, and its workers cannot send half a character
    folder = RunFolder(tmp_path)
    handler = folder.log_to_file()
    logging.getLogger("workbench").warning("skipped %s", evil)
    logging.getLogger("workbench").removeHandler(handler)
    handler.close()
    assert is_clean((tmp_path / "train.log").read_text())
    (tmp_path / "train.out").write_bytes(f"1/3\r2/3\rdone {EVIL.replace(chr(13), '')}\n".encode(errors="replace"))
    displayed = tail(tmp_path / "train.out")
    assert displayed[0].startswith("done ") and all(map(is_clean, displayed))
