"""Addresses of answers, and quotes of a document checked against the trace."""

import json
from pathlib import Path

import pytest
from failures import raises

from workbench.analysis.addresses import AnswerAddress, is_answer_address, name_in, parse_address
from workbench.analysis.query import open_answers
from workbench.analysis.quotes import check_quotes, read_quotes
from workbench.cli import main
from workbench.errors import RunError, TraceError
from workbench.traces.reader import open_traces

BASE = "http://127.0.0.1:7860"


@pytest.fixture(scope="module")
def answers(trained: Path):
    return open_answers(trained / "dopd", runs_dir=trained)


def faults(answers, document: str) -> list[str]:
    return [checked.fault for checked in check_quotes(document, answers.traced)]


@pytest.mark.parametrize(
    "address",
    [
        AnswerAddress("demo", 30, 4),
        AnswerAddress("grid/dopd-0", 0, 0, process=1, probe=True, token=0),
        AnswerAddress("a name & more=1", 30, 4, token=17),
    ],
)
def test_address_written_and_parsed_is_equal(address: AnswerAddress) -> None:
    assert parse_address(address.url("https://wb.example.org/lab/")) == address
    assert is_answer_address(address.url())


def test_address_has_parameters_of_page() -> None:
    url = AnswerAddress("demo", 30, 4, token=17).url()
    assert url == f"{BASE}/?run=demo&tab=answers&step=30&rollout=4&token=17"
    assert not is_answer_address(f"{BASE}/?run=demo&tab=training") and not is_answer_address("docs/app.md")


@pytest.mark.parametrize(
    ("query", "named"),
    [("run=a&step=x&rollout=0", "step='x'"), ("run=a&step=1", "rollout"), ("step=1&rollout=2", "run")],
)
def test_parse_address_wrong_parameter_is_named(query: str, named: str) -> None:
    with raises(TraceError, named):
        parse_address(f"{BASE}/?tab=answers&{query}")


def test_name_in_runs_folder_is_that_of_page(tmp_path: Path) -> None:
    for folder in ("runs/a", "runs/grid/b", "elsewhere/c"):
        (tmp_path / folder).mkdir(parents=True)
    assert name_in(tmp_path / "runs/a", tmp_path / "runs") == ("a", tmp_path / "runs")
    assert name_in(tmp_path / "runs/grid/b", tmp_path / "runs") == ("grid/b", tmp_path / "runs")
    assert name_in(tmp_path / "elsewhere/c", tmp_path / "runs") == ("c", tmp_path / "elsewhere")
    with raises(RunError, "does not exist"):
        name_in(tmp_path / "runs/gone", tmp_path / "runs")


def test_answers_list_equals_table_and_pages(answers, trained: Path) -> None:
    assert answers.count() == 24 == len(answers.select(limit=100))
    pages = [*answers.select(limit=13), *answers.select(limit=13, offset=13)]
    assert pages == answers.select(limit=100)
    first = pages[0]
    row = open_traces(trained / "dopd").rollout(first["step"], first["rollout"]).row
    assert (first["answer"], first["expected"], first["question"]) == (
        row["completion"],
        row["answer"],
        row["question"],
    )
    assert first["regimes"] == dict(row["regime_counts"])
    assert parse_address(first["address"]) == AnswerAddress("dopd", first["step"], first["rollout"])
    wrong = answers.select("grade=incorrect", limit=100)
    assert all(answer["right"] is False for answer in wrong)
    for limit in (0, 501):
        with raises(TraceError, str(limit)):
            answers.select(limit=limit)


def test_answer_has_tokens_with_recorded_numbers(answers, trained: Path) -> None:
    answer = answers.get(4, 1, token=0)
    traced = open_traces(trained / "dopd").rollout(4, 1)
    assert [token["token_id"] for token in answer["tokens"]] == [position["token_id"] for position in traced.tokens]
    assert answer["tokens"][0]["information_gap"] == traced.tokens[0]["information_gap"]
    assert answer["views"]["self"]["context"] == "crop" and answer["address"].endswith("token=0")
    assert json.loads(json.dumps(answer)) == answer


