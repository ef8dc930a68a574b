"""Truncated importance sampling: each token's loss times min(ratio, clip), by hand."""

import math
from dataclasses import replace

import pytest
import torch
from failures import raises
from small import rollouts, table_policies

from workbench.distill.ratio_clip import clip_ratio
from workbench.distill.scoring import Batch
from workbench.distill.step import compute_step, score_batch
from workbench.errors import ConfigError
from workbench.methods import load_method
from workbench.types import RouteBatch, TokenScores

CLIP = 1.5


def test_clip_ratio_multiplies_weights_by_hand() -> None:
    method = clip_ratio(load_method("random_mask", {"fraction": 1.0}), CLIP)
    now, sampled = torch.tensor([-1.0, -1.0, -1.0, -0.1]), (-2.0, -1.0, -0.5, -0.1 - math.log(1.2))
    answers = (replace(rollouts(4)[0], logprobs=sampled),)
    sequence, scores = torch.zeros(4, dtype=torch.long), TokenScores(now, now, now, torch.zeros(4, dtype=torch.long))
    routing = method.route(RouteBatch({"student": scores}, sequence, torch.arange(4), sequence, answers, 0))
    assert routing.weight.tolist() == pytest.approx([1.5, 1.0, math.exp(-0.5), 1.2])  # e is above the clip
    assert routing.thresholds["ratio_clip"] == CLIP


def test_loss_of_clipped_method_is_that_of_its_weights() -> None:
    method, policies, answers = load_method("opd", {}), table_policies(), rollouts(3, 4)  # sampled at -1 nat each
    plain, clipped = (
        compute_step(each, policies, score_batch(each, policies, Batch(answers, micro_batch_size=1)), seed=0)
        for each in (method, clip_ratio(method, CLIP))
    )
    ratio = (plain.scores["student"].logprob + 1.0).exp()
    assert (ratio > CLIP).any() and (ratio < 1).any()
    torch.testing.assert_close(clipped.loss, plain.loss * ratio.clamp(max=CLIP))
    torch.testing.assert_close(clipped.loss_normalizer, plain.loss_normalizer)


def test_method_that_uses_the_ratio_itself_is_refused() -> None:
    for name in ("vision_opd", "sdpo", "mopd"):
        with raises(ConfigError, "sampling.ratio_clip=1.5", name):
            clip_ratio(load_method(name, {}), CLIP)
    assert clip_ratio(load_method("sdpo", {}), 0.0).uses_ratio
    assert clip_ratio(load_method("vision_opd", {"ratio_clip": 0.0}), CLIP).router_views == ("student",)


def test_clip_below_one_raises() -> None:
    with raises(ConfigError, "sampling.ratio_clip=0.5"):
        clip_ratio(load_method("opd", {}), 0.5)
