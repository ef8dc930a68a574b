"""Which public models fit on which devices, as `workbench plan` says: the table of docs/devices.md.

    python -m benchmarks plan [--pairs 32B-8B,8B-2B]

DOPD with a crop: one prompt of four answers of up to 128 tokens for each device, one answer in a forward pass; a
picture of 1,003,520 pixels, its crop as large, 256 tokens of text; the privileged student is the student at its start;
recomputed activations; passes in bfloat16, trained weights in float32 with AdamW. A cell is the first of WAYS that fits
95 % of the memory, with GB of its largest phase; if none does, the least that one needs.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workbench.config.schema import RunConfig, build_config
from workbench.training.planning.devices import GB
from workbench.training.planning.plan import least_bytes, plan_run
from workbench.training.planning.prompts import PromptSize

SIZES = Path(__file__).parent / "sizes"
PAIRS = {
    "32B-8B": ("qwen3-vl-32b", "qwen3-vl-8b"),
    "32B-2B": ("qwen3-vl-32b", "qwen3-vl-2b"),
    "8B-2B": ("qwen3-vl-8b", "qwen3-vl-2b"),
    "72B-8B": ("qwen2.5-vl-72b", "qwen3-vl-8b"),
}
DEVICES, MEMORY, USABLE = (1, 4, 8, 16), (24, 80, 141), 0.95
HALF = {"dtype": "bfloat16", "lora": {"rank": 16}}


@dataclass(frozen=True)
class Way:
    """A way to train: options of the models and of training, and whether weights are sharded."""

    name: str
    models: dict
    training: dict
    sharded: bool = False


FULL = {"dtype": "float32", "teacher_dtype": "bfloat16"}, {"mixed_precision": "bf16"}
WAYS = (
    Way("full", *FULL),
    Way("full, sharded", *FULL, sharded=True),
    Way("LoRA", HALF, {}),
    Way("LoRA, sharded", HALF, {}, sharded=True),
    Way("LoRA, int8 teacher", {**HALF, "teacher_dtype": "int8"}, {}),
    Way("LoRA, nf4 teacher", {**HALF, "teacher_dtype": "nf4"}, {}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=lambda text: text.split(","), default=list(PAIRS))
    for line in table(parser.parse_args().pairs):
        print(line, flush=True)


def table(pairs: list[str]) -> Iterator[str]:
    """Rows of a Markdown table: a pair and a number of devices, and a column for each memory."""
    yield "| pair | devices | " + " | ".join(f"{memory} GB each" for memory in MEMORY) + " |"
    yield "|---" * (2 + len(MEMORY)) + "|"
    planned: dict[tuple, int] = {}
    for pair in pairs:
        for devices in DEVICES:
            needs = {}
            for position, way in enumerate(WAYS):
                if devices > 1 or not way.sharded:
                    key = (pair, position, devices if way.sharded else min(devices, 2))  # otherwise all are alike
                    if key not in planned:
                        planned[key] = need(pair, way, devices)
                    needs[way.name] = planned[key]
            yield (
                f"| {pair.replace('-', ' → ')} | {devices} | " + " | ".join(cell(needs, size) for size in MEMORY) + " |"
            )


def cell(needs: dict[str, int], memory: int) -> str:
    """The first way that fits, or the least that any needs."""
    for name, size in needs.items():
        if size <= USABLE * memory * GB:
            return f"{name}: {size / GB:.0f}"
    return f"no ({min(needs.values()) / GB:.0f})"


def need(pair: str, way: Way, devices: int) -> int:
    """Bytes of the largest phase; where weights, moments and gradients alone are too large, theirs."""
    config = config_of(pair, way, devices)
    least = least_bytes(config, processes=devices, sharded=way.sharded)
    if least > MEMORY[-1] * GB:
        return least
    return plan_run(config, processes=devices, sharded=way.sharded, size=PromptSize()).largest.total


def config_of(pair: str, way: Way, devices: int) -> RunConfig:
    """A DOPD run of this pair with a prompt for each device."""
    teacher, student = (str(SIZES / name) for name in PAIRS[pair])
    models = {"student": student, "teacher": teacher, "gradient_checkpointing": True}
    return build_config(
        {
            "name": "plan",
            "models": models | way.models,
            "data": {"train": "scenes:hard?count=1"},
            "method": {"name": "dopd", "privilege": "crop", "self_policy": "student@start"},
            "sampling": {"num_generations": 4, "max_completion_length": 128},
            "training": {"batch_size": devices, "micro_batch_size": 1, **way.training},
        }
    )


if __name__ == "__main__":
    main()
