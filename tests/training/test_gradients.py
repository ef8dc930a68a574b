"""Gradients of two ranks are summed bucket by bucket, while the backward pass runs."""

import json
from pathlib import Path

import pytest
import torch
from processes import launch
from torch import nn

import workbench.training.gradients as gradients
from workbench.distributed import join

CODE = "import sys; from test_gradients import work; work(sys.argv[1])"


def work(out: str) -> None:
    """One of two ranks: weights 2, 3 and 5; the last one is used by rank 1 alone, a fourth by none."""
    gradients.BUCKET_BYTES = 1  # a bucket for each weight
    group = join()
    weights = [nn.Parameter(torch.tensor([value])) for value in (2.0, 3.0, 5.0, 7.0)]
    first, second, third, _ = weights
    reduction = gradients.GradientReduction([third, weights[3], first, second], group)
    events: list[str] = []
    start = group.start_sum
    group.start_sum = lambda values: (events.append("sum"), start(values))[1]
    for is_last in (False, True):  # two micro-batches
        loss = (group.rank + 1) * first * second + (third if group.rank else 0.0)
        if not is_last:
            loss.sum().backward()
            continue
        with reduction.during_last_pass():
            loss.sum().backward()
            events.append("passed")
    reduction.finish()
    grads = [None if weight.grad is None else float(weight.grad) for weight in weights]
    Path(f"{out}.{group.rank}").write_text(json.dumps({"events": events, "grads": grads}))


@pytest.mark.subprocess
def test_gradients_of_two_ranks_are_summed_during_the_last_pass(tmp_path: Path) -> None:
    ended = launch(tmp_path / "ranks", CODE, str(tmp_path / "out"))
    assert not any(item.returncode for item in ended), [item.stderr[-2000:] for item in ended]
    for rank in range(2):
        result = json.loads((tmp_path / f"out.{rank}").read_text())
        # d/dfirst: second * (1 + 2) over two micro-batches; likewise the others
        assert result["grads"] == [3.0 * 3 * 2, 2.0 * 3 * 2, 1.0 * 2, None]
        # those of second and first are complete in the pass; nothing after the unused weight can begin there
        assert result["events"] == ["sum", "sum", "passed", "sum", "sum"]


def test_buckets_begin_with_the_last_weights_and_have_one_dtype() -> None:
    half = [nn.Parameter(torch.zeros(4, dtype=torch.bfloat16)) for _ in range(2)]
    full = [nn.Parameter(torch.zeros(4)) for _ in range(2)]
    result = list(gradients.buckets([half[0], full[0], full[1], half[1]]))
    assert [[id(weight) for weight in bucket] for bucket in result] == [
        [id(half[1]), id(half[0])],
        [id(full[1]), id(full[0])],
    ]
