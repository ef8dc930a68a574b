"""Several sources of training examples: what an entry may be, ids, domains, and counts."""

import json
from pathlib import Path

import pytest
from failures import raises

from workbench.data.mixture import describe_sources, load_mixture, order_of
from workbench.data.source_list import Source, parse_sources, paths_in
from workbench.errors import ConfigError, DataError
from workbench.seeding import EpochOrder


def write(file: Path, rows: list[dict]) -> str:
    file.write_text("".join(json.dumps({"question": "What?", **row}) + "\n" for row in rows))
    return str(file)


def test_parse_sources_of_path_is_that_path() -> None:
    assert parse_sources("a.jsonl") == (Source("a.jsonl"),)


def test_parse_sources_defaults_are_weight_one_and_stem() -> None:
    sources = parse_sources(["x/a.jsonl", {"path": "x/b.jsonl", "weight": 2, "domain": "charts"}, "scenes:train"])
    assert [source.name for source in sources] == ["a", "b", "scenes:train"]
    assert [source.weight for source in sources] == [1.0, 2.0, 1.0]
    assert [source.domain for source in sources] == ["", "charts", ""]
    assert [source.name for source in parse_sources(["x/a.jsonl", "y/a.jsonl"])] == ["x/a.jsonl", "y/a.jsonl"]


@pytest.mark.parametrize(
    ("entries", "names"),
    [
        (["a", {"path": "b", "weight": 0}], ["data.train[1].weight", "0"]),
        ([{"path": "b", "weight": -1.5}], ["data.train[0].weight", "-1.5"]),
        ([{"path": "b", "weight": True}], ["data.train[0].weight", "True"]),
        ([{"path": "b", "weight": float("inf")}], ["data.train[0].weight", "inf"]),
        ([{"path": "b", "wieght": 1}], ["data.train[0].wieght", 'Did you mean "data.train[0].weight"']),
        ([{"weight": 1}], ["data.train[0].path"]),
        ([3], ["data.train[0]", "3"]),
        ([{"path": "b", "domain": 4}], ["data.train[0].domain", "4"]),
        (["a", {"path": "a", "weight": 2}], ["data.train[1].path", '"a"', "data.train[0]"]),
        ([{"path": "a", "name": "n"}, {"path": "b", "name": "n"}], ["data.train[1].name", '"n"', "data.train[0]"]),
    ],
)
def test_parse_sources_mistakes_raise_with_place(entries: list, names: list[str]) -> None:
    with raises(ConfigError, *names):
        parse_sources(entries)


def test_load_mixture_names_source_in_ids_and_gives_domains(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [{"hint": "left"}, {"hint": "right", "domain": "maps"}])
    second = write(tmp_path / "b.jsonl", [{"hint": "top"}])
    sources = parse_sources([{"path": first, "domain": "charts", "weight": 3}, second])
    examples = load_mixture(sources)
    assert [(example.id, example.domain, example.source) for example in examples] == [
        ("a/1", "charts", "a"),
        ("a/2", "maps", "a"),
        ("b/1", "", "b"),
    ]
    first_line, second_line = describe_sources(examples, examples[:2], sources, 8)
    assert (
        first_line
        == "a: 2 of 2 examples, 75.0% of the draws, 3.00 passes, domain charts (1 rows keep a domain of their own)"
    )
    assert second_line.startswith("b: 0 of 1 examples, 25.0%")
    with raises(DataError, "data.train[1]", second):
        order_of(examples[:2], sources, 0)


def test_load_mixture_of_one_source_equals_its_path(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{}, {}])
    assert load_mixture(parse_sources([path])) == load_mixture(parse_sources(path))
    assert isinstance(order_of(load_mixture(parse_sources(path)), parse_sources(path), 0), EpochOrder)


def test_load_mixture_finds_wrong_evidence_within_given_domain(tmp_path: Path) -> None:
    rows = [{"hint": "left", "answer": "1"}, {"hint": "right", "answer": "2"}]
    sources = parse_sources([{"path": write(tmp_path / "a.jsonl", rows), "domain": "charts"}, "scenes:train?count=2"])
    first, second, scene, _ = load_mixture(sources)
    assert first.others.find(first, "hint").id == second.id
    assert scene.others.find(scene, "hint").domain == scene.domain


def test_load_mixture_of_empty_source_raises_with_entry(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with raises(DataError, "data.train[1]", "empty.jsonl"):
        load_mixture(parse_sources(["scenes:train?count=2", str(tmp_path / "empty.jsonl")]))


def test_paths_in_every_form() -> None:
    assert paths_in("a") == ["a"]
    assert paths_in(["a", {"path": "b", "weight": 2}]) == ["a", "b"]
    assert paths_in({"x": "a", "y": {"path": "b"}}) == ["a", "b"]
    assert paths_in(None) == []
