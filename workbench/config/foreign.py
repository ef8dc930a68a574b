"""Keys of other trainers (TRL, ms-swift, LLaMA-Factory), refused with the key that has their meaning here."""

from collections.abc import Container, Iterator, Mapping

from workbench.errors import ConfigError, cut

_IMAGES = "models.max_pixels, or models.image_processor in the processor's own terms"
_IMAGE_KEYS = (
    *("image_size", "min_pixels", "max_image_size", "image_max_pixels", "image_min_pixels", "image_resolution"),
    *("longest_edge", "shortest_edge", "resized_height", "resized_width"),
    *("tiles", "max_tiles", "max_num_tiles", "max_patches", "min_patches", "crop_to_patches", "max_dynamic_patch"),
    *("do_image_splitting", "do_pan_and_scan"),
)
_LORA = {name: f"models.lora.{name}" for name in ("rank", "alpha", "dropout", "target_modules")}
FOREIGN = {
    **dict.fromkeys(("model", "model_name_or_path"), "models.student"),
    **dict.fromkeys(("teacher_model", "teacher_model_name_or_path"), "models.teacher"),
    "torch_dtype": "models.dtype",
    **dict.fromkeys(("load_in_4bit", "quant_bits", "quantization_bit", "qlora"), "models.dtype=nf4"),
    "load_in_8bit": "models.teacher_dtype=int8",
    "device_map": "models.device",
    **dict.fromkeys(("attn_impl", "flash_attn"), "models.attn_implementation"),
    **dict.fromkeys(_IMAGE_KEYS, _IMAGES),
    "system": "models.system_prompt",
    **dict.fromkeys(("teacher_model_server", "teacher_server"), "models.teacher=http://host:8000"),
    "enable_thinking": "models.chat_template_kwargs={enable_thinking: false}",
    **dict.fromkeys(("freeze_vit", "freeze_vision_tower", "freeze_aligner", "freeze_llm"), "models.train"),
    **dict.fromkeys(("freeze_multi_modal_projector", "freeze_language_model", "trainable_parameters"), "models.train"),
    **dict.fromkeys(("vit_lr", "aligner_lr", "vision_tower_lr"), "training.learning_rates"),
    **dict.fromkeys(("use_peft", "train_type", "tuner_type", "finetuning_type"), "models.lora.rank"),
    **{f"lora_{name}": key for name, key in _LORA.items()},
    "lora_r": _LORA["rank"],
    **dict.fromkeys(("dataset", "dataset_name"), "data.train"),
    **dict.fromkeys(("val_dataset", "eval_dataset"), "data.eval"),
    **dict.fromkeys(("interleave_prob", "dataset_weights"), "data.train=[{path: ..., weight: ...}]"),
    "dataset_shuffle": "data.shuffle",
    "max_samples": "data.max_train_examples",
    **dict.fromkeys(("image_folder", "media_dir"), "data.train, with paths that start at its file's folder,"),
    "split_dataset_ratio": "data.held_out",
    "num_train_epochs": "training.epochs",
    "lr": "training.learning_rate",
    "max_steps": "training.steps",
    "per_device_train_batch_size": "training.batch_size, or training.micro_batch_size for one pass",
    "gradient_accumulation_steps": "training.micro_batch_size",
    "lr_scheduler_type": "training.schedule",
    "warmup_ratio": "training.warmup_steps",
    "optim": "training.optimizer",
    **dict.fromkeys(("adam_beta1", "adam_beta2"), "training.betas"),
    **dict.fromkeys(("fsdp", "fsdp_config", "deepspeed"), "accelerate launch --use_fsdp (docs/devices.md)"),
    **dict.fromkeys(("bf16", "fp16"), "training.mixed_precision=bf16"),
    "padding_free": "training.packing",
    **dict.fromkeys(
        ("max_length", "cutoff_len", "max_seq_length", "model_max_length"),
        "data.max_prompt_length, and sampling.max_completion_length",
    ),
    **dict.fromkeys(("max_new_tokens", "max_tokens"), "sampling.max_completion_length"),
    **dict.fromkeys(("stop", "stop_words"), "sampling.stop_strings"),
    **dict.fromkeys(("use_vllm", "vllm_mode"), "sampling.backend=vllm"),
    **dict.fromkeys(("vllm_server_host", "vllm_server_base_url"), "sampling.server=http://host:8001"),
    "vllm_gpu_memory_utilization": "sampling.backend_memory",
    "n_samples_per_prompt": "sampling.num_generations",
    **dict.fromkeys(("generation_batch_size", "rollout_batch_size"), "training.batch_size"),
    "do_sample": "sampling.temperature",
    **dict.fromkeys(("eval_steps", "eval_strategy"), "evaluation.every"),
    "per_device_eval_batch_size": "evaluation.batch_size",
    "early_stopping": "evaluation.early_stopping_patience",
    **dict.fromkeys(("save_steps", "save_strategy"), "training.save_every"),
    "resume_from_checkpoint": "workbench resume",
    "lmbda": "method.dataset_fraction (1 - lmbda) of method.name=gkd",
    "beta": "method.beta of method.name=gkd",
    **dict.fromkeys(("log_completions", "top_logprobs"), "trace"),
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
            raise ConfigError(f'key "{cut(key)}" is unknown. Use {ours} instead.')


def _keys(values: Mapping[str, object], sections: Container[str]) -> Iterator[str]:
    """Keys of the configuration and of its known sections but the method, whose options are its own."""
    for section, entries in values.items():
        yield str(section)
        if isinstance(entries, Mapping) and section != "method" and section in sections:
            yield from (f"{section}.{name}" for name in entries)
