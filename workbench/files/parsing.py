"""Parse untrusted text: YAML of recipes, studies, runs and overrides, JSON of rows and records.

A text may be malformed, truncated or hostile. Errors name line and key, size and depth are bounded, and duplicate keys
are refused. YAML is restricted to the types of JSON: no anchors and aliases (a few lines can expand to gigabytes), no
merges, no tags except those of plain values; dates are text.

Plain values follow the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema), not YAML 1.1 as in
PyYAML: 010 is ten, 0o17 is fifteen, 1e-4 is a number, and 1:30, 1_000, 0b11, yes, no, on and off are text. Keys are
text.
"""

import difflib
import json
import math
import re
import typing
from pathlib import Path
from typing import Any

import yaml

from workbench.errors import ConfigError, cut, show
from workbench.files.shipped import recipe_names

MAX_YAML_BYTES = 2**18
MAX_YAML_DEPTH = 32
MAX_JSON_DEPTH = 100
PLAIN_NAME = "no slashes, not empty, no leading dot, at most 200 bytes, nothing that does not print"
MAX_NUMBER = 400  # characters
_NULL, _BOOL, _INT, _FLOAT, _STR, _SEQ, _MAP = (
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")
)
_PLAIN = {_INT: "a whole number", _FLOAT: "a number", _BOOL: "true or false", _NULL: "null"}
_CORE = {  # tag -> pattern, possible first characters; in the order of matching
    _NULL: (re.compile(r"(?:~|null|Null|NULL|)"), ["~", "n", "N", ""]),
    _BOOL: (re.compile(r"(?:true|True|TRUE|false|False|FALSE)"), list("tTfF")),
    _INT: (re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)"), list("-+0123456789")),
    _FLOAT: (
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))"
        ),
        list("-+.0123456789"),
    ),
}
_OPENING = ('"', "'", "|", ">", "!", "&")  # first characters of YAML scalars that are not plain
_JSON_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)


class Malformed(ValueError):
    """An invalid text, with the problem and its place."""


def read_yaml(path: str | Path) -> dict:
    """Read the mapping of a YAML file. Raises ConfigError naming file, line and key."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a pipe would block
            raise ConfigError(f"configuration {path} is not a file. Give a YAML file.")
        with path.open("rb") as file:
            raw = file.read(MAX_YAML_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"configuration {path} does not exist. {_nearest_recipe(path)}") from None
    except OSError as error:
        raise ConfigError(f"configuration {path} cannot be read ({error.strerror}). Check its permissions.") from None
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{show(str(path))} is not a valid file name ({error}). Give a YAML file.") from None
    try:
        if len(raw) > MAX_YAML_BYTES:
            raise Malformed(f"it has more than {MAX_YAML_BYTES:,} bytes")
        loaded = parse_yaml(decode(raw))
    except Malformed as error:
        raise ConfigError(f"configuration {path} is not readable YAML: {error}.") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"configuration {path} must be a mapping of keys to values, got {type(loaded).__name__}.")
    return loaded


def _nearest_recipe(path: Path) -> str:
    """Suggest a recipe for a file that does not exist."""
    near = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.yaml")], n=1)
    if near:
        return f'Did you mean "{path.parent / near[0]}"?'
    built_in = difflib.get_close_matches(path.stem, recipe_names(), n=1)
    if built_in:
        return f'Did you mean the built-in recipe "{built_in[0]}"?'
    names = "demo or studies/main"
    return f"Give a YAML file, or the name of a built-in recipe such as {names}. `workbench init NAME` creates one."


def parse_override(text: str) -> tuple[str, Any]:
    """Parse `key.subkey=value` to key and value. Raises ConfigError.

    Everything after the = is one value: a list, a number, quoted text, or text without quotes. Unquoted text is
    verbatim: a blank and # do not start a comment, as they would in a file.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {show(text)} must look like key.subkey=value, for example training.steps=20.")
    try:
        return check_text(key.strip()), parse_value(value)
    except Malformed as error:
        raise ConfigError(
            f"override {show(text)}: {show(value)} is not a YAML value ({error}). Put quotes around it."
        ) from None


def parse_value(text: str) -> object:
    """Parse a YAML text with a single value. Raises Malformed as parse_yaml."""
    text = text.strip()
    value = parse_yaml(text)
    rest = text[_end_of_value(text) :].strip()
    is_plain = not text.startswith(_OPENING) and not isinstance(value, (dict, list))
    if is_plain and (rest or isinstance(value, str)):
        return check_text(text)
    if rest:
        raise Malformed(f"{show(rest)} follows the value")
    return value


