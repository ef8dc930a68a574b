"""Newer families that see: reading and sampling give the log-probs of the model's own forward pass, row by row."""

from pathlib import Path

import pytest
import torch
from newer_families import NEWER_FAMILIES, TORCHVISION_FAMILIES
from small import picture
from text_families import plain_logprobs
from transformers.utils import is_torchvision_available

from workbench.distill.losses import score
from workbench.policies import SamplingOptions
from workbench.policies.autoregressive import load_policy
from workbench.policies.encoding import append, collate, collate_pictures
from workbench.types import Prompt

STATES = {"prompts"}  # of linear attention or convolutions: not repeated
OFF = {"qwen3_5": STATES, "qwen3_5_moe": STATES, "lfm3_vl": STATES, "lfm2_vl": STATES, "emu3": {"rows"}}
ALL = NEWER_FAMILIES | TORCHVISION_FAMILIES
FAMILIES = [
    *NEWER_FAMILIES,
    *(
        pytest.param(name, marks=pytest.mark.skipif(not is_torchvision_available(), reason="needs torchvision"))
        for name in TORCHVISION_FAMILIES
    ),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_newer_family_log_probs_equal_model(family: str, tmp_path: Path) -> None:
    policy = load_policy(ALL[family](tmp_path), "student")
    assert policy.prove().off.keys() == OFF.get(family, set()) and not policy.proof.differs
    small, several = picture(1, (96, 64)), (picture(2, (72, 120)), picture(3, (64, 64)))
    prompts = [
        Prompt((small,), "red", key="a"),
        Prompt(several, "which of these is larger?", key="b"),
        Prompt((), "?", key="c"),
    ]
    words = tuple(policy.tokenizer("a small red circle left of the large blue square")["input_ids"])
    rows = [prompts[position] for position in (0, 1, 0, 2, 1)]
    completions = [words[start:stop] for start, stop in ((1, 5), (2, 4), (1, 9), (3, 4), (5, 9))]
    with torch.no_grad():
        result = score(policy.forward(rows, completions), torch.tensor(sum(completions, ()))).logprob
    expected = torch.cat([plain_logprobs(policy, *row) for row in zip(rows, completions, strict=True)])
    assert torch.allclose(result, expected, atol=1e-4)
    for prompt, values in zip(prompts, policy.sample(prompts, [[1, 2], [3, 4], [5]], SamplingOptions(6)), strict=True):
        for item in values:
            assert torch.allclose(torch.tensor(item.logprobs), plain_logprobs(policy, prompt, item.ids), atol=1e-4)


def test_collate_patch_indices_continue_over_prompts() -> None:
    """Molmo 2's: the first prompt has 2 crops of 4 patches, so the second one's patches begin at 8."""
    ids = torch.tensor([[1, 2]])
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    first = text | {"pixel_values": torch.zeros(2, 4, 3), "image_token_pooling": torch.tensor([[0, 1], [7, -1]])}
    second = text | {"pixel_values": torch.zeros(1, 4, 3), "image_token_pooling": torch.tensor([[0, 1, 3]])}
    expected = torch.tensor([[0, 1, -1], [7, -1, -1], [8, 9, 11]])
    assert torch.equal(collate([first, text, second], 0)["image_token_pooling"], expected)
    assert torch.equal(collate_pictures([first, second])["image_token_pooling"], expected)


def test_values_per_token_are_padded_on_the_left_and_repeat_the_last_ones() -> None:
    """Mllama's cross_attention_mask: for each token the tiles of each image that it sees; 1 and 2 images of 2 tiles."""
    ids = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    first = ids | {"sees": torch.tensor([[[[0, 0]], [[1, 0]], [[1, 1]]]])}
    second = {name: value[:, :2] for name, value in ids.items()} | {"sees": torch.ones(1, 2, 2, 2, dtype=torch.long)}
    batch = collate([first, second], 0)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [0, 1, 2]]
    assert batch["sees"][0].tolist() == [[[0, 0], [0, 0]], [[1, 0], [0, 0]], [[1, 1], [0, 0]]]
    assert batch["sees"][1].tolist() == [[[0, 0], [0, 0]], [[1, 1], [1, 1]], [[1, 1], [1, 1]]]
    longer = append(batch, [(7, 8), (9,)], 0, 0)
    assert longer["sees"].shape == (2, 5, 2, 2)
    assert torch.equal(longer["sees"][0, 3:], batch["sees"][0, 2:].repeat(2, 1, 1))
