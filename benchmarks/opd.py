"""A step of opd against a step of TRL's DistillationTrainer: the same pair, pictures, batch and answer length.

Both: write 32 answers to 8 questions, read them by teacher and student, full reverse KL averaged over positions, backward,
clip, AdamW; fp32, no gradient checkpointing, no end token before the last position. Prompts are new in every step, so
their encoding counts on both sides. TRL draws one answer per row of its dataset: each question is there four times.
"""

import tempfile
from pathlib import Path

from datasets.utils.logging import disable_progress_bar
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
from trl import DistillationConfig, DistillationTrainer

from benchmarks.steps import WARMUP, Steps, make_trainer, parts, step_arguments
from benchmarks.timing import Clock, Turn, show
from workbench.contexts import build_prompt

OURS, TRACED, TRL = "ours", "ours, every token recorded", "TRL DistillationTrainer"


class TakeTurns(TrainerCallback):
    """Lets our variants do a step after each of TRL's."""

    def __init__(self, ours: dict[str, Steps]) -> None:
        self.ours, self.clock = ours, Clock()
        self.turns: dict[str, list[Turn]] = {name: [] for name in (TRL, *ours)}

    def on_train_begin(self, *args, **kwargs) -> None:
        self.clock.start()

    def on_step_end(self, *args, **kwargs) -> None:
        self.turns[TRL].append(self.clock.stop())
        for name, step in self.ours.items():
            self.clock.start()
            step()
            self.turns[name].append(self.clock.stop())
        self.clock.start()


def main() -> None:
    args = step_arguments(__doc__)
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        method = {"name": "opd", "average": "position"}
        ours = {
            OURS: Steps(make_trainer(OURS, args, folder, method)),
            TRACED: Steps(make_trainer(TRACED, args, folder, method, traced=True)),
        }
        turns = TakeTurns(ours)
        trainer = trl_trainer(args, folder, ours[OURS], turns)
        with ours[TRACED].trainer.writer:
            trainer.train()
        counted = {name: values[WARMUP:] for name, values in turns.turns.items()}
        logged, metrics = trainer.state.log_history[0], ours[OURS].metrics
        print(f"tokens per answer: ours {metrics['completion_length']}, TRL's mean {logged['completions/mean_length']}")
        print(f"loss: ours {metrics['loss']:.4f} in the last step, TRL's mean {logged['loss']:.4f}")
        print(f"our last step: {parts(ours[TRACED].metrics)}")
        title = f"one step, {args.prompts} prompts x {args.generations} answers x {args.tokens} tokens"
        show(title, counted, base=TRL)


def trl_trainer(args, folder: Path, ours: Steps, turns: TakeTurns) -> DistillationTrainer:
    """TRL's trainer on the questions of our steps, in our order."""
    steps = args.repeats + WARMUP
    rows = []
    for step in range(1, steps + 1):
        for place in ours.trainer.order.batch(step, args.prompts):
            prompt = build_prompt(ours.trainer.examples[place], "plain")
            row = {"prompt": [{"role": "user", "content": prompt.text}], "images": list(prompt.images)}
            rows += [row] * args.generations
    processor = AutoProcessor.from_pretrained(args.student)
    config = DistillationConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=args.prompts * args.generations,
        max_steps=steps,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        max_completion_length=args.tokens,
        beta=1.0,  # reverse KL
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        logging_steps=steps,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        generation_kwargs={
            "suppress_tokens": [processor.tokenizer.convert_tokens_to_ids("<image>"), processor.tokenizer.eos_token_id]
        },
    )
    return DistillationTrainer(
        model=AutoModelForImageTextToText.from_pretrained(args.student),
        teacher_model=AutoModelForImageTextToText.from_pretrained(args.teacher),
        args=config,
        train_dataset=rows,
        processing_class=processor,
        callbacks=[turns],
    )


if __name__ == "__main__":
    main()
