"""Drawing tokens against transformers' own processors: which entries are left, and how often each is drawn."""

import itertools

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from workbench.policies import SamplingOptions
from workbench.policies.sampling import FEWEST_ROWS, FEWEST_TOKENS, draw, in_blocks
from workbench.policies.view_output import Head

DRAWS = 20_000


def shares(logits: torch.Tensor, options: SamplingOptions) -> torch.Tensor:
    """How often each entry (V) of one row is drawn by evenly spaced numbers: its probability to 1 / DRAWS."""
    numbers = (torch.arange(DRAWS, dtype=torch.double) + 0.5) / DRAWS
    drawn = draw(logits.expand(DRAWS, -1), numbers, options)
    return torch.bincount(drawn, minlength=logits.shape[-1]) / DRAWS


def of_transformers(logits: torch.Tensor, options: SamplingOptions) -> torch.Tensor:
    """Probabilities (V) that transformers samples from, with the processors in the order of its `generate`."""
    processors = LogitsProcessorList([TemperatureLogitsWarper(options.temperature)])
    if options.top_k:
        processors.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1.0:
        processors.append(TopPLogitsWarper(options.top_p))
    return processors(torch.zeros(1, 1, dtype=torch.long), logits.double().unsqueeze(0)).softmax(-1).squeeze(0)


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.6])
def test_top_k_and_top_p_equal_transformers(temperature: float) -> None:
    for seed, top_k, top_p in itertools.product(range(2), (0, 1, 2, 5, 12, 40, 60), (0.05, 0.3, 0.5, 0.9, 0.999, 1.0)):
        logits = 2 * torch.randn(40, generator=torch.Generator().manual_seed(seed))
        options = SamplingOptions(1, temperature=temperature, top_k=top_k, top_p=top_p)
        ours, theirs = shares(logits, options), of_transformers(logits, options)
        assert torch.equal(ours > 0, theirs > 0.5 / DRAWS) or theirs[theirs > 0].min() < 1 / DRAWS
        assert (ours - theirs).abs().max() < 2 / DRAWS, (top_k, top_p)


def test_top_p_is_fraction_of_top_k() -> None:
    # 0.4, 0.3, 0.2, 0.1; the first two have 0.7. Half of 0.7 is reached by the first, half of 1 only by the second.
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert shares(logits, SamplingOptions(1, top_k=2, top_p=0.5)).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert shares(logits, SamplingOptions(1, top_p=0.5)).tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0], abs=1e-4)


def test_top_k_keeps_ties_with_the_last() -> None:
    logits = torch.tensor([0.4, 0.2, 0.2, 0.2]).log()
    options = SamplingOptions(1, top_k=2)
    assert of_transformers(logits, options).tolist() == pytest.approx([0.4, 0.2, 0.2, 0.2])
    assert shares(logits, options).tolist() == pytest.approx([0.4, 0.2, 0.2, 0.2], abs=1e-4)


@torch.no_grad()
def test_head_in_blocks_equals_head() -> None:
    head = Head(torch.nn.Linear(256, 2**14, bias=False), scale=0.5)
    logits_of = in_blocks(head, FEWEST_ROWS, FEWEST_TOKENS)
    assert logits_of is not head
    for rows in (1, FEWEST_ROWS, FEWEST_ROWS + 1):
        hidden = torch.randn(rows, 256)
        torch.testing.assert_close(logits_of(hidden), head(hidden))
    hidden = torch.randn(1, 256)
    assert torch.equal(logits_of(hidden), head(hidden))


def test_head_is_not_copied_in_vain() -> None:
    head = Head(torch.nn.Linear(256, 2**14, bias=False))
    small, odd = (Head(torch.nn.Linear(256, size, bias=False)) for size in (2**13, 2**14 + 1))
    assert in_blocks(head, FEWEST_ROWS - 1, FEWEST_TOKENS) is head
    assert in_blocks(head, FEWEST_ROWS, FEWEST_TOKENS - 1) is head
    assert in_blocks(small, FEWEST_ROWS, FEWEST_TOKENS) is small
    assert in_blocks(odd, FEWEST_ROWS, FEWEST_TOKENS) is odd
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert in_blocks(head, FEWEST_ROWS, FEWEST_TOKENS) is head
