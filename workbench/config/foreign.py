"""Keys of other trainers (TRL, ms-swift, LLaMA-Factory), refused with the key that has their meaning here."""

from collections.abc import Container, Iterator, Mapping

from workbench.errors import ConfigError, cut

_IMAGES = "models.max_pixels, or models.image_processor in the processor's own terms"
_LORA = {name: f"models.lora.{name}" for name in ("rank", "alpha", "dropout", "target_modules")}
FOREIGN = {
    **dict.fromkeys(("model", "model_name_or_path"), "models.student"),
    **dict.fromkeys(("teacher_model", "teacher_model_name_or_path"), "models.teacher"),
    "torch_dtype": "models.dtype",
    **dict.fromkeys(("load_in_4bit", "quant_bits"), "models.dtype=nf4"),
    "attn_impl": "models.attn_implementation",
    **dict.fromkeys(("image_size", "min_pixels", "longest_edge", "max_image_size", "image_max_pixels"), _IMAGES),
    "system": "models.system_prompt",
    "enable_thinking": "models.chat_template_kwargs={enable_thinking: false}",
    **dict.fromkeys(("freeze_vit", "freeze_vision_tower", "freeze_aligner", "freeze_llm"), "models.train"),
    **dict.fromkeys(("vit_lr", "aligner_lr"), "training.learning_rates"),
    **{f"lora_{name}": key for name, key in _LORA.items()},
    "lora_r": _LORA["rank"],
    **dict.fromkeys(("dataset", "dataset_name"), "data.train"),
    **dict.fromkeys(("val_dataset", "eval_dataset"), "data.eval"),
    "split_dataset_ratio": "data.held_out",
    "num_train_epochs": "training.epochs",
    "max_steps": "training.steps",
    "per_device_train_batch_size": "training.batch_size, or training.micro_batch_size for one pass",
    "gradient_accumulation_steps": "training.micro_batch_size",
    "lr_scheduler_type": "training.schedule",
    "warmup_ratio": "training.warmup_steps",
    "optim": "training.optimizer",
    **dict.fromkeys(("bf16", "fp16"), "training.mixed_precision=bf16"),
    "padding_free": "training.packing",
    **dict.fromkeys(("max_length", "cutoff_len"), "data.max_prompt_length, and sampling.max_completion_length"),
    "max_new_tokens": "sampling.max_completion_length",
    **dict.fromkeys(("stop", "stop_words"), "sampling.stop_strings"),
    "use_vllm": "sampling.backend=vllm",
    "eval_steps": "evaluation.every",
    "early_stopping": "evaluation.early_stopping_patience",
    "save_steps": "training.save_every",
    "run_name": "name",
    "lora": "models.lora",
}


def refuse_foreign(values: Mapping[str, object], current_keys: Mapping[str, object]) -> None:
    """Raise ConfigError for a key of another trainer, or of another section.

    current_keys  dotted keys that exist
    """
    sections = {name.rpartition(".")[0] for name in current_keys}
    for key in _keys(values, sections):
        if key in current_keys or key in sections:
            continue
        leaf = key.rpartition(".")[2]
        ours = FOREIGN.get(leaf) or " or ".join(name for name in current_keys if name.rpartition(".")[2] == leaf)
        if ours:
            raise ConfigError(f'key "{cut(key)}" is unknown. Its meaning here has {ours}. Set that instead.')


def _keys(values: Mapping[str, object], sections: Container[str]) -> Iterator[str]:
    """Keys of the configuration and of its known sections but the method, whose options are its own."""
    for section, entries in values.items():
        yield str(section)
        if isinstance(entries, Mapping) and section != "method" and section in sections:
            yield from (f"{section}.{name}" for name in entries)
