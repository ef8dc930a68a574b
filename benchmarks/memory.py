"""Peak memory and time of whole steps at a vocabulary of 151,936, by the number of positions.

    python -m benchmarks memory [--positions 1024,2048,4096,8192,16384] [--lengths 64,128,256,512,1024,2048]
                                [--method opd]

A text model of width 64 with Qwen3's vocabulary, random weights; a larger one teaches. A step samples, scores under
every view, computes losses, and updates the weights; answers have 128 tokens, forward passes 8 answers. Above what
there is after a first small step (weights, gradients' room, moments). Each measurement runs in a separate process.

positions  peak memory and processor time by number of positions. Logits of all would take 0.58 MiB per position (fp32);
           the growing parts are hidden states, caches and traced numbers
lengths    the same for a fixed number of positions, in answers of 64 to 2,048 tokens
growing    the same for 8 answers of increasing length
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from benchmarks.gpu import VOCABULARY, build_tokenizer
from benchmarks.losses import Peak
from benchmarks.steps import Steps
from benchmarks.timing import machine
from workbench.config.schema import build_config
from workbench.runs.folder import RunFolder
from workbench.training.loop import Trainer

TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} {{ message['content'] }} <|im_end|> {% endfor %}"
    "<|im_start|> assistant "
)
GENERATIONS, LENGTH, MICRO_BATCH = 4, 128, 8


def main() -> None:
    args = arguments()
    if args.shape:
        print(json.dumps(measure(Path(args.folder), args.method, *args.shape)))
        return
    print(f"{args.method}, V = {VOCABULARY:,}, fp32, the CPU's memory (resident size); {machine()}")
    with tempfile.TemporaryDirectory() as folder:
        for role, width in (("student", 64), ("teacher", 128)):
            save(Path(folder) / role, width)
        shapes = [(count // LENGTH, LENGTH) for count in args.positions]
        show("positions", folder, args.method, shapes)
        show("lengths", folder, args.method, [(args.lengths[-1] // length, length) for length in args.lengths])
        show("growing", folder, args.method, [(MICRO_BATCH, length) for length in args.lengths])


def arguments() -> argparse.Namespace:
    numbers = lambda text: [int(number) for number in text.split(",") if number]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=numbers, default=[1024, 2048, 4096, 8192, 16_384])
    parser.add_argument(
        "--lengths",
        type=numbers,
        default=[64, 128, 256, 512, 1024, 2048],
        help="of answers; the last: positions of each step",
    )
    parser.add_argument("--method", default="opd")
    parser.add_argument("--shape", type=numbers, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def save(folder: Path, width: int) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def show(title: str, folder: str, method: str, shapes: list[tuple[int, int]]) -> None:
    print(
        f"\n{title}\n{'answers':>9}{'tokens':>8}{'positions':>11}{'peak MiB':>10}{'of it a position KiB':>22}"
        f"{'s':>8}{'ms a position':>15}"
    )
    for answers, length in shapes:
        command = [sys.executable, "-m", "benchmarks.memory", "--folder", folder, "--method", method]
        done = subprocess.run([*command, "--shape", f"{answers},{length}"], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{answers} answers of {length} tokens ended with {done.returncode}: {done.stderr[-500:]}")
        result, count = json.loads(done.stdout.splitlines()[-1]), answers * length
        print(
            f"{answers:9}{length:8}{count:11,}{result['bytes'] / 2**20:10.0f}{result['bytes'] / 2**10 / count:22.1f}"
            f"{result['seconds']:8.1f}{1000 * result['seconds'] / count:15.2f}",
            flush=True,
        )


def measure(folder: Path, method: str, answers: int, length: int) -> dict[str, float]:
    """Measure one step: bytes above those after a first step of one answer, and processor time in seconds."""
    generations = min(GENERATIONS, answers)
    prompts = answers // generations
    rows = [{"question": f"w{idx + 100} w{idx + 200} ?", "answer": "w1"} for idx in range(prompts)]
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "data.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        steps = Steps(make(folder, Path(temporary), method, data, prompts, generations, length))
        learner, student = steps.trainer.learners[0], steps.trainer.learners[0].student
        student.placeholders = [
            *student.placeholders,
            *student.stop_ids,
        ]  # never drawn: all answers have their length
        for parameter in learner.parameters:  # room that every step takes
            parameter.grad = torch.zeros_like(parameter)
        learner.update(1)
        with steps.trainer.trace_writer, Peak() as peak:
            start = time.process_time()
            steps()
            seconds = time.process_time() - start
        assert steps.metrics["tokens"] == answers * length
    return {"bytes": peak.bytes, "seconds": seconds}


def make(folder: Path, runs: Path, method: str, data: Path, prompts: int, generations: int, length: int) -> Trainer:
    config = build_config(
        {
            "name": "step",
            "output_dir": str(runs),
            "models": {"student": str(folder / "student"), "teacher": str(folder / "teacher")},
            "data": {"train": str(data)},
            "method": {"name": method},
            "sampling": {"num_generations": generations, "max_completion_length": length},
            "training": {"steps": 1000, "batch_size": prompts, "micro_batch_size": MICRO_BATCH},
            "trace": {"probes": 0},
        }
    )
    run = RunFolder.create(config.run_dir, config.to_yaml(), seed=config.seed, method=method)
    return Trainer(config, run)


if __name__ == "__main__":
    main()
