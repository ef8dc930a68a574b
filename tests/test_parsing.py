"""Texts that people hand over: what is read of them, and what is refused in one sentence with line and key."""

import json
import os
import resource
from pathlib import Path

import pytest

from workbench.config import load_config
from workbench.errors import ConfigError, DataError
from workbench.parsing import MAX_YAML_BYTES, Malformed, parse_json, parse_override, parse_yaml, read_yaml
from workbench.tables import Row

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{here}: &{here} [{', '.join(9 * [f'*{before}'])}]\n" for before, here in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 2024-02-30", {"a": "2024-02-30"}),  # a date is the text that it is written as, be there such a day or not
        ("a: 2024-01-01 10:00:00", {"a": "2024-01-01 10:00:00"}),
        ('"\\ud83d\\ude00"', "😀"),
        ("😀: 1", {"😀": 1}),
        ("[0x1F, 1_000, 0b11, 017, -3]", [31, 1000, 3, 15, -3]),
        ("[1.5, .5, -1.0e-3, 5e-6]", [1.5, 0.5, -0.001, "5e-6"]),
        ("[~, null, yes, off, '']", [None, None, True, False, ""]),
        ("!!str 3", "3"),
        ("!!float 3", 3.0),
        ("=", "="),
        ("", None),
        ("\ufeffa: 1", {"a": 1}),
        ("'a\u2028b'", "a\u2028b"),
    ],
)
def test_plain_values_are_read_as_they_stand(text: str, value: object) -> None:
    assert parse_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a:\n  b: !!int x", r"line 2, a.b: 'x' is not a whole number"),
        ("a: !!float x", r"line 1, a: 'x' is not a number"),
        ("a: !!bool maybe", r"line 1, a: 'maybe' is not true or false"),
        ("a: !!null x", r"line 1, a: 'x' is not null"),
        ("a: !!timestamp x", r"line 1, a: the tag 'tag:yaml.org,2002:timestamp' is not read here"),
        ("a: !!binary aGk=", "tag"),
        ("a: !!set {x, y}", "tag"),
        ("a: !!python/object/apply:os.system [x]", "tag"),
        ("a: !mine x", "tag '!mine'"),
        ("a: !!int [1]", "tag"),
        ("a: 0x_", r"line 1, a: '0x_' is not a whole number"),
        ("a: 0b_", r"line 1, a: '0b_' is not a whole number"),
        ("a: " + 5000 * "9", r"line 1, a: '9+\.\.\.9+' is not a whole number"),
        ("a: 1" + 5000 * ":59", "is not a whole number"),
        ("a: {b: {[1, 2]: 3}}", r"line 1, a.b: a list or a mapping cannot be a key"),
        ("? {a: 1}\n: 2", "a list or a mapping cannot be a key"),
        ("a: &x 1\nb: *x", r"line 1, a: anchors and aliases are not read here, got 'x'"),
        ("b: *x", r"line 1, b: anchors"),
        ("a: 1\nb:\n  - 1\n  - {c: [}", r"line 4, b\[1\].c"),
        ("a: 1\na: 2", r'line 2, "a" stands twice, in lines 1 and 2'),
        ("m: {1: a, 0x1: b}", r'line 1, m: "0x1" stands twice'),
        (2000 * "[", "nested deeper than 32 levels"),
        ("{a: " * 2000, "nested deeper than 32 levels"),
        (2000 * "- ", "nested deeper than 32 levels"),
        ('a: "x\\0y"', r"line 1, a: 'x\\x00y' holds the character NUL"),
        ("a: x\0y", r"line 1: the character U\+0000 is not allowed"),
        ("a: 1\nb: \x1b[2J", r"line 2: the character U\+001B"),
        ('a: "\\ud83d"', r"line 1, a: .* half of a character"),
        ('"\\ude00\\ud83d": 1', "half of a character"),
        ("a: \ud83d", r"U\+D83D"),
        ('a: "\\UFFFFFFFF"', r"line 1, a: an escape that is no character"),
        ("a: 1\n---\nb: 2", "line 2"),
        ("a: b: c", "line 1"),
        ("%YAML 9.9\n---\na", "line 1"),
        ("a" * (MAX_YAML_BYTES + 1), "more than 262,144 characters"),
    ],
)
def test_what_is_wrong_is_named_with_line_and_key(text: str, sentence: str) -> None:
    with pytest.raises(Malformed, match=sentence) as raised:
        parse_yaml(text)
    assert len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)


