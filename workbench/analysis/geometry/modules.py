"""Part and module of a model that a tensor belongs to, from its name.

    group_of("model.text_model.layers.3.self_attn.q_proj.weight")  ->  ParameterGroup("text", "attention q", 3)

Group of a tensor: its module in the language model (embedding, attention q, MLP down, norm, head ...), or the whole
"vision tower" or "connector".
"""

import re
from dataclasses import dataclass

GROUPS = (
    "embedding",
    "attention q",
    "attention k",
    "attention v",
    "attention o",
    "attention qkv",
    "attention",
    "MLP gate",
    "MLP up",
    "MLP down",
    "MLP",
    "norm",
    "head",
    "connector",
    "vision tower",
    "other",
)
_CONNECTOR = re.compile(
    r"projector|connector|modality_projection|merger|resampler|perceiver|abstractor|q_?former|aligner"
    r"|^mlp1$|^embed_vision$|^mm_"
)
_VISION = re.compile(r"^(vision|visual|vit|vpm|image)($|_)|_vision$|^(vision|image)_")
_NORM = re.compile(r"norm|^ln(_|\d|$)")
_EMBEDDING = re.compile(r"embed|^(wte|wpe)$")
_ATTENTION = re.compile(r"attn|attention")
_MLP = re.compile(r"mlp|feed_forward|^ffn?$|ffn|experts?$|block_sparse_moe")
_HEAD = re.compile(r"^(lm_head|embed_out|output_head)$")
_INNER = {
    "attention": (
        ("attention qkv", re.compile(r"qkv|query_key_value|^c_attn$|^in_proj")),
        ("attention q", re.compile(r"^(q|wq|query)(_|$)")),
        ("attention k", re.compile(r"^(k|wk|key)(_|$)")),
        ("attention v", re.compile(r"^(v|wv|value)(_|$)")),
        ("attention o", re.compile(r"^(o|wo)(_proj)?$|^out(_|$)|^dense$|^c_proj$|^proj(ection)?(_layer)?$")),
    ),
    "MLP": (
        ("MLP gate", re.compile(r"^(gate_up_proj|gate_proj|w1)$")),
        ("MLP up", re.compile(r"^(up_proj|w3|fc1|c_fc|wi(_\d)?|dense_h_to_4h|linear_fc1)$")),
        ("MLP down", re.compile(r"^(down_proj|w2|fc2|c_proj|wo|dense_4h_to_h|linear_fc2)$")),
    ),
}


@dataclass(frozen=True)
class ParameterGroup:
    """Location of a tensor. part: text, vision or connector; module: one of GROUPS; layer: its number, or None."""

    part: str
    module: str
    layer: int | None

    @property
    def group(self) -> str:
        return {"vision": "vision tower", "connector": "connector"}.get(self.part, self.module)


def group_of(name: str) -> ParameterGroup:
    """The location of a tensor by its name in a model folder; module "other" if no pattern matches."""
    words = [word for word in name.split(".") if word not in ("weight", "bias")]
    if any(_CONNECTOR.search(word) for word in words):
        part = "connector"
    else:
        part = "vision" if any(_VISION.search(word) for word in words) else "text"
    layer = next((int(word) for word in words if word.isdigit()), None)
    return ParameterGroup(part, _module(words), layer)


def _module(words: list[str]) -> str:
    last = words[-1] if words else ""
    if any(_HEAD.search(word) for word in words):
        return "head"
    if _NORM.search(last):
        return "norm"
    for kind, owner in (("attention", _ATTENTION), ("MLP", _MLP)):
        if any(owner.search(word) for word in words):
            return next((name for name, pattern in _INNER[kind] if pattern.search(last)), kind)
    if any(_EMBEDDING.search(word) for word in words):
        return "embedding"
    for inner in _INNER.values():
        for name, pattern in inner:
            if pattern.search(last) and last not in ("dense", "c_proj", "proj", "projection"):
                return name
    return "other"
