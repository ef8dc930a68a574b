"""Texts that people hand over: what is read of them, and what is refused in one sentence with line and key."""

import json
import math
import os
import resource
from pathlib import Path

import pytest
import yaml
from failures import raises

from workbench.config.schema import load_config
from workbench.data.sources import Row
from workbench.distill.method import Option, check_option
from workbench.errors import ConfigError, DataError
from workbench.files.parsing import (
    MAX_YAML_BYTES,
    Malformed,
    dump_yaml,
    parse_json,
    parse_override,
    parse_value,
    parse_yaml,
    read_yaml,
)

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
        ("[0x1F, 017, -3, +4]", [31, 17, -3, 4]),
        ("[1.5, .5, -1.0e-3, 5e-6]", [1.5, 0.5, -0.001, 5e-6]),
        ("[~, null, true, FALSE, '']", [None, None, True, False, ""]),
        ("!!str 3", "3"),
        ("!!float 3", 3.0),
        ("=", "="),
        ("", None),
        ("\ufeffa: 1", {"a": 1}),
        ("'a\u2028b'", "a\u2028b"),
    ],
)
def test_parse_yaml_plain_values_are_text(text: str, value: object) -> None:
    assert parse_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [  # by hand, from section 10.3.2 of YAML 1.2.2
        *((text, None) for text in ("null", "Null", "NULL", "~", "")),
        *((text, True) for text in ("true", "True", "TRUE")),
        *((text, False) for text in ("false", "False", "FALSE")),
        *(("0", 0), ("-0", 0), ("010", 10), ("+0099", 99), ("0o17", 15), ("0o0", 0), ("0xfF", 255), ("09", 9)),
        *(("1.", 1.0), (".5", 0.5), ("-.5", -0.5), ("1e3", 1000.0), ("1E+2", 100.0), ("+12.e-1", 1.2), ("00.5", 0.5)),
        *((".inf", math.inf), ("-.Inf", -math.inf), ("+.INF", math.inf), ("0e9", 0.0)),
    ],
)
def test_parse_yaml_scalars_follow_core_schema(text: str, value: object) -> None:
    read = parse_yaml(f"a: {text}")["a"]
    assert read == value
    assert type(read) is type(value)
    assert math.isnan(parse_yaml("a: .NaN")["a"])


NO_NUMBERS = """
    1_000 1:30 190:20:30 1:30.5 0b11 0o18 0o 0x 0x_ 0b_ -0x1F -0o17 017_7 1_0.5 1_0e3 1e 1e+ . +. -. ++1 1.2.3 tRUE
    NuLL nan inf
    .iNF -.nan +.nan yes Yes NO no on ON off Off y n infinity 2024-01-01 ٣ ١.٥ 1e٣
"""


@pytest.mark.parametrize("text", NO_NUMBERS.split())
def test_parse_yaml_numbers_of_yaml_1_1_are_text(text: str) -> None:
    assert parse_yaml(f"a: {text}") == {"a": text}
    assert parse_override(f"a={text}") == ("a", text)
    assert parse_yaml(f"{text}: 1") == {text: 1}
    for key, value_type in (("n", int), ("x", float), ("b", bool)):
        with pytest.raises(ConfigError, match=f"{key} must be .*, got '"):
            check_option(key, text, value_type, Option("a value"))


def test_parse_yaml_keys_are_text() -> None:
    keys = ["010", "1", "0x1", "1e3", "yes", "null", "~", "1_000", "2024-01-01", "true"]
    assert list(parse_yaml("".join(f"{key}: 1\n" for key in keys))) == keys


def test_load_config_number_for_text_raises() -> None:
    with raises(ConfigError, "got 10"):
        load_config("configs/demo.yaml", ["name=010"])
    assert load_config("configs/demo.yaml", ['name="010"']).name == "010"


