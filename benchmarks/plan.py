"""Which public models fit on which devices, as `workbench plan` says: the table of docs/devices.md.

    python -m benchmarks plan [--pairs 32B-8B,8B-2B]

DOPD with a crop: one prompt of four answers of up to 128 tokens for each device that trains, one answer in a forward
pass; a picture of 1,003,520 pixels, its crop as large, 256 tokens of text; the privileged student is the present one;
recomputed activations; passes in bfloat16, trained weights in float32 with AdamW. A cell is the first of WAYS
that fits 95 % of the memory, with GB of its largest phase. With servers, half of the devices serve, and the others
train; a single device has others beside it.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from workbench.config.schema import RunConfig, build_config
from workbench.training.planning.devices import GB
from workbench.training.planning.plan import Phase, least_bytes, plan_run
from workbench.training.planning.prompts import PromptSize
from workbench.training.planning.remedies import parallel_devices

SIZES = Path(__file__).parent / "sizes"
PAIRS = {
    "32B-8B": ("qwen3-vl-32b", "qwen3-vl-8b"),
    "32B-2B": ("qwen3-vl-32b", "qwen3-vl-2b"),
    "8B-2B": ("qwen3-vl-8b", "qwen3-vl-2b"),
    "72B-8B": ("qwen2.5-vl-72b", "qwen3-vl-8b"),
}
DEVICES, MEMORY, USABLE = (1, 4, 8, 16), (24, 80, 141), 0.95
HALF = {"dtype": "bfloat16", "lora": {"rank": 16}}


SERVED, SAMPLER = "http://127.0.0.1:8000", "http://127.0.0.1:8001"


@dataclass(frozen=True)
class Way:
    """A way to train: options of the models and of training, and what servers hold."""

    name: str
    models: dict
    training: dict
    sharded: bool = False
    served: bool = False
    samples: bool = False

    def trainers(self, devices: int) -> int:
        """Devices that train."""
        return max(1, devices // 2) if self.served else devices


FULL = {"dtype": "float32", "teacher_dtype": "bfloat16"}, {"mixed_precision": "bf16"}
FULL_SERVED = {"dtype": "float32"}, {"mixed_precision": "bf16"}
WAYS = (
    Way("full", *FULL),
    Way("full, sharded", *FULL, sharded=True),
    Way("full, served teacher", *FULL_SERVED, sharded=True, served=True),
    Way("full, served teacher and sampler", *FULL_SERVED, sharded=True, served=True, samples=True),
    Way("LoRA", HALF, {}),
    Way("LoRA, sharded", HALF, {}, sharded=True),
    Way("LoRA, served teacher", HALF, {}, served=True),
    Way("LoRA, served teacher, sharded", HALF, {}, sharded=True, served=True),
    Way("LoRA, int8 teacher", {**HALF, "teacher_dtype": "int8"}, {}),
    Way("LoRA, nf4 teacher", {**HALF, "teacher_dtype": "nf4"}, {}),
)


@dataclass(frozen=True)
class Need:
    """Bytes of a device that trains, and of each server; at least so many, if it is `least`."""

    bytes: int
    servers: tuple[Phase, ...] = ()
    least: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=lambda text: text.split(","), default=list(PAIRS))
    for line in table(parser.parse_args().pairs):
        print(line, flush=True)


def table(pairs: list[str]) -> Iterator[str]:
    """Rows of a Markdown table: a pair and a number of devices, and a column for each memory."""
    yield "| pair | devices | " + " | ".join(f"{memory} GB each" for memory in MEMORY) + " |"
    yield "|---" * (2 + len(MEMORY)) + "|"
    for pair in pairs:
        for devices in DEVICES:
            cells = " | ".join(cell(pair, devices, int(USABLE * memory * GB)) for memory in MEMORY)
            yield f"| {pair.replace('-', ' → ')} | {devices} | {cells} |"


def cell(pair: str, devices: int, memory: int) -> str:
    """The first way that fits, servers too."""
    for way in WAYS:
        trainers = way.trainers(devices)
        if trainers == 1 and way.sharded and not way.served:
            continue
        needed = need(pair, way, trainers, memory)
        if fits(needed, devices - trainers, memory):
            beside = (f" on {trainers}" if devices > 1 else " beside servers") if way.served else ""
            return f"{way.name}: {needed.bytes / GB:.0f}{beside}"
    return "no"


def fits(needed: Need, serving: int, memory: int) -> bool:
    """Whether a plan fits, and its servers on the devices that serve; a single device has others beside it."""
    counts = sum(parallel_devices(phase, memory) for phase in needed.servers)
    return not needed.least and needed.bytes <= memory and (not serving or counts <= serving)


def need(pair: str, way: Way, trainers: int, memory: int) -> Need:
    """What a plan needs; where weights, moments and gradients alone are larger than `memory`, theirs."""
    trainers = trainers if way.sharded else min(trainers, 2)  # otherwise all are alike
    least = least_bytes(config_of(pair, way, trainers), **options_of(pair, way, trainers))
    return Need(least, least=True) if least > memory else planned(pair, WAYS.index(way), trainers)


@cache
def planned(pair: str, way: int, trainers: int) -> Need:
    """What a plan of one of the ways needs."""
    config, options = config_of(pair, WAYS[way], trainers), options_of(pair, WAYS[way], trainers)
    plan = plan_run(config, size=PromptSize(), **options)
    return Need(plan.largest.total, plan.servers)


def options_of(pair: str, way: Way, trainers: int) -> dict[str, Any]:
    teacher = str(SIZES / PAIRS[pair][0]) if way.served else None
    return {"processes": trainers, "sharded": way.sharded and trainers > 1, "served_teacher": teacher}


def config_of(pair: str, way: Way, devices: int) -> RunConfig:
    """A DOPD run of this pair with a prompt for each device."""
    teacher, student = (str(SIZES / name) for name in PAIRS[pair])
    teacher = SERVED if way.served else teacher
    models = {"student": student, "teacher": teacher, "gradient_checkpointing": True}
    return build_config(
        {
            "name": "plan",
            "models": models | way.models,
            "data": {"train": "scenes:hard?count=1"},
            "method": {"name": "dopd", "privilege": "crop", "self_policy": "student"},
            "sampling": {
                "num_generations": 4,
                "max_completion_length": 128,
                "server": SAMPLER if way.samples else None,
            },
            "training": {"batch_size": devices, "micro_batch_size": 1, **way.training},
        }
    )


if __name__ == "__main__":
    main()
