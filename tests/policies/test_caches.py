"""Families whose caches cannot be repeated: answers share a prompt in name only, and numbers are the model's own."""

from pathlib import Path

import pytest
import torch
from text_families import HYBRID, plain_logprobs, text_policy

from workbench.distill.losses import score
from workbench.policies import SamplingOptions
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.types import Prompt

SHORT, LONG = Prompt((), "red", key="a"), Prompt((), "what is the color of the sky over there?", key="b")
ROWS = [SHORT, LONG, SHORT, LONG]
COMPLETIONS = [(300, 301, 302), (303,), (304, 305), (306, 307, 308, 309)]


@pytest.fixture(params=list(HYBRID))
def hybrid(request: pytest.FixtureRequest, tmp_path: Path) -> AutoregressivePolicy:
    return text_policy(tmp_path, request.param, HYBRID[request.param])


def test_unrepeatable_cache_scores_equal_model(hybrid: AutoregressivePolicy) -> None:
    hybrid.model.requires_grad_(True)
    ids = torch.tensor([token for completion in COMPLETIONS for token in completion])
    output = hybrid.forward(ROWS, COMPLETIONS)
    output.hidden.square().sum().backward()
    expected = torch.cat([plain_logprobs(hybrid, *row) for row in zip(ROWS, COMPLETIONS, strict=True)])
    assert torch.allclose(score(output, ids).logprob, expected, atol=1e-5)


def test_unrepeatable_cache_samples_have_log_probs_of_model(hybrid: AutoregressivePolicy) -> None:
    written = hybrid.sample([SHORT, LONG], [[1, 2, 3], [4, 5]], SamplingOptions(9))
    for prompt, values in zip((SHORT, LONG), written, strict=True):
        assert len({entry.ids for entry in values}) == len(values)
        for item in values:
            expected = plain_logprobs(hybrid, prompt, item.ids)
            assert torch.allclose(torch.tensor(item.logprobs), expected, atol=1e-4)  # a scan adds in another order
