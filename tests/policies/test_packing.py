"""Several sequences in a row: where they go, equal numbers to padded rows, and families that mix sequences."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from failures import raises
from families import FAMILIES, save_llama
from small import picture
from text_families import HYBRID, save_text_model
from video_families import VIDEO_FAMILIES

from workbench.distill.divergences import Divergence
from workbench.distill.losses import compute_losses
from workbench.distill.method import TOKENS, Loss, Regime
from workbench.distill.micro_batches import split_by_tokens
from workbench.errors import ConfigError
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.loading import load_policies, load_policy
from workbench.policies.packing import pack, pack_inputs, packed_tokens
from workbench.policies.pass_counts import count_passes
from workbench.policies.row_sizes import RowSize, padded_tokens
from workbench.types import Prompt, Routing

COMPLETIONS = [(300, 301, 302, 303, 304, 305, 306, 307, 308, 309), (303,), (304, 305), (306, 307, 308, 309, 300)]
PACKING = {  # families of text, of pictures in rows, and of pictures with positions of their own (M-RoPE)
    "llama": save_llama,
    "gemma2": lambda folder: save_text_model(folder, "gemma2", {"query_pre_attn_scalar": 8, "sliding_window": 8}),
    "idefics3": FAMILIES["idefics3"],
    "llava": FAMILIES["llava"],
    "qwen2_5_vl": VIDEO_FAMILIES["qwen2_5_vl"],
}
MIXING = {  # states that pass from one sequence to the next; a prompt that is seen in both directions
    "mamba2": lambda folder: save_text_model(folder, "mamba2", HYBRID["mamba2"]),
    "lfm2": lambda folder: save_text_model(folder, "lfm2", HYBRID["lfm2"]),
    "paligemma": FAMILIES["paligemma"],
}


def test_pack_balances_rows_longest_first() -> None:
    lengths = [3, 9, 2, 4, 5]  # 23 tokens: two rows of 12, or three of 9
    assert pack(lengths) == [[1, 0], [4, 3, 2]]
    assert pack(lengths, single_row=True) == [[1, 4, 3, 0, 2]]
    assert pack([9, 5, 5, 5]) == [[0, 3], [1, 2]]  # 2 rows of 14 have fewer positions than 3 of 10
    sizes = [RowSize(idx, 1, length - 1) for idx, length in enumerate(lengths)]
    assert (packed_tokens(sizes), packed_tokens(sizes, single_row=True), padded_tokens(sizes)) == (24, 23, 45)


def test_pack_inputs_positions_begin_anew_in_each_sequence() -> None:
    ids = torch.tensor([[0, 0, 11, 12], [21, 22, 23, 0], [0, 31, 32, 33]])  # padded left and right
    mask = (ids > 0).long()
    packed = pack_inputs({"input_ids": ids, "attention_mask": mask, "pixels": torch.ones(7)}, [2, 1], pad_id=9)
    assert packed.inputs["input_ids"].tolist() == [[11, 12, 21, 22, 23], [31, 32, 33, 9, 9]]
    assert packed.inputs["position_ids"].tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 0, 1]]
    assert packed.index.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert packed.inputs.keys() == {"input_ids", "position_ids", "pixels"}
    spatial = torch.stack([10 * ids, 20 * ids, 30 * ids])
    of_mrope = pack_inputs({"input_ids": ids, "attention_mask": mask}, [2, 1], pad_id=9, positions=spatial)
    assert of_mrope.inputs["position_ids"][:, 0].tolist() == [
        [0, 1, 0, 1, 2],
        *([factor * token for token in (11, 12, 21, 22, 23)] for factor in (10, 20, 30)),
    ]


def prompts_for(policy: AutoregressivePolicy) -> list[Prompt]:
    if policy.processor is policy.tokenizer:
        pictures = [(), (), (), ()]
    else:
        pictures = [(picture(0, (72, 120)), picture(1)), (), (picture(2, (96, 64)),), (picture(3),)]
    texts = ("red", "what is the color of the sky over there, where the sun is?", "which one?", "blue")
    return [Prompt(images, text, key=f"{idx}") for idx, (images, text) in enumerate(zip(pictures, texts, strict=True))]


def scored(policy: AutoregressivePolicy) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor], object]:
    """Log-probs, losses and gradients of the cross-entropy of four sequences, and the counted pass."""
    policy.model.requires_grad_(True)
    policy.model.zero_grad()
    with count_passes() as counts:
        output = policy.forward(prompts_for(policy), COMPLETIONS)
    ids = torch.tensor(sum(COMPLETIONS, ()))
    regimes = (Regime((Loss(TOKENS, Divergence("nll")),)),)
    routing = Routing(torch.zeros(len(ids), dtype=torch.long), torch.ones(len(ids)))
    result = compute_losses(
        output, {}, ids, regimes=regimes, routing=routing, loss_normalizer=torch.full((len(ids),), 1 / len(ids))
    )
    result.total.backward()
    grads = {name: weight.grad for name, weight in policy.model.named_parameters() if weight.grad is not None}
    return result.scores.logprob, result.loss, grads, counts


@pytest.mark.parametrize("family", list(PACKING))
def test_packed_scores_losses_and_gradients_equal_padded(family: str, tmp_path: Path) -> None:
    policy = load_policy(PACKING[family](tmp_path / family), family, packing=True)
    assert policy.prove().shortcuts.packing
    logprob, loss, grads, counts = scored(policy)
    policy.shortcuts = replace(policy.shortcuts, packing=False)
    padded_logprob, padded_loss, padded_grads, padded_counts = scored(policy)
    assert counts.tokens == padded_counts.tokens and counts.padding < padded_counts.padding
    assert torch.allclose(logprob, padded_logprob, atol=1e-5) and torch.allclose(loss, padded_loss, atol=1e-5)
    assert grads.keys() == padded_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, padded_grads[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", list(MIXING))
def test_family_that_mixes_sequences_is_refused(family: str, tmp_path: Path) -> None:
    folder = MIXING[family](tmp_path / family)
    with raises(ConfigError, "training.packing=true", "student", str(folder), "training.tokens_per_micro_batch"):
        load_policies((), student=folder, packing=True)
    assert not load_policies((), student=folder)["student"].shortcuts.packing


def test_masked_diffusion_is_refused() -> None:
    with raises(ConfigError, "training.packing=true", "student"):
        load_policies((), student="data/models/diffusion", packing=True)


def test_answers_to_one_prompt_are_packed_only_for_fewer_tokens(tmp_path: Path) -> None:
    policy = load_policy(save_llama(tmp_path / "llama"), "llama", packing=True)
    policy.prove()
    prompt = Prompt((), "what is the color of the sky over there, where the sun is?", key="a")
    sizes = policy.row_sizes([prompt] * 3, COMPLETIONS[1:])
    prompt_length = sizes[0].prompt_length
    assert policy.pass_tokens(sizes) == padded_tokens(sizes) == prompt_length + 3 * 5
    for completions in (COMPLETIONS[1:], COMPLETIONS[:3]):
        with torch.no_grad(), count_passes() as counts:
            policy.forward([prompt] * 3, completions)
        assert counts.tokens == prompt_length + sum(map(len, completions))  # its prompt passed once


def test_token_budget_counts_packed_rows() -> None:
    sizes = [RowSize(idx, 2, length) for idx, length in enumerate((8, 3, 3, 8, 2))]
    assert (packed_tokens(sizes), padded_tokens(sizes)) == (4 * 10, 5 * 10)  # rows of 10, 10, 5 + 4, 5
    assert split_by_tokens(sizes, 40, packed_tokens) == [[0, 1, 2, 3, 4]]
    assert [len(rows) for rows in split_by_tokens(sizes, 40, padded_tokens)] == [4, 1]
