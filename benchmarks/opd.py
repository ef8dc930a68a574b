"""Compare a step of opd with a step of TRL's DistillationTrainer: same models, images, batch and answer length.

    python -m benchmarks opd [--lora [RANK]] [--student FOLDER --teacher FOLDER] [--prompts 8] [--generations 4]
                             [--tokens 32] [--text]
    python -m benchmarks opd --text --student smollm2 --teacher smollm2 --prompts 4 --tokens 48 --warmup 1 --repeats 2

Both: write 32 answers to 8 questions, read them by teacher and student, full reverse KL averaged over positions,
backward, clip, AdamW; fp32 (on a GPU bfloat16), no gradient checkpointing, no end token before the last position.
Prompts are new in every step, so their encoding counts on both sides. TRL draws one answer per row of its dataset: each
question is there four times. With --lora both train adapters of that rank on all linear layers but the head, as peft's
all-linear has it.
"""

import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, TrainerCallback

from benchmarks.steps import DTYPE, Steps, make_trainer, parts, step_arguments
from benchmarks.timing import Clock, Turn, show
from workbench.data.contexts import build_prompt
from workbench.policies.models import auto_class

try:
    from datasets.utils.logging import disable_progress_bar
    from trl import DistillationConfig, DistillationTrainer
except ImportError as error:
    sys.exit(
        f"This compares with TRL, which is not here ({error}): pip install "
        "'vlm-distillation-workbench[bench,lora,data]'"
    )

OURS, TRACED, TRL = "ours", "ours, every token recorded", "TRL DistillationTrainer"


class TakeTurns(TrainerCallback):
    """Callback that runs a step of our variants after each of TRL's."""

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
        method = {"name": "opd", "loss_aggregation": "token_mean"}
        ours = {
            OURS: Steps(make_trainer(OURS, args, folder, method)),
            TRACED: Steps(make_trainer(TRACED, args, folder, method, traced=True)),
        }
        turns = TakeTurns(ours)
        trainer = trl_trainer(args, folder, ours[OURS], turns)
        with ours[TRACED].trainer.trace_writer:
            trainer.train()
        counted = {name: values[args.warmup :] for name, values in turns.turns.items()}
        trained = {
            who: sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
            for who, model in (("ours", ours[OURS].trainer.learners[0].student.model), ("TRL's", trainer.model))
        }
        print(f"weights that are trained: {', '.join(f'{who} {count:,}' for who, count in trained.items())}")
        logged, metrics = trainer.state.log_history[0], ours[OURS].metrics
        print(f"tokens per answer: ours {metrics['completion_length']}, TRL's mean {logged['completions/mean_length']}")
        print(f"loss: ours {metrics['loss']:.4f} in the last step, TRL's mean {logged['loss']:.4f}")
        print(f"our last step: {parts(ours[TRACED].metrics)}")
        lora = f", LoRA of rank {args.lora}" if args.lora else ""
        title = f"one step{lora}, {args.prompts} prompts x {args.generations} answers x {args.tokens} tokens"
        show(title, counted, base=TRL)


def trl_config(args, folder: Path, steps: int, never: list[int]) -> DistillationConfig:
    """TRL's settings of a step as ours: reverse KL, float32 and a constant learning rate; `never` are not sampled."""
    return DistillationConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=args.prompts * args.generations,
        max_steps=steps,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        max_completion_length=args.tokens,
        beta=1.0,  # reverse KL
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        shuffle_dataset=False,
        logging_steps=steps,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        generation_kwargs={"suppress_tokens": never},
    )


def trl_trainer(args, folder: Path, ours: Steps, turns: TakeTurns) -> DistillationTrainer:
    """Build TRL's trainer on the questions of our steps, in the same order."""
    steps = args.repeats + args.warmup
    rows = []
    for step in range(1, steps + 1):
        for idx in ours.trainer.order.batch(step, args.prompts):
            prompt = build_prompt(ours.trainer.examples[idx], "plain")
            row: dict[str, object] = {"prompt": [{"role": "user", "content": prompt.text}]}
            row |= {"images": list(prompt.images)} if prompt.images else {}
            rows += [row] * args.generations
    processor = ours.trainer.learners[0].student.processor
    student, teacher = (
        auto_class(AutoConfig.from_pretrained(model)).from_pretrained(model, dtype=DTYPE)
        for model in (args.student, args.teacher)
    )
    adapter = ours.trainer.learners[0].student.model.peft_config["default"] if args.lora else None
    config = trl_config(args, folder, steps, ours.never)
    return DistillationTrainer(
        model=student,
        teacher_model=teacher,
        peft_config=adapter,
        args=config,
        train_dataset=rows,
        processing_class=processor,
        callbacks=[turns],
    )


if __name__ == "__main__":
    main()
