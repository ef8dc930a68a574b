"""Small random language models of families whose caches, positions or heads are not those of Llama."""

from pathlib import Path

import torch
from families import TEXT, save_model, small_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from workbench.policies.autoregressive import AutoregressivePolicy, load_policy
from workbench.training.pretraining.tokenizer import CHAT_TEMPLATE
from workbench.types import Prompt

LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
STATES = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
QWEN = {"layer_types": ["linear_attention", "full_attention"], **LINEAR}
HYBRID = {
    "bamba": {**STATES, "attn_layer_indices": [1]},
    "falcon_h1": {**STATES, "mamba_d_ssm": 64, "lm_head_multiplier": 0.04, "embedding_multiplier": 5.6},
    "granitemoehybrid": {
        **STATES,
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 4,
        "shared_intermediate_size": 32,
        "logits_scaling": 8.0,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba": {"state_size": 8, "expand": 2, "time_step_rank": 4},
    "mamba2": {"head_dim": 8, "num_heads": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "qwen3_next": {**QWEN, **EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_5_text": {**QWEN, "rope_parameters": {**MROPE, "mrope_interleaved": True}},
    "qwen3_5_moe_text": {
        **QWEN,
        **EXPERTS,
        "shared_expert_intermediate_size": 16,
        "rope_parameters": {**MROPE, "mrope_interleaved": True},
    },
}


def save_text_model(folder: Path, model_type: str, values: dict, seed: int = 0) -> Path:
    """A model of a family with its sizes in TEXT, and `own` settings beside or instead of them."""
    tokenizer = small_tokenizer({})
    tokenizer.chat_template = CHAT_TEMPLATE
    recorded = type(AutoConfig.for_model(model_type))
    fields = AutoConfig.for_model(model_type).to_dict().keys() | getattr(recorded, "attribute_map", {}).keys()
    sizes = {key: value for key, value in TEXT.items() if key in fields}
    ends = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **{**sizes, **values}, **ends)
    return save_model(folder, AutoModelForCausalLM.from_config, config, tokenizer, seed)


def text_policy(folder: Path, model_type: str, values: dict, **options: object) -> AutoregressivePolicy:
    return load_policy(save_text_model(folder, model_type, values), "student", **options)


@torch.no_grad()
def plain_logprobs(policy: AutoregressivePolicy, prompt: Prompt, completion: tuple[int, ...]) -> torch.Tensor:
    """Log-probs of a completion by `model(**inputs).logits` alone: one row, nothing padded, kept or shared."""
    encoded = policy.encoder.encode(prompt)
    displayed = encoded["input_ids"].shape[1]
    ids = torch.cat((encoded["input_ids"], torch.tensor([completion])), -1)
    longer = {name: torch.zeros_like(ids) for name in ("token_type_ids", "mm_token_type_ids") if name in encoded}
    for name, whole in longer.items():
        whole[:, :displayed] = encoded[name]
    inputs = encoded | longer | {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    logits = policy.model(**inputs).logits[0, displayed - 1 : -1].float()
    return logits.log_softmax(-1).gather(-1, torch.tensor(completion).unsqueeze(-1)).squeeze(-1)