def test_dump_yaml_is_read_back_equal() -> None:
    texts = [
        *NO_NUMBERS.split(),
        "010",
        "0o17",
        "1e-3",
        "+.5",
        "1.",
        "0xff",
        "true",
        "~",
        "",
        "<<",
        "=",
        "a: b",
        "#",
        "- a",
        " a",
        "é\u2028",
    ]
    values = {**{text: text for text in texts}, "numbers": [1e-5, 1e17, 10, -3, 0.1, math.inf, True, None]}
    for on_one_line in (False, True):
        dumped = dump_yaml(values, on_one_line=on_one_line)
        assert parse_yaml(dumped) == values
        assert yaml.safe_load(dumped) == values
    for value in (*texts, 1e-5, 10, None, True, [1], {"a": "010"}):
        assert parse_value(dump_yaml(value, on_one_line=True)) == value


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a:\n  b: !!int x", r"line 2, a.b: 'x' is not a whole number"),
        ("a: !!float x", r"line 1, a: 'x' is not a number"),
        ("a: !!bool maybe", r"line 1, a: 'maybe' is not true or false"),
        ("a: !!null x", r"line 1, a: 'x' is not null"),
        ("a: !!timestamp x", r"line 1, a: the tag 'tag:yaml.org,2002:timestamp' is not allowed"),
        ("a: !!binary aGk=", "tag"),
        ("a: !!set {x, y}", "tag"),
        ("a: !!python/object/apply:os.system [x]", "tag"),
        ("a: !mine x", "tag '!mine'"),
        ("a: !!int [1]", "tag"),
        ("a: " + 5000 * "9", r"line 1, a: '9+\.\.\.9+' is not a whole number"),
        ("a: {b: {[1, 2]: 3}}", r"line 1, a.b: a list or a mapping cannot be a key"),
        ("? {a: 1}\n: 2", "a list or a mapping cannot be a key"),
        ("a: &x 1\nb: *x", r"line 1, a: anchors and aliases are not allowed, got 'x'"),
        ("b: *x", r"line 1, b: anchors"),
        ("a: 1\nb:\n  - 1\n  - {c: [}", r"line 4, b\[1\].c"),
        ("a: 1\na: 2", r'line 2, "a" occurs twice, in lines 1 and 2'),
        ("m: {1: a, '1': b}", r'line 1, m: "1" occurs twice'),
        ("a: !!int 1_000", r"line 1, a: '1_000' is not a whole number"),
        ("a: !!int 1:30", r"line 1, a: '1:30' is not a whole number"),
        ("a: !!float 1_0.5", r"line 1, a: '1_0.5' is not a number"),
        ("a: !!bool yes", r"line 1, a: 'yes' is not true or false"),
        ("a: 1e999", r"line 1, a: '1e999' is too large for a number of 64 bits"),
        ("a: 1.5e-999", r"line 1, a: '1.5e-999' is too small"),
        (2000 * "[", "nested deeper than 32 levels"),
        ("{a: " * 2000, "nested deeper than 32 levels"),
        (2000 * "- ", "nested deeper than 32 levels"),
        ('a: "x\\0y"', r"line 1, a: 'x\\x00y' contains the character NUL"),
        ("a: x\0y", r"line 1: the character U\+0000 is not allowed"),
        ("a: 1\nb: \x1b[2J", r"line 2: the character U\+001B"),
        ('a: "\\ud83d"', r"line 1, a: .* half of a character"),
        ('"\\ude00\\ud83d": 1', "half of a character"),
        ("a: \ud83d", r"U\+D83D"),
        ('a: "\\UFFFFFFFF"', r"line 1, a: an escape is not a character"),
        ("a: 1\n---\nb: 2", "line 2"),
        ("a: b: c", "line 1"),
        ("%YAML 9.9\n---\na", "line 1"),
        ("a" * (MAX_YAML_BYTES + 1), "more than 262,144 characters"),
    ],
)
def test_parse_yaml_error_names_line_and_key(text: str, sentence: str) -> None:
    with pytest.raises(Malformed, match=sentence) as raised:
        parse_yaml(text)
    assert len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)