def _end_of_value(text: str) -> int:
    """Return the end of the value in a valid YAML text, before any comment."""
    ends = [token.end_mark.index for token in yaml.scan(text, _Loader) if token.end_mark.index > token.start_mark.index]
    return max(ends, default=0)


def parse_yaml(text: str) -> object:
    """Parse a YAML text to JSON types. Raises Malformed naming line and key."""
    if len(text) > MAX_YAML_BYTES:
        raise Malformed(f"it has more than {MAX_YAML_BYTES:,} characters")
    loader = _Loader("")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _value(node, "")
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Malformed(f"line {line}: the character U+{error.character:04X} is not allowed") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise Malformed(_at(mark.line if mark else loader.line, loader.path, problem)) from None
    except (ValueError, OverflowError) as error:  # of the scanner: \\UFFFFFFFF
        if isinstance(error, Malformed):
            raise
        raise Malformed(_at(loader.line, loader.path, "an escape is not a character")) from None


class _Loader(yaml.SafeLoader):
    """YAML loader that checks bounds before it builds large values."""

    yaml_implicit_resolvers: typing.ClassVar[dict] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._parts: list[str] = []

    @property
    def path(self) -> str:
        """The key of the current node, or of the node with the error."""
        return "".join(self._parts).lstrip(".")

    def compose_node(self, parent: yaml.Node | None, index: yaml.Node | int | None) -> yaml.Node:
        self._parts.append("" if index is None else _step(index))
        event = self.peek_event()
        is_key = isinstance(parent, yaml.MappingNode) and index is None
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            _refuse(event, f"anchors and aliases are not allowed, got {show(event.anchor)}. Write the value out")
        if is_key and not isinstance(event, yaml.ScalarEvent):
            _refuse(event, "a list or a mapping cannot be a key")
        if len(self._parts) > MAX_YAML_DEPTH:
            _refuse(event, f"it is nested deeper than {MAX_YAML_DEPTH} levels")
        node = super().compose_node(parent, index)
        self._parts.pop()  # kept after an error, to name its place
        return node


class _Dumper(yaml.SafeDumper):
    """YAML dumper that quotes text with another meaning in YAML 1.1 or the core schema."""


for _tag, (_pattern, _first) in _CORE.items():
    for _resolver in (_Loader, _Dumper):
        _resolver.add_implicit_resolver(_tag, re.compile(f"{_pattern.pattern}$"), _first)


def dump_yaml(value: object, *, on_one_line: bool = False) -> str:
    """Write a value as YAML that means the same to parse_yaml and to YAML 1.1 parsers."""
    options = {"default_flow_style": True, "width": 10**6} if on_one_line else {"sort_keys": False}
    text = yaml.dump(value, Dumper=_Dumper, allow_unicode=True, **options)
    return text.removesuffix("...\n").strip() if on_one_line else text


def _refuse(event: yaml.Event, problem: str) -> None:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def _step(index: yaml.Node | int) -> str:
    """Format one step of a dotted path: .key or [2]."""
    return f"[{index}]" if isinstance(index, int) else f".{cut(index.value, 40)}"


def _at(line: int, key: str, problem: str) -> str:
    if len(key) > 120:
        key = f"{key[:58]}...{key[-58:]}"
    return f"line {line + 1}, {key + ': ' if key else ''}{' '.join(problem.split())}"


def _value(node: yaml.Node, key: str) -> object:
    """Convert a node to its value; `key` is its dotted path."""
    line = node.start_mark.line
    if isinstance(node, yaml.MappingNode) and node.tag == _MAP:
        return _mapping(node, key)
    if isinstance(node, yaml.SequenceNode) and node.tag == _SEQ:
        return [_value(item, f"{key}[{number}]") for number, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode) and node.tag == _STR:
        try:
            return check_text(node.value)
        except Malformed as error:
            raise Malformed(_at(line, key, str(error))) from None
    if isinstance(node, yaml.ScalarNode) and node.tag in _PLAIN:
        try:
            return _plain_value(node.tag, node.value)
        except Malformed as error:
            raise Malformed(_at(line, key, str(error))) from None
    problem = f"the tag {show(node.tag)} is not allowed. Write the value without it, in quotes if it is text"
    raise Malformed(_at(line, key, problem))