def test_aliases_that_stand_for_gigabytes_cost_nothing(tmp_path: Path) -> None:
    file = tmp_path / "bomb.yaml"
    file.write_text(BOMB)
    assert len(BOMB) < 300
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match="anchors and aliases") as raised:
        load_config(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # kB
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("text", ["[" * MAX_YAML_BYTES, "a: [" * 1000, "? " * 5000, "'" + "x" * 200_000, "{a, " * 3000])
def test_hostile_texts_are_refused(text: str) -> None:
    with pytest.raises(Malformed):
        parse_yaml(text)


def test_a_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    for raw, sentence in (
        (b"a: \xff", "line 1: byte 4, 0xff, is not UTF-8"),
        (b"x" * 300_000, "more than 262,144 bytes"),
    ):
        file.write_bytes(raw)
        with pytest.raises(ConfigError, match=rf"broken\.yaml is not readable YAML: .*{sentence}"):
            read_yaml(file)
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match="is no file"):
        read_yaml(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match="is no file"):
        read_yaml(tmp_path)
    with pytest.raises(ConfigError, match="no name of a file"):
        read_yaml("a\0b.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml("x" * 5000)


def test_overrides_are_read_by_the_same_rules() -> None:
    assert parse_override("name=2024-02-30") == ("name", "2024-02-30")
    assert parse_override('data.train="\\ud83d\\ude00"') == ("data.train", "😀")
    for text in ("a=!!int x", "a=&x 1", "a=0x_", "a=\0", 'a="\\ud83d"', "a\0=1", "a=" + "[" * 2000, "\ud83d=1"):
        with pytest.raises(ConfigError, match="override"):
            parse_override(text)


def test_json_is_bounded_too() -> None:
    assert parse_json('{"a": "\\ud83d\\ude00"}') == {"a": "😀"}
    assert parse_json("[" * 100 + "]" * 100)
    assert len(parse_json(json.dumps([[1]] * 1000))) == 1000
    brackets = json.dumps({"a": '["' * 5000})
    assert parse_json(brackets)["a"] == '["' * 5000
    for text in ("[" * 101 + "]" * 101, '{"a":' * 5000, '"\\ud83d"', '{"\\ude00": 1}', "[1", "9" * 5000, ""):
        with pytest.raises(Malformed) as raised:
            parse_json(text)
        assert len(str(raised.value)) < 300
    with pytest.raises(Malformed, match="byte 2, 0xff"):
        parse_json(b'"\xff"')
    with pytest.raises(Malformed, match='"a" stands twice'):
        parse_json('{"a": 1, "b": {"a": 1, "a": 2}}', unique_keys=True)


def test_a_broken_row_is_named() -> None:
    for raw in (b'{"a": ' + b"[" * 5000, b'{"a": 1, "a": 2}', b'{"a": "\\ud83d"}', b"\xff"):
        with pytest.raises(DataError, match=r"rows.jsonl:7 is not valid JSON"):
            Row("rows.jsonl:7", 7, raw).values()


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("exp #2", "exp #2"),
        (" models/big #2 ", "models/big #2"),
        ("photos #1/data.jsonl", "photos #1/data.jsonl"),
        ("a#2", "a#2"),
        ("#2", "#2"),
        ("5 #2", "5 #2"),
        ("~ # none", "~ # none"),
        ("a  b\nc", "a  b\nc"),  # YAML would fold it
        ("--- a", "--- a"),  # YAML would take the dashes for a document's start
        ("'exp #2'", "exp #2"),
        ('"a\\u00e9 # b"', "aé # b"),
        ("[plain, 'a # b']", ["plain", "a # b"]),
        ("{maths: 'a # b'}", {"maths": "a # b"}),
        ("5e-6", "5e-6"),  # check_option makes it a number
        ("007x", "007x"),
        ("5", 5),
        ("true", True),
        ("null", None),
        ("", None),
        ("  ", None),
    ],
)
def test_what_stands_after_the_equals_sign_is_one_value(written: str, value: object) -> None:
    assert parse_override(f"name={written}") == ("name", value)


@pytest.mark.parametrize("written", ["'exp' #2", '"a" # b', "[1, 2] # x", "{a: b} #c", "maths: a/b #2", "- a #b"])
def test_what_stands_behind_a_value_is_refused_and_not_dropped(written: str) -> None:
    with pytest.raises(ConfigError, match=r"stands behind the value.*Put quotes around it"):
        parse_override(f"models.teachers={written}")