def test_parse_yaml_aliases_raise(tmp_path: Path) -> None:
    file = tmp_path / "bomb.yaml"
    file.write_text(BOMB)
    assert len(BOMB) < 300
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with raises(ConfigError, "anchors", "aliases") as raised:
        load_config(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # kB
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("text", ["[" * MAX_YAML_BYTES, "a: [" * 1000, "? " * 5000, "'" + "x" * 200_000, "{a, " * 3000])
def test_parse_yaml_hostile_text_raises(text: str) -> None:
    with pytest.raises(Malformed):
        parse_yaml(text)


def test_read_yaml_error_names_file(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    for raw, sentence in (
        (b"a: \xff", "line 1: byte 4, 0xff, is not UTF-8"),
        (b"x" * 300_000, "more than 262,144 bytes"),
    ):
        file.write_bytes(raw)
        with pytest.raises(ConfigError, match=rf"broken\.yaml is not readable YAML: .*{sentence}"):
            read_yaml(file)
    os.mkfifo(tmp_path / "pipe.yaml")
    with raises(ConfigError, "not a file"):
        read_yaml(tmp_path / "pipe.yaml")
    with raises(ConfigError, "not a file"):
        read_yaml(tmp_path)
    with raises(ConfigError, "file name"):
        read_yaml("a\0b.yaml")
    with raises(ConfigError, "cannot be read"):
        read_yaml("x" * 5000)


def test_parse_override_follows_yaml_rules() -> None:
    assert parse_override("name=2024-02-30") == ("name", "2024-02-30")
    assert parse_override('data.train="\\ud83d\\ude00"') == ("data.train", "😀")
    for text in ("a=!!int x", "a=&x 1", "a=!!int 0x_", "a=\0", 'a="\\ud83d"', "a\0=1", "a=" + "[" * 2000, "\ud83d=1"):
        with pytest.raises(ConfigError, match="override"):
            parse_override(text)


def test_parse_json_is_bounded() -> None:
    assert parse_json('{"a": "\\ud83d\\ude00"}') == {"a": "😀"}
    assert parse_json("[" * 100 + "]" * 100)
    assert len(parse_json(json.dumps([[1]] * 1000))) == 1000
    brackets = json.dumps({"a": '["' * 5000})
    assert parse_json(brackets)["a"] == '["' * 5000
    for text in ("[" * 101 + "]" * 101, '{"a":' * 5000, '"\\ud83d"', '{"\\ude00": 1}', "[1", "9" * 5000, ""):
        with pytest.raises(Malformed) as raised:
            parse_json(text)
        assert len(str(raised.value)) < 300
    with raises(Malformed, "byte 2"):
        parse_json(b'"\xff"')
    with raises(Malformed, "a"):
        parse_json('{"a": 1, "b": {"a": 1, "a": 2}}', unique_keys=True)


def test_broken_row_names_file_and_line() -> None:
    for raw in (b'{"a": ' + b"[" * 5000, b'{"a": 1, "a": 2}', b'{"a": "\\ud83d"}', b"\xff"):
        with raises(DataError, "rows.jsonl:7", "JSON"):
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
        ("5e-6", 5e-6),
        ("010", 10),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("007x", "007x"),
        ("5", 5),
        ("true", True),
        ("null", None),
        ("", None),
        ("  ", None),
    ],
)
def test_parse_override_value_is_all_after_equals_sign(written: str, value: object) -> None:
    assert parse_override(f"name={written}") == ("name", value)


@pytest.mark.parametrize("written", ["'exp' #2", '"a" # b', "[1, 2] # x", "{a: b} #c", "maths: a/b #2", "- a #b"])
def test_parse_override_text_after_value_raises(written: str) -> None:
    with raises(ConfigError, "quotes"):
        parse_override(f"models.teachers={written}")
