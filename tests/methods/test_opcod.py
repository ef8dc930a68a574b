"""OPCoD on answers written by hand: which peer gives feedback, which lines are kept; without lines no loss."""

from dataclasses import replace

import pytest
from failures import raises
from small import example, groups, run_config, table_policies

from workbench.distill.rollouts import request_peer_feedback
from workbench.distill.scoring import Batch
from workbench.distill.step import compute_step, score_batch
from workbench.errors import ConfigError
from workbench.methods import load_method
from workbench.policies import SamplingOptions
from workbench.traces.reader import open_traces
from workbench.training.run import train
from workbench.types import Rollout

STAR = example(0, question="what color is the star?", answer="red")
REDS = example(1, question="how many red objects are there?", answer="2")
RIGHT = {STAR.id: "at top left, color red, answer red", REDS.id: "at top left, at middle right, answer 2"}
WRONG = {STAR.id: "at bottom, color blue, answer blue", REDS.id: "at bottom, answer 1"}


def answers(star: str, reds: str) -> tuple[Rollout, ...]:
    """Answers to both questions, one per letter: r right, w wrong."""
    created = []
    for item, outcomes in ((STAR, star), (REDS, reds)):
        for number, letter in enumerate(outcomes):
            text = (RIGHT if letter == "r" else WRONG)[item.id]
            created.append(Rollout(item, number, (number,), text, True, None, float(letter == "r")))
    return tuple(created)


def annotated(values: tuple[Rollout, ...], *peers: tuple[Rollout, ...], **options: object) -> list[tuple]:
    """Feedback and annotations of each of `own`. By default without anchor: clauses of `answers` name places only."""
    rollouts = load_method("opcod", {"anchor": False} | options).annotate(values, *peers)
    return [(rollout.feedback, dict(rollout.annotations)) for rollout in rollouts]


@pytest.mark.parametrize(
    ("exchange", "star", "heard"),
    [
        ("gated", "rw", True),
        ("gated", "rwww", False),
        ("gated", "ww", False),
        ("ungated", "ww", True),
        ("none", "rr", False),
    ],
)
def test_opcod_peer_that_knows_the_question_gives_feedback(exchange: str, star: str, heard: bool) -> None:
    (feedback, facts), *_ = annotated(answers("ww", "ww"), answers(star, "ww"), exchange=exchange)
    position = "top left" if "r" in star else "bottom"
    assert feedback == (f"hint: at {position}" if heard else None)
    assert facts["gate_open"] == float(star in ("rw",)) and facts["lines_kept"] == float(heard)


def test_opcod_line_with_answer_is_dropped_unless_leak() -> None:
    values, peer = answers("w", "w"), answers("r", "r")
    (star, facts), (reds, _) = annotated(values, peer)
    assert (star, reds) == (
        "hint: at top left",
        "hint: at top left and at middle right",
    )
    assert facts["lines_telling"] == 2.0
    (star, facts), _ = annotated(values, peer, leak=True)
    assert star == "hint: at top left and color red and answer red"
    assert facts["lines_telling"] == 0.0
    wrong, _ = annotated(values, answers("w", "w"), exchange="ungated")  # wrong answers give hints neither
    assert wrong[0] == "hint: at bottom"


def test_opcod_anchor_keeps_clauses_of_the_question() -> None:
    """Worked by hand. The question's words: what, color, is, the, star; with one question of its family all but the
    common ones are anchors, so color and star are. "two stars" names a star; "at top left" and "I like trains" name
    neither; "color red" and "answer red" hold the answer.
    """
    text = "two stars, at top left, I like trains, color red, answer red"
    values, peer = (
        Rollout(STAR, 0, (0,), output, True, None, right) for output, right in (("answer blue", 0.0), (text, 1.0))
    )
    kept = {True: "hint: two stars", False: "hint: two stars and at top left and I like trains"}
    dropped = {True: (3.0, 1.0), False: (0.0, 2.0)}  # off topic: place, trains, "answer red"; telling: "color red"
    for anchor in (True, False):
        ((feedback, facts),) = annotated((values,), (peer,), anchor=anchor)
        assert feedback == kept[anchor]
        assert (facts["lines_off_topic"], facts["lines_telling"]) == dropped[anchor]
    assert load_method("opcod").options.anchor  # as in the paper


def test_opcod_line_off_topic_is_dropped() -> None:
    peer = [replace(answer, remarks=("look at the stars\nI like trains\nit is red",)) for answer in answers("w", "w")]
    (star, facts), (reds, _) = annotated(tuple(peer), answers("r", "r"), feedback="reply", anchor=True)
    assert star == "hint: look at the stars" and facts["lines_off_topic"] == 2.0
    assert reds == "hint: it is red"
    (star, facts), _ = annotated(tuple(peer), answers("r", "r"), feedback="reply", anchor=False)
    assert star == "hint: look at the stars and I like trains" and facts["lines_telling"] == 1.0


def test_opcod_words_of_whole_family_anchor_nothing() -> None:
    pairs = ("red star", "blue ring"), ("green cross", "pink square"), ("black disc", "white bar")
    family = [
        example(idx, question=f"do the {element} and the {other} have the same tag?", domain="compare", answer="yes")
        for idx, (element, other) in enumerate(pairs)
    ]
    printed = (
        "compare the same tag of both\nthe pink square has the same tag\nlook at the stars\nthe ring is at the bottom"
    )
    answers_of_peer = tuple(Rollout(each, 0, (0,), "answer no", True, None, 0.0, remarks=(printed,)) for each in family)
    peer = tuple(Rollout(entry, 0, (0,), "at top left, answer yes", True, None, 1.0) for entry in family)
    displayed = annotated(answers_of_peer, peer, feedback="reply", anchor=True)
    assert [feedback for feedback, _ in displayed] == [
        "hint: look at the stars and the ring is at the bottom",
        "hint: the pink square has the same tag",
        None,
    ]
    assert [facts["lines_off_topic"] for _, facts in displayed] == [2.0, 3.0, 4.0]
    unsure = tuple(replace(item, reward=0.0, text=f"answer {position}") for position, item in enumerate(peer))
    speaking = {"exchange": "ungated", "noise": 1.0, "leak": True}  # of the next question
    assert [feedback for feedback, _ in annotated(answers_of_peer, unsure, **speaking, anchor=True)] == [None] * 3
    assert annotated(answers_of_peer, unsure, **speaking)[0][0] == "hint: answer 1"
    assert annotated(answers_of_peer, unsure, exchange="ungated", leak=True)[0][0] == "hint: answer 0"


def test_opcod_ungated_peer_speaks_of_another_question() -> None:
    values, peer = answers("w", "w"), answers("w", "r")
    (star, facts), _ = annotated(values, peer, exchange="ungated", noise=1.0, leak=True, anchor=True)
    assert star is None and facts["lines_off_topic"] == 3.0
    (star, _), (reds, _) = annotated(values, peer, exchange="ungated", noise=1.0, leak=True)
    assert star == f"hint: {' and '.join(RIGHT[REDS.id].split(', '))}" == reds  # of the question that it knows


def test_opcod_own_other_right_answer_is_shown() -> None:
    matches = [feedback for feedback, _ in annotated(answers("rw", "rr"), exchange="none")]
    assert matches == [
        None,
        f"reference: {RIGHT[STAR.id]}",
        f"reference: {RIGHT[REDS.id]}",
        f"reference: {RIGHT[REDS.id]}",
    ]
    both, _ = annotated(answers("wr", "w"), answers("r", "r"))[0]
    assert both == f"hint: at top left\nreference: {RIGHT[STAR.id]}"


def supervised(rollouts: tuple[Rollout, ...], *peers: tuple[Rollout, ...]):
    method, policies = load_method("opcod"), table_policies()
    scored_batch = score_batch(method, policies, Batch(rollouts), peers)
    scored = compute_step(method, policies, scored_batch, seed=0, backward=lambda total: total.backward())
    return scored, policies["student"].tables["plain"].grad


def test_opcod_without_feedback_has_zero_loss_and_gradient() -> None:
    rollouts = tuple(replace(group, reward=0.0) for group in groups(3, 1, 7, 5))
    scored, gradient = supervised(rollouts, rollouts)
    assert scored.loss.tolist() == [0.0] * 16 and bool((gradient == 0).all())
    assert set(scored.routing.regime.tolist()) == {0} and next(iter(scored.method.regimes)) == "NONE"
    scored, gradient = supervised(groups(3, 1, 7, 5))  # each second answer is right
    by_rollout = dict(zip(scored.batch.sequence.tolist(), scored.routing.regime.tolist(), strict=True))
    assert by_rollout == {0: 1, 1: 0, 2: 1, 3: 0}
    assert bool((gradient != 0).any()) and bool((scored.loss[scored.routing.regime == 0] == 0).all())


def test_opcod_peers_reply_to_each_answer() -> None:
    students = table_policies()
    students = {"student": students["student"], "ann": students["teacher"]}
    written = {name: groups(3, 2) for name in students}
    result = request_peer_feedback(written, students, "say {text}", sampling=SamplingOptions(4), seed=(0,))
    remarks = {name: [each.remarks for each in result[name]] for name in students}
    assert all(len(entry) == 1 for remark in remarks.values() for entry in remark)
    assert remarks["student"] != remarks["ann"]
    again = request_peer_feedback(written, students, "say {text}", sampling=SamplingOptions(4), seed=(0,))
    assert [item.remarks for item in again["ann"]] == remarks["ann"]


def test_opcod_without_peer_raises(models: dict, tmp_path) -> None:
    with raises(ConfigError, "2 students", "models.peers"):
        run_config(models, tmp_path, method={"name": "opcod"})
    run_config(models, tmp_path, method={"name": "opcod", "exchange": "none"})


def test_opcod_option_without_effect_raises() -> None:
    with raises(ConfigError, "method.noise=0.5"):
        load_method("opcod", {"noise": 0.5, "feedback": "reply"})


def test_opcod_run_trains_on_peer_replies(models: dict, tmp_path) -> None:
    method = {"name": "opcod", "feedback": "reply", "exchange": "ungated", "anchor": False, "leak": True}
    config = run_config(
        models,
        tmp_path,
        method=method,
        models__peers={"ann": str(models["student"])},
        training__steps=1,
        training__batch_size=1,
        data__eval=None,
        trace__probes=0,
    )
    traces = open_traces(train(config).run_dir)
    rows = traces.sql("SELECT * FROM rollouts").to_pylist()
    assert {row["learner"] for row in rows} == {"student", "ann"}
    heard = [row for row in rows if dict(row["annotations"])["lines_kept"]]
    assert heard
    for row in heard:
        hint = row["prompt_self"].removeprefix(row["prompt_student"])
        assert hint.startswith("\nhint: ") and hint.strip() != "hint:"
    by_regime = traces.sql("SELECT regime, max(abs(loss)) AS most FROM tokens GROUP BY 1").to_pylist()
    assert {row["regime"]: row["most"] > 0 for row in by_regime}["PEER"]