@pytest.mark.parametrize(
    ("address", "listed"),
    [((99, 0, None), "1, 2, 3, 4"), ((4, 99, None), "0, 1, 2, 3, 4, 5"), ((4, 0, 99), "token 99")],
)
def test_answer_not_recorded_names_recorded(answers, address: tuple, listed: str) -> None:
    step, rollout, token = address
    with raises(TraceError, listed):
        answers.get(step, rollout, token=token)


def test_quotes_written_are_in_trace(answers) -> None:
    count = len(answers.get(4, 0)["tokens"])
    parts = [answers.quote(4, 0), answers.quote(3, 2, token=0), answers.quote(4, 0, token=0, last=count - 1)]
    quotes = check_quotes("\n\nBetween, prose.\n\n".join(parts), answers.traced)
    assert [(checked.quote.kind, checked.fault) for checked in quotes] == [("text", "")] * 3


def test_quotes_changed_text_or_number_is_a_fault(answers) -> None:
    address = AnswerAddress("dopd", 4, 0, token=0)
    token = answers.get(4, 0)["tokens"][0]
    gap = token["information_gap"]
    text = json.dumps(token["token_text"])
    good = [
        f"[information_gap {gap:.2f}]",
        f"[information_gap {gap:.4f}]",
        f"[regime={token['regime']}]",
        "[this token]",
    ]
    bad = [f"[information_gap {gap + 0.011:.2f}]", "[regime=XX]", "[no_such_value 3]", '["not what it sampled"]']
    assert faults(answers, " ".join(f"{part}({address.url()})" for part in [*good, f"[{text}]"])) == [""] * 5
    assert all(faults(answers, " ".join(f"{part}({address.url()})" for part in bad)))


def test_quotes_block_parts_in_order_only(answers) -> None:
    text = answers.get(4, 0)["answer"]
    half = len(text) // 2
    source = f"> — [here]({AnswerAddress('dopd', 4, 0).url()})"
    assert faults(answers, f"> {text[:half]}[…]{text[half + 1 :]}\n{source}") == [""]
    assert faults(answers, f"> invented words\n{source}")[0]


def test_quotes_unrecorded_answer_or_missing_run_is_a_fault(answers) -> None:
    (fault,) = faults(answers, f"[it]({AnswerAddress('dopd', 99, 0).url()})")
    assert "1, 2, 3, 4" in fault
    (fault,) = faults(answers, f"[it]({BASE}/?tab=answers&step=1&rollout=0)")
    assert "run is missing" in fault


def test_read_quotes_code_and_other_links_are_left_out() -> None:
    url = AnswerAddress("dopd", 4, 0).url()
    document = f'```\n["a"]({url})\n```\n[docs](docs/app.md) and ["a [b]"]({url})\n'
    (quote,) = read_quotes(document)
    assert (quote.line, quote.kind, quote.text) == (4, "text", "a [b]")


def test_commands_open_and_quote_check(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opening = ["open", str(trained / "dopd"), "--step", "4", "--rollout", "1", "--runs", str(trained)]
    assert main([*opening, "--token", "0", "--base", "http://host:1/lab"]) == 0
    assert capsys.readouterr().out == "http://host:1/lab/?run=dopd&tab=answers&step=4&rollout=1&token=0\n"
    assert main([*opening, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 4
    assert main([*opening, "--quote"]) == 0
    document = tmp_path / "report.md"
    document.write_text(capsys.readouterr().out)
    assert main(["quote-check", str(document), "--runs", str(trained)]) == 0
    document.write_text(document.read_text().replace("&step=4", "&step=3").replace("run=dopd", "run=gone"))
    assert main(["quote-check", str(document), "--runs", str(trained)]) == 1
    assert f"{document}:2:" in capsys.readouterr().out
    assert main([*opening, "--token", "999"]) == 2
    assert main([*opening, "--last", "3"]) == 2
    assert main(["quote-check", str(tmp_path / "gone.md")]) == 2