def _plain_value(tag: str, text: str) -> object:
    """Convert a plain scalar. Raises Malformed if it does not match the tag, or if a number over- or underflows."""
    pattern, _ = _CORE[tag]
    is_number = len(text) <= MAX_NUMBER and (
        pattern.fullmatch(text) or (tag == _FLOAT and _CORE[_INT][0].fullmatch(text))
    )
    if not is_number:
        raise Malformed(f"{show(text)} is not {_PLAIN[tag]}")
    if tag == _NULL:
        return None
    if tag == _BOOL:
        return text.lower() == "true"
    if tag == _INT or text[:2] in ("0o", "0x"):
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text, base) if tag == _INT else float(int(text, base))
    if text[-1] in "fFnN":  # .inf, .nan
        return float(text.replace(".", ""))
    value = float(text)
    if math.isinf(value) or (value == 0.0 and re.search("[1-9]", re.split("[eE]", text)[0])):
        raise Malformed(f"{show(text)} is too {'large' if value else 'small'} for a number of 64 bits")
    return value


def _mapping(node: yaml.MappingNode, prefix: str) -> dict:
    values, lines = {}, {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line
        _value(key_node, prefix)  # refuses invalid tags and characters
        key = check_text(key_node.value)
        if key in values:
            raise Malformed(
                _at(line, prefix, f'"{cut(key_node.value, 40)}" occurs twice, in lines {lines[key] + 1} and {line + 1}')
            )
        lines[key] = line
        values[key] = _value(value_node, f"{prefix}.{cut(key, 40)}".lstrip("."))
    return values


def check_text(text: str) -> str:
    """Return the text with surrogate pairs (\\ud83d\\ude00) joined to characters.

    Raises: Malformed if it contains NUL or a lone surrogate, which neither names nor files can.
    """
    if "\0" in text:
        raise Malformed(f"{show(text)} contains the character NUL")
    if text.isascii():
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise Malformed(
            f"{show(text)} contains half of a character (a lone surrogate such as \\ud83d, or bytes that are not UTF-8)"
        ) from None


def is_plain_name(name: str) -> bool:
    """Whether a text is a valid folder name: printable, no slashes, no leading dot, 1 to 200 bytes."""
    try:
        is_short = 0 < len(name.encode()) <= 200
    except UnicodeEncodeError:
        return False
    return is_short and name.isprintable() and Path(name).name == name and "\\" not in name and not name.startswith(".")


def decode(raw: bytes) -> str:
    """Decode UTF-8, with or without a byte order mark. Raises Malformed naming the invalid byte."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Malformed(f"line {line}: byte {error.start + 1}, 0x{raw[error.start]:02x}, is not UTF-8") from None


def read_object(file: Path) -> dict:
    """Read the JSON object of a file. Raises OSError, or Malformed with the problem."""
    value = parse_json(file.read_bytes())
    if not isinstance(value, dict):
        raise Malformed(f"it must be an object {{...}}, got {show(value)}")
    return value


def parse_json(text: str | bytes, *, unique_keys: bool = False) -> Any:
    """Parse a JSON text. Raises Malformed with the problem.

    unique_keys  refuse duplicate keys in an object; otherwise the last value counts
    """
    text = decode(text) if isinstance(text, bytes) else text
    if text.count("[") + text.count("{") > MAX_JSON_DEPTH and _depth(text) > MAX_JSON_DEPTH:
        raise Malformed(f"it is nested deeper than {MAX_JSON_DEPTH} levels")
    try:
        value = json.loads(text, object_pairs_hook=_once if unique_keys else None)
    except Malformed:
        raise
    except ValueError as error:
        raise Malformed(str(error)) from None
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise Malformed(f"the escape {half} is half of a character; its other half is missing") from None
    return value


def _depth(text: str) -> int:
    """Return the nesting depth of a JSON text."""
    depth = deepest = 0
    for bracket in _JSON_BRACKETS.finditer(text):
        sign = bracket[0]
        if sign in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif sign in "]}":
            depth -= 1
    return deepest


def _once(pairs: list[tuple[str, object]]) -> dict:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for idx, key in enumerate(keys) if key in keys[:idx])
        raise Malformed(f'the key "{cut(twice, 40)}" occurs twice in one object')
    return values


def flatten(values: dict, prefix: str = "") -> dict[str, object]:
    """Flatten nested values to dotted keys. An empty mapping stays a value."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat
