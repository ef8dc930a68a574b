"""CCOPD: direction of its loss, where it is, what it is read after, and what is left out."""

import json
from dataclasses import replace

import pytest
import torch
from small import example, groups, run_config, table_policies

from workbench.distill.routing import answer_positions
from workbench.distill.scoring import Batch
from workbench.distill.step import compute_step, score_batch
from workbench.methods import load_method
from workbench.traces.reader import open_traces
from workbench.training.run import train
from workbench.types import Mark, Rollout, RouteBatch


def supervised(rollouts: tuple = (), **options: object):
    policies, method = table_policies(), load_method("ccopd", options)
    batch = Batch(rollouts or groups(3, 2))
    return compute_step(method, policies, score_batch(method, policies, batch), seed=0), policies, batch


def test_ccopd_divergence_direction_is_reverse_kl() -> None:
    scored, policies, batch = supervised()
    rows = batch.position
    student, frozen = policies["student"].tables["turns"][rows], policies["student@start"].tables["plain"][rows]
    s, t = student.log_softmax(-1), frozen.log_softmax(-1)
    reverse, forward = (s.exp() * (s - t)).sum(-1), (t.exp() * (t - s)).sum(-1)
    assert torch.allclose(scored.loss, reverse.detach(), atol=1e-5)
    assert not torch.allclose(reverse, forward, atol=0.1)
    assert torch.allclose(supervised(divergence="forward_kl")[0].loss, forward.detach(), atol=1e-5)


def test_ccopd_without_history_at_start_has_zero_loss() -> None:
    assert supervised(student_context="plain")[0].loss.abs().max() < 1e-6


def test_ccopd_answer_option_has_loss_on_answer_tokens_only() -> None:
    marked = example(question="A? B.", marks=(Mark(r"^\d+ (\d+)", "answer"),))
    given = {"ids": (5, 3, 7, 0), "text": "5 3 7", "finished": True, "logprobs": None, "replies": ("1",)}
    rollouts = (Rollout(marked, 0, **given), Rollout(replace(marked, marks=()), 0, **given))
    scored = supervised(rollouts, positions="answer")[0]
    assert (scored.loss > 0).tolist() == [False, True, False, False, True, True, True, False]
    assert float(scored.loss_normalizer[1]) == pytest.approx(0.5)  # the only supervised token of one of two answers


def test_answer_positions_find_final_answer_tokens() -> None:
    texts = {(1, 2, 3, 4): ["so ", "the answer is ", "4", "."], (6,): ["."]}
    rollouts = tuple(
        Rollout(example(), 0, ids, "".join(values), finished=False, logprobs=None) for ids, values in texts.items()
    )
    zeros = torch.zeros(5, dtype=torch.long)
    batch = RouteBatch({}, zeros, zeros, zeros, rollouts, 0, lambda ids: texts[ids])
    assert answer_positions(batch).tolist() == [False, False, True, False, False]


def test_ccopd_run_trains_on_the_last_turn_only(models, tmp_path) -> None:
    rows = [{"question": "What is the tag? A star. It is red.", "answer": "A"}, {"question": "What?", "answer": "B"}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = run_config(
        models,
        tmp_path,
        method={"name": "ccopd"},
        data={"train": str(tmp_path / "data.jsonl"), "eval": None},
        training__steps=1,
        training__batch_size=1,
    )
    result = train(config)
    assert result.skipped == {"no turns (or a question of several sentences)": 1}
    traces = open_traces(result.run_dir)
    for table in ("", "probe_"):
        columns = "history_student AS h, history_canonical AS c, prompt_student AS p, prompt_canonical AS q"
        query = f"SELECT {columns} FROM {table}rollouts"
        (row, *_) = traces.sql(query).to_pylist()
        assert [turn["role"] for turn in row["h"]] == ["user", "assistant", "user", "assistant"]
        assert [turn["text"] for turn in row["h"]][::2] == ["What is the tag?", "A star."]
        assert (row["c"], row["p"], row["q"]) == ([], "It is red.", rows[0]["question"])
    written = traces.sql("SELECT sum(num_positions) AS n FROM rollouts").to_pylist()
    assert (
        written
        == traces.sql("SELECT count(*) AS n FROM tokens WHERE regime = 'ANSWER' AND loss IS NOT NULL").to_pylist()
    )
    losses = traces.sql("SELECT max(loss) AS most FROM tokens").to_pylist()
    assert losses[0]["most"] > 0
