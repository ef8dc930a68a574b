"""A small tokenizer with the special tokens that a processor's class looks for."""

import inspect
import re

from transformers import PreTrainedTokenizerFast

from workbench.training.pretraining.tokenizer import BOS, EOS, PAD, build_processor

_LITERAL = re.compile(r"""["'](<[^<>\s"'{}]{1,40}>|<\|[^<>\s"'{}]{1,40}\|>|\[[A-Z_]{2,20}\])["']""")
_ATTRIBUTE = re.compile(r"""tokenizer(?:\.|, ["'])([a-z_]+?_token)(?:_id)?\b""")
_USUAL = {"pad_token", "bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token"}
_USUAL |= {"add_bos_token", "add_eos_token"}  # settings


def small_tokenizer(
    processor_class: type | None, tokens: dict[str, str], literals: tuple[str, ...]
) -> PreTrainedTokenizerFast:
    """The built-in tokenizer with the tokens that the class names: those that it spells, and those by attribute.

    tokens    tokens by attribute that the source does not spell
    literals  further special tokens
    """
    source = inspect.getsource(inspect.getmodule(processor_class)) if processor_class else ""
    spelled = dict.fromkeys([*_LITERAL.findall(source), *literals])
    names = [name for name in dict.fromkeys(_ATTRIBUTE.findall(source)) if name not in _USUAL]
    named = {name: _spelled(name, source) or f"<|{name}|>" for name in names} | tokens
    distinct = {PAD, BOS, EOS, *named.values()}
    extra = named | {f"literal_{number}": token for number, token in enumerate(spelled) if token not in distinct}
    return PreTrainedTokenizerFast(
        tokenizer_object=build_processor().tokenizer.backend_tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        extra_special_tokens=extra,
    )


def _spelled(name: str, source: str) -> str | None:
    """The token that the class takes for an attribute, where its source spells one."""
    match = re.search(rf"""\b{name}\b[^"\n]{{0,40}}{_LITERAL.pattern}""", source)
    return match[1] if match else None
