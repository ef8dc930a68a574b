import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image

from workbench.errors import TraceError
from workbench.traces.reader import open_traces
from workbench.traces.writer import TraceWriter
from workbench.types import Prompt

SCORES = ("logprob", "entropy", "max_logprob", "rank")


def writer(folder, **options) -> TraceWriter:
    return TraceWriter(folder, method="dopd", policy_text=lambda token: f"<{token}>", **options)


def column(folder, name, table="tokens"):
    order = "step, process_rank, rollout_idx" + (", position" if "tokens" in table else "")
    return open_traces(folder).sql(f"SELECT * FROM {table} ORDER BY {order}")[name].to_pylist()


def floats(folder, name) -> np.ndarray:
    return np.array(column(folder, name), dtype=np.float32)


def test_writer_positions_are_stored_bit_for_bit(tmp_path, make_batch):
    batch = make_batch(4)
    writer(tmp_path).write(batch)
    for view, scores in batch.scores.items():
        np.testing.assert_array_equal(floats(tmp_path, f"logprob_{view}"), scores.logprob.numpy())
        np.testing.assert_array_equal(floats(tmp_path, f"max_logprob_{view}"), scores.max_logprob.numpy())
        np.testing.assert_array_equal(floats(tmp_path, f"entropy_{view}"), scores.entropy.half().float().numpy())
        assert column(tmp_path, f"rank_{view}") == scores.rank.tolist()
    np.testing.assert_array_equal(floats(tmp_path, "loss"), batch.loss.numpy())
    np.testing.assert_array_equal(floats(tmp_path, "loss_normalizer"), batch.loss_normalizer.numpy())
    np.testing.assert_array_equal(floats(tmp_path, "weight"), batch.routing.weight.numpy())
    assert column(tmp_path, "token_id") == [token for rollout in batch.rollouts for token in rollout.ids]
    assert column(tmp_path, "token_text") == [text for texts in batch.token_texts for text in texts]
    assert column(tmp_path, "token_type") == [token_type for labels in batch.labels for token_type, _ in labels]
    assert column(tmp_path, "visibility") == [visibility for labels in batch.labels for _, visibility in labels]
    assert column(tmp_path, "regime") == [list(batch.regimes)[idx] for idx in batch.routing.regime]
    assert column(tmp_path, "rollout_idx") == [0] * 3 + [2] * 5 + [3]
    assert column(tmp_path, "position") == [0, 1, 2, 0, 1, 2, 3, 4, 0]
    assert set(column(tmp_path, "step")) == {4}


def test_writer_non_finite_numbers_are_stored(tmp_path, make_batch):
    batch = make_batch(lengths=(3,))
    logprob = torch.tensor([-math.inf, math.nan, -1e-30])
    scores = batch.scores | {"teacher": dataclasses.replace(batch.scores["teacher"], logprob=logprob)}
    writer(tmp_path).write(dataclasses.replace(batch, scores=scores))
    np.testing.assert_array_equal(floats(tmp_path, "logprob_teacher"), logprob.numpy())


def test_writer_bfloat16_is_stored_bit_for_bit(tmp_path, make_batch):
    batch = make_batch()
    writer(tmp_path).write(dataclasses.replace(batch, loss=batch.loss.bfloat16()))
    np.testing.assert_array_equal(floats(tmp_path, "loss"), batch.loss.bfloat16().float().numpy())


def test_writer_rollouts_keep_prompts_evidence_and_outcome(tmp_path, make_batch):
    batch = make_batch(4)
    writer(tmp_path, rank=3).write(batch)
    row = open_traces(tmp_path).rollout(4, 2, process_rank=3).row
    rollout, prompt = batch.rollouts[2], batch.prompts["self"][2]
    assert row["question"] == rollout.example.question
    assert row["completion"] == "ответ 2"
    assert row["finished"] is False
    assert row["reward"] is None
    assert row["num_positions"] == 5
    assert row["prompt_self"] == prompt.text
    assert row["prompt_self"] != row["prompt_student"]
    assert row["history_self"] == [{"role": "user", "text": "hello"}]
    assert row["evidence_boxes"] == [{"x0": 0.5, "y0": 1.0, "x1": 3.0, "y1": 4.0, "label": "tag"}]
    assert row["evidence_crop_box"] == {"x0": 0.0, "y0": 1.0, "x1": 4.0, "y1": 5.0, "label": ""}
    assert (row["evidence_hint"], row["evidence_caption"]) == ("left", None)
    assert row["thresholds"] == {"gap": 4.1, "probability_sum": 1.5}
    assert column(tmp_path, "reward", "rollouts") == [1.0, 0.0, None, 1.0]


def test_writer_images_in_memory_are_saved_once(tmp_path, make_batch):
    batch = make_batch()
    item = writer(tmp_path)
    item.write(batch)
    item.write(make_batch(1))
    files = sorted((tmp_path / "traces" / "images").iterdir())
    assert len(files) == 3  # two pictures shared by all four examples, and their crop
    traced = open_traces(tmp_path).rollout(0, 1)
    assert Image.open(traced.images("teacher")[0]).tobytes() == batch.rollouts[1].example.images[0].tobytes()
    assert Image.open(tmp_path / "traces" / traced.row["evidence_crop"]).size == (2, 2)


