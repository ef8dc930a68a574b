"""Shrink the default configuration of a model type, so that its model takes milliseconds.

Every width becomes WIDTH and every number of heads HEADS, in the language model, the vision tower and the projector,
so that parts that must fit together still do. What no rule names keeps its value.
"""

import re
from collections.abc import Iterator
from typing import Any

WIDTH, HEADS, HEAD_DIM, LAYERS = 64, 4, 16, 2
SIDE = 4  # patches along one side of an image
_RULES: tuple[tuple[str, int], ...] = (
    (r"\w*(num_key_value_heads|num_kv_heads|linear_num_key_heads)", 2),
    (r"\w*(num_heads|attention_heads|n_heads|resampler_heads|linear_num_value_heads|mamba_num_heads)", HEADS),
    (r"(\w+_)?(head_dim|dim_head|query_pre_attn_scalar)|v_head_dim|qk_nope_head_dim|d_kv", HEAD_DIM),
    (r"rotary_dim", HEAD_DIM // 2),
    (r"qk_head_dim", HEAD_DIM + HEAD_DIM // 2),
    (r"(q|kv|o)_lora_rank|ssm_state_size|d_rel", 16),
    (r"\w*intermediate_size\w*|\w*ffn_dim|d_ff|mlp_dim|share_expert_dim", 96),
    (r"num_hidden_layers|encoder_layers|decoder_layers|depth|num_layers|n_layers?|layers|resampler_depth", LAYERS),
    (r"\w*conf_num_hidden_layers|num_global_layers|num_decoder_layers", LAYERS),
    (r"num_experts|n_routed_experts|num_local_experts|moe_num_experts", 4),
    (r"num_experts_per_tok|moe_topk|moe_k|index_topk", 2),
    (r"n_group|topk_group|\w*n_groups|n_shared_experts|num_nextn_predict_layers|num_kv_shared_layers", 1),
    (r"(\w*_)?(hidden_size|embed_dim|d_model|hidden_dim|projection_dim|proj_dim)", WIDTH),
    (r"(\w*_)?(output_proj_dims|output_dim|input_dim)", WIDTH),
    (r"max_position_embeddings", 2048),
    (r"hidden_size_per_layer_input|adapter_out_dim|out_dim", WIDTH),
)
_UNTOUCHED = {"id2label", "label2id", "label_names"}


def shrink(values: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    """Shrink the values of a configuration (`PretrainedConfig.to_dict`), sub-configurations included."""
    layers = _chosen_layers(values)
    small: dict[str, Any] = {}
    for key, value in values.items():
        if key in _UNTOUCHED or not isinstance(key, str):
            small[key] = value
        elif key == "per_layer_config":
            small[key] = {
                layers.index(int(layer)): item for layer, item in (value or {}).items() if int(layer) in layers
            }
        elif isinstance(value, dict):
            small[key] = _rope(value, values) if "rope" in key else shrink(value, vocabulary)
        elif is_vocabulary(key) and isinstance(value, int):
            small[key] = vocabulary
        elif isinstance(value, (list, tuple)) and len(value) == _depth(values) > LAYERS:
            small[key] = [_smaller(key, value[layer]) for layer in layers]
        elif re.search(r"layer_ids?$|layers$|ind(ex|ic|x)es|idxs|layer_indices", key) and isinstance(
            value, (list, tuple)
        ):
            small[key] = _indices(value, len(layers))
        elif isinstance(value, (list, tuple)) and _rule(key):
            small[key] = [_smaller(key, item) for item in value]
        else:
            small[key] = _smaller(key, value)
    if "num_key_value_heads" in values and values["num_key_value_heads"] == values.get("num_attention_heads"):
        small["num_key_value_heads"] = small["num_attention_heads"]
    if values.get("qk_rope_head_dim") and "head_dim" in values:  # multi-head latent attention
        small["head_dim"] = small["qk_rope_head_dim"]
    for key in _DEPTHS & small.keys():
        if isinstance(values[key], int):
            small[key] = len(layers)
    _fit_image(small)
    return small


_DEPTHS = {"num_hidden_layers", "depth", "num_layers", "n_layer", "n_layers"}


def _depth(values: dict[str, Any]) -> int:
    return next((values[key] for key in sorted(_DEPTHS & values.keys()) if isinstance(values[key], int)), 0)


def _chosen_layers(values: dict[str, Any]) -> list[int]:
    """Layers to keep: the first of each kind, at least LAYERS of them, in their order."""
    depth = _depth(values)
    if depth == 0:
        return list(range(LAYERS))
    by_layer = [value for value in values.values() if isinstance(value, (list, tuple)) and len(value) == depth]
    kinds = [tuple(str(value[layer]) for value in by_layer) for layer in range(depth)]
    first = sorted({kinds.index(kind) for kind in kinds})
    rest = [layer for layer in range(depth) if layer not in first]
    return sorted((first + rest)[: max(LAYERS, len(first))]) if len(first) <= 8 else list(range(LAYERS))


def _rule(key: str) -> int | None:
    return next((value for pattern, value in _RULES if re.fullmatch(pattern, key)), None)


def _smaller(key: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        return value
    rule = _rule(key)
    return value if rule is None else min(rule, value) if rule <= LAYERS else rule


def _indices(value: list | tuple, depth: int) -> list:
    """Indices of layers, limited to those that are left."""
    return sorted({min(item, depth - 1) if isinstance(item, int) else item for item in value}, key=str)


def _rope(rope: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Rope parameters with sections of M-RoPE that add up to half the rotated part of a head."""
    small = {key: _rope(value, values) if isinstance(value, dict) else value for key, value in rope.items()}
    if "mrope_section" in small:
        rotated: float = rope.get("partial_rotary_factor") or values.get("partial_rotary_factor") or 1.0
        half = int(HEAD_DIM * rotated) // 2
        whole = [int(part) for part in rope["mrope_section"]]
        sections = [max(1, round(half * part / sum(whole))) for part in whole]
        sections[0] += half - sum(sections)
        small["mrope_section"] = sections
    return small


def _fit_image(small: dict[str, Any]) -> None:
    """An image of SIDE patches a side, in the form in which the configuration gives image and patch size."""
    patch = first_number(small.get("patch_size"))
    if not patch:
        return
    for key in ("image_size", "img_size"):
        if small.get(key) is not None:
            small[key] = resized(small[key], patch * SIDE)
    for key in ("num_position_embeddings", "num_patches"):
        if isinstance(small.get(key), int):
            small[key] = SIDE * SIDE


def first_number(value: Any) -> int | None:
    """The number of a size that is given as a number, a list or a mapping."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        value = value[0] if value else None
    return value if isinstance(value, int) else None


def resized(value: Any, side: int) -> Any:
    """A size in the form of `value`."""
    if isinstance(value, dict):
        return dict.fromkeys(value, side)
    return [side] * len(value) if isinstance(value, (list, tuple)) else side


def is_vocabulary(key: object) -> bool:
    """Whether a key holds the size of the vocabulary."""
    return isinstance(key, str) and "vocab_size" in key and "additional" not in key


def sub_configs(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All nested configurations, the outermost first."""
    yield values
    for key, value in values.items():
        if isinstance(value, dict) and key not in _UNTOUCHED:
            yield from sub_configs(value)
