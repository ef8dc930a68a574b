"""What recording adds to a step of TRL's DistillationTrainer: every other step is recorded, and the two are compared.

    python -m benchmarks recorded [--student FOLDER --teacher FOLDER] [--prompts 8] [--generations 4] [--tokens 32]

Recorded under opd (student and teacher score each answer once more) and under dopd with a crop (a third view, and two
longer prompts). All answers have the same length, as in `benchmarks opd`.
"""

import logging
import sys
import tempfile
from pathlib import Path

from transformers import AutoConfig, AutoModelForImageTextToText, TrainerCallback

from benchmarks.opd import DistillationTrainer, trl_config
from benchmarks.steps import DTYPE, step_arguments
from benchmarks.timing import Clock, Turn, show
from workbench.data.contexts import build_prompt
from workbench.data.examples import load_examples
from workbench.policies.processors import load_processor
from workbench.training.integrations.trl import record_rollouts

ALONE, RECORDED = "TRL DistillationTrainer", "and recorded"
METHODS = {"opd": {"method": "opd"}, "dopd, crop": {"method": "dopd", "privilege": "crop"}}


class Alternating(TrainerCallback):
    """Times odd steps, which are not recorded, and even steps, which are."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.turns: dict[str, list[Turn]] = {ALONE: [], RECORDED: []}

    def on_step_begin(self, *args, **kwargs) -> None:
        self.clock.start()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.turns[RECORDED if state.global_step % 2 == 0 else ALONE].append(self.clock.stop())


def main() -> None:
    args = step_arguments(__doc__)
    if args.text:
        sys.exit("--text is for benchmarks opd and dopd; this one needs the scenes.")
    logging.getLogger("workbench").setLevel(logging.ERROR)
    for name, options in METHODS.items():
        with tempfile.TemporaryDirectory() as folder:
            turns = measure(args, Path(folder), options)
        show(f"one step, {args.prompts} x {args.generations} x {args.tokens} tokens, {name}", turns, base=ALONE)


def measure(args, folder: Path, options: dict) -> dict[str, list[Turn]]:
    steps = 2 * (args.repeats + args.warmup)
    data = f"scenes:train?count={args.prompts * steps}"
    rows = []
    for example in load_examples(data):
        prompt = build_prompt(example, "plain")
        row = {"prompt": [{"role": "user", "content": prompt.text}], "images": list(prompt.images), "id": example.id}
        rows += [row] * args.generations
    processor = load_processor(args.student, AutoConfig.from_pretrained(args.student))
    student, teacher = (
        AutoModelForImageTextToText.from_pretrained(model, dtype=DTYPE) for model in (args.student, args.teacher)
    )
    config = trl_config(args, folder, steps, [processor.tokenizer.eos_token_id])
    timer = Alternating()
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=config,
        train_dataset=rows,
        processing_class=processor,
        callbacks=[timer],
    )
    callback = record_rollouts(trainer, folder / "recorded", data=data, every=2, **options)
    trainer.train()
    assert callback.num_recorded == args.prompts * args.generations * steps // 2, callback.skipped
    return {name: values[args.warmup :] for name, values in timer.turns.items()}


if __name__ == "__main__":
    main()
