import re

import pytest

from workbench.errors import TraceError
from workbench.traces.selection import Condition, Selection, parse_selection


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        ("", []),
        ("red", [("text", "contains", "red")]),
        ("and/or  50%", [("text", "contains", "and/or"), ("text", "contains", "50%")]),
        ('"red cross" 你好', [("text", "contains", "red cross"), ("text", "contains", "你好")]),
        (r'"say \"no\" \\"', [("text", "contains", 'say "no" \\')]),
        ("/re(d|al) x/", [("text", "matches", "re(d|al) x")]),
        (r"answer:/a\/b\d/i", [("answer", "matches", r"(?i)a/b\d")]),
        ("question:what", [("question", "contains", "what")]),
        ("tokens>=200 loss<.5", [("tokens", ">=", 200), ("loss", "<", 0.5)]),
        ("step=30 reward!=1", [("step", "=", 30), ("reward", "!=", 1)]),
        ('domain="two words" grade=incorrect', [("domain", "=", "two words"), ("grade", "=", "incorrect")]),
        ('token.token_type=""', [("token.token_type", "=", "")]),
        (
            "token.regime=HS token.entropy_teacher>2e-1",
            [("token.regime", "=", "HS"), ("token.entropy_teacher", ">", 0.2)],
        ),
    ],
)
def test_parse_selection_reads_conditions_and_writes_them_again(text, conditions):
    selection = parse_selection(text)
    assert [(item.field, item.operator, item.value) for item in selection.conditions] == conditions
    assert parse_selection(selection.text) == selection


def test_parse_selection_reads_source_and_order():
    assert parse_selection("in:probes sort:loss") == Selection((), "probes", "loss", descending=False)
    assert parse_selection("sort:-abs_information_gap").text == "sort:-abs_information_gap"
    assert parse_selection("in:evaluation confidence>0.9 context=plain").source == "evaluation"
    assert parse_selection("sort:-step").text == parse_selection("").text == ""


@pytest.mark.parametrize(
    ("text", "start", "words"),
    [
        ("red tokens>many", 5, "many"),
        ("tokns>3", 1, "tokens"),
        ("domain>3", 1, "domain"),
        ("tokens:3", 1, "tokens"),
        ("tokens>nan", 1, "nan"),
        ("red /a(b/", 6, "missing"),
        ("answer:/x[z/", 10, "missing"),
        ("/a/x", 4, "flag"),
        ("/(?=a)/", 2, "invalid"),
        ('red "blue', 5, "quotation"),
        ('red"blue"', 1, "quotation"),
        ("domain= x", 1, "value"),
        ("answer:", 1, "value"),
        ('answer:""', 1, "empty"),
        ("in:probe", 1, "probes"),
        ("sort:token.loss", 1, "loss"),
        ("grade=right", 1, "correct"),
        ("in:evaluation token.regime=HS", 15, "token.regime"),
        ("answer=/red/", 1, "answer:/"),
        (">3", 1, "field"),
    ],
)
def test_parse_selection_bad_term_raises_with_its_place(text, start, words):
    with pytest.raises(TraceError, match=re.escape(words)) as caught:
        parse_selection(text)
    assert f"(filter, character {start})" in str(caught.value)


def test_selection_of_adds_equalities():
    selection = Selection.of("red", source="probes", step=3, regime="HS", domain=None)
    assert selection.text == "in:probes red step=3 token.regime=HS"
    assert selection.value_of("step") == 3 and selection.value_of("domain") is None
    assert selection.of_tokens == (Condition("token.regime", "=", "HS"),)
    assert selection.without("text", "step").text == "in:probes token.regime=HS"
    with pytest.raises(TraceError, match="regimes"):
        Selection.of(regimes="HS")
