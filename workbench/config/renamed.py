"""Former names of configuration keys. A former key is refused with its present name, never read silently.

`workbench upgrade RUN` applies the same tables to the folder of an older run.
"""

from collections.abc import Container, Mapping

from workbench.errors import ConfigError

RENAMED = {
    "models.attention": "models.attn_implementation",
    "models.share_images": "models.cache_image_features",
    "data.limit": "data.max_train_examples",
    "method.share": "method.fraction",
    "method.dataset_share": "method.dataset_fraction",
    "method.source": "method.target",
    "method.average": "method.loss_aggregation",
    "method.average_over": "method.normalize_by",
    "method.normalise": "method.normalize",
    "sampling.engine": "sampling.backend",
    "sampling.engine_memory": "sampling.backend_memory",
    "sampling.block": "sampling.diffusion_block_size",
    "training.bucket": "training.group_by_length",
    "training.keep": "training.save_total_limit",
    "training.trackers": "training.report_to",
    "trace.alternatives": "trace.top_k",
    "trace.alternatives_of": "trace.top_k_rollouts",
    "evaluation.count": "evaluation.max_examples",
    "evaluation.rule": "evaluation.grader",
}
RENAMED_VALUES = {
    "method.loss_aggregation": {"sequence": "sequence_mean", "position": "token_mean", "domain": "domain_mean"},
    "method.feedback": {"written": "reply"},
    "method.tail": {"renormalise": "renormalize"},
}
# keys of a study's file; `after` stands in a variant and `count` in an entry of evaluate
RENAMED_STUDY_KEYS = {"base": "extends", "after": "starts_from", "count": "max_examples"}


def refuse_renamed(values: Mapping[str, object], current_keys: Container[str]) -> None:
    """Raise ConfigError if nested `values` have a former key.

    current_keys  dotted keys that exist now: a method may have an option of its own with a former name
    """
    for section, entries in values.items():
        for name in entries if isinstance(entries, Mapping) else ():
            refuse_renamed_key(f"{section}.{name}", current_keys)


def refuse_renamed_key(key: str, current_keys: Container[str] = ()) -> None:
    """Raise ConfigError if the dotted `key` is a former one."""
    if key in RENAMED and key not in current_keys:
        raise ConfigError(f'"{key}" is now called "{RENAMED[key]}". Rename it.')


def refuse_renamed_study_key(key: str) -> None:
    """Raise ConfigError if `key` is a former key of a study's file."""
    if key in RENAMED_STUDY_KEYS:
        raise ConfigError(f'"{key}" is now called "{RENAMED_STUDY_KEYS[key]}". Rename it.')


def upgrade_config(values: Mapping[str, object], current_keys: Container[str] = ()) -> dict[str, object]:
    """Return nested `values` of a stored run under present keys and values. current_keys: as for `refuse_renamed`."""
    upgraded: dict[str, object] = {}
    for section, entries in values.items():
        if not isinstance(entries, Mapping):
            upgraded[section] = entries
            continue
        section_values = {}
        for name, value in entries.items():
            key = f"{section}.{name}"
            key = key if key in current_keys else RENAMED.get(key, key)
            new_value = RENAMED_VALUES.get(key, {}).get(value, value) if isinstance(value, str) else value
            section_values[key.partition(".")[2]] = new_value
        upgraded[section] = section_values
    return upgraded
