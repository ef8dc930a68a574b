"""Trainers whose steps run one by one, with the built-in models and world."""

import argparse
import json
from pathlib import Path

import torch

from workbench.config.schema import build_config
from workbench.runs.folder import RunFolder
from workbench.training.loop import Trainer

WARMUP = 3  # steps before the first that counts
DTYPE = "bfloat16" if torch.cuda.is_available() else "float32"


def step_arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--student", default="data/models/student")
    parser.add_argument("--teacher", default="data/models/teacher")
    parser.add_argument("--prompts", type=int, default=8, help="per step")
    parser.add_argument("--generations", type=int, default=4, help="per prompt")
    parser.add_argument("--tokens", type=int, default=32, help="per answer, exactly")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=WARMUP, help="steps before the first that counts")
    parser.add_argument("--optimizer", default="adamw", help="of our steps; sgd needs no memory for moments")
    parser.add_argument("--text", action="store_true", help="questions without images, for language models")
    parser.add_argument("--lora", type=int, nargs="?", const=16, default=0, help="train adapters of this rank; 16")
    return parser.parse_args()


def make_trainer(
    name: str, args: argparse.Namespace, folder: Path, method: dict, *, traced: bool = False, **sampling: object
) -> Trainer:
    """Build a trainer without evaluation and probes, whose answers all have `args.tokens` tokens.

    sampling  further keys of that section
    """
    config = build_config(
        {
            "name": name.replace(" ", "-").replace(",", ""),
            "output_dir": str(folder),
            "models": {
                "student": args.student,
                "teacher": args.teacher,
                "dtype": DTYPE,
                "lora": {"rank": args.lora},
            },
            "data": {"train": questions(args, folder)},
            "method": method,
            "sampling": {"num_generations": args.generations, "max_completion_length": args.tokens, **sampling},
            "training": {
                "steps": 10_000,
                "batch_size": args.prompts,
                "learning_rate": 1e-5,
                "schedule": "constant",
                "optimizer": args.optimizer,
            },
            "trace": {"every": int(traced), "probes": 0},
        }
    )
    run = RunFolder.create(config.run_dir, config.to_yaml(), seed=config.seed, method=method["name"])
    trainer = Trainer(config, run)
    student = trainer.learners[0].student
    student.placeholders = [*student.placeholders, *student.stop_ids]  # never sampled
    return trainer


def questions(args: argparse.Namespace, folder: Path) -> str:
    """Source of a question for every prompt of all steps: scenes, or with --text a file of sums with hints."""
    count = args.prompts * (args.repeats + args.warmup)
    if not args.text:
        return f"scenes:train?count={count}"
    file = folder / "questions.jsonl"
    pairs = [(7 * idx + 3, 5 * idx + 8) for idx in range(count)]
    rows = [
        {"id": f"{idx}", "question": f"What is {a} plus {b}?", "answer": f"{a + b}", "hint": f"Add {b} to {a}."}
        for idx, (a, b) in enumerate(pairs)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


class Steps:
    """Run a trainer's next step when called."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.done = trainer, 0
        self.metrics: dict[str, float] = {}

    @property
    def never(self) -> list[int]:
        """Tokens that the student never samples: image placeholders, and in benchmarks end tokens."""
        return sorted(self.trainer.learners[0].student.placeholders)

    def __call__(self) -> None:
        self.done += 1
        self.metrics = self.trainer.train_step(self.done)


def parts(metrics: dict[str, float]) -> str:
    """Format the milliseconds of each part of a step."""
    seconds = {name.removeprefix("seconds/"): value for name, value in metrics.items() if name.startswith("seconds/")}
    return ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in seconds.items())