def test_writer_image_files_are_named_by_path(tmp_path, make_batch):
    batch = make_batch(lengths=(1,))
    prompts = batch.prompts | {"student": (Prompt((tmp_path / "photo.jpg",), "what?"),)}
    writer(tmp_path / "run").write(dataclasses.replace(batch, prompts=prompts))
    assert open_traces(tmp_path / "run").rollout(0, 0).images("student") == (tmp_path / "photo.jpg",)


def test_writer_prompts_without_key_are_hashed_each_time(tmp_path, make_batch):
    item = writer(tmp_path)
    for step in range(2):
        batch = make_batch(step, lengths=(1,))
        prompt = Prompt((Image.new("L", (3, 3), step),), "what?")
        item.write(dataclasses.replace(batch, prompts=batch.prompts | {"student": (prompt,)}))
    first, second = column(tmp_path, "images_student", "rollouts")
    assert first != second


def test_writer_top_k_is_stored_at_its_positions_only(tmp_path, make_batch):
    batch = make_batch(top=2)
    writer(tmp_path).write(batch)
    result = column(tmp_path, "top_k_teacher")
    ids, logprobs = batch.top_k_tokens.top["teacher"]
    expected = dict(zip(batch.top_k_tokens.index.tolist(), range(len(ids)), strict=True))
    for position, entries in enumerate(result):
        if position not in expected:
            assert entries is None
            continue
        row = expected[position]
        assert [entry["token_id"] for entry in entries] == ids[row].tolist()
        assert [entry["text"] for entry in entries] == [f"<{token}>" for token in ids[row].tolist()]
        np.testing.assert_array_equal(np.float32([entry["logprob"] for entry in entries]), logprobs[row].numpy())
    assert column(tmp_path, "top_k_student") == [None] * len(result)


def test_writer_sampler_logprob_and_advantage_null_if_absent(tmp_path, make_batch):
    batch = make_batch(lengths=(2, 1))
    sampled = dataclasses.replace(batch.rollouts[0], logprobs=(-0.5, -0.25))
    routing = dataclasses.replace(batch.routing, advantage=torch.tensor([1.0, -1.0, 0.5]))
    item = dataclasses.replace(batch, rollouts=(sampled, batch.rollouts[1]), routing=routing)
    writer(tmp_path).write(item)
    assert column(tmp_path, "sampler_logprob") == [-0.5, -0.25, None]
    assert column(tmp_path, "advantage") == [1.0, -1.0, 0.5]
    writer(tmp_path).write(batch)
    assert column(tmp_path, "advantage") == [None] * 3


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0), (0, 2)])
def test_writer_empty_batches_and_completions_are_stored(tmp_path, make_batch, lengths):
    item = writer(tmp_path)
    item.write(make_batch(0, lengths=lengths, top=1 if sum(lengths) else 0))
    item.write(make_batch(1))
    assert column(tmp_path, "step").count(0) == sum(lengths)
    assert column(tmp_path, "step", "rollouts").count(0) == len(lengths)
    if lengths:
        assert open_traces(tmp_path).rollout(0, 0).tokens == ()


def test_writer_step_written_again_replaces_first(tmp_path, make_batch):
    traces, item = None, writer(tmp_path)
    for seed in range(3):
        batch = make_batch(1, seed=seed)
        item.write(batch)
        traces = traces or open_traces(tmp_path)
        logprobs = traces.sql("SELECT logprob_self FROM tokens ORDER BY rollout_idx, position")["logprob_self"]
        np.testing.assert_array_equal(logprobs.to_numpy(), batch.scores["self"].logprob.numpy())


def test_writer_ranks_and_probes_are_stored_apart(tmp_path, make_batch):
    writer(tmp_path, rank=0).write(make_batch(seed=0))
    writer(tmp_path, rank=1).write(make_batch(seed=1))
    writer(tmp_path, rank=0).write_probe(make_batch(seed=2, lengths=(2,)))
    assert column(tmp_path, "process_rank", "rollouts") == [0] * 4 + [1] * 4
    assert len(column(tmp_path, "token_id", "probe_tokens")) == 2


def test_writer_leaves_whole_files_only(tmp_path, make_batch):
    writer(tmp_path).write(make_batch(12))
    names = [file.name for file in (tmp_path / "traces" / "tokens").iterdir()]
    assert names == ["step-000012-rank-0.parquet"]


def test_writer_unwritable_folder_is_named(tmp_path, make_batch):
    (tmp_path / "traces").write_text("in the way")
    with pytest.raises(TraceError, match=r"traces.*cannot be written"):
        writer(tmp_path).write(make_batch())


def test_writer_background_flush_stores_same_rows(tmp_path, make_batch):
    with writer(tmp_path / "behind", background=True) as behind:
        for step in (1, 2, 3):
            behind.write(make_batch(step))
        behind.flush()
        assert set(column(tmp_path / "behind", "step")) == {1, 2, 3}
        behind.write(make_batch(4))
    at_once = writer(tmp_path / "at_once")
    for step in (1, 2, 3, 4):
        at_once.write(make_batch(step))
    for table in ("tokens", "rollouts"):
        first, second = (
            open_traces(tmp_path / name).sql(f"FROM {table} ORDER BY ALL") for name in ("behind", "at_once")
        )
        assert first.equals(second)


def test_writer_background_error_is_raised_by_next_call(tmp_path, make_batch):
    behind = writer(tmp_path, background=True)
    (tmp_path / "traces").write_text("in the way")
    behind.write(make_batch(1))
    with pytest.raises(TraceError, match="cannot be written"):
        behind.write(make_batch(2))
    behind.flush()  # said once
