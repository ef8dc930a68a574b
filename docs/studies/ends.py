"""What becomes of answers when the teacher ends them with another token than the student (arXiv 2609.20511).

    python docs/studies/ends.py [--divergence forward_kl] [--steps 60] [--seeds 1]

The built-in teacher is given another end: the rows of its head for <end_of_utterance> and <system> change places, so
that it is as good as before and stops with a token that the student never writes. The student is distilled from it by
OPD, once with the ends of both made one action, as the workbench does, and once compared id by id.
"""

import argparse
import tempfile
from pathlib import Path
from unittest import mock

import torch

import workbench as wb
from workbench.evals.records import load_records
from workbench.policies.autoregressive import load_policy
from workbench.types import STUDENT

ROOT = Path(__file__).parents[2]
OTHER = "<system>"


def teacher_with_another_end(folder: Path) -> Path:
    """The built-in teacher, stopping with OTHER."""
    policy = load_policy(ROOT / "data/models/teacher", "teacher")
    end_id, other_id = policy.end_id, policy.tokenizer.convert_tokens_to_ids(OTHER)
    head = policy.model.get_output_embeddings()
    weight = head.weight.detach().clone()
    weight[[end_id, other_id]] = weight[[other_id, end_id]]
    head.weight = torch.nn.Parameter(weight)  # what is read in prompts stays
    policy.model.config.tie_word_embeddings = policy.model.config.text_config.tie_word_embeddings = False
    policy.model.generation_config.eos_token_id = [other_id]
    policy.model.save_pretrained(folder)
    policy.processor.save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--divergence", default="reverse_kl")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    print(f"{'ends':10} {'seed':>4} {'step':>4} {'right':>6} {'ended':>6} {'tokens':>6}")
    with tempfile.TemporaryDirectory() as temporary:
        teacher = teacher_with_another_end(Path(temporary) / "teacher")
        for seed in range(options.seeds):
            for ends in ("merged", "id by id"):
                values = {
                    "name": f"{ends.replace(' ', '-')}-{seed}",
                    "seed": seed,
                    "output_dir": temporary,
                    "training.steps": options.steps,
                    "models.student": ROOT / "data/models/student",
                    "models.teacher": teacher,
                    "trace.every": 0,
                    "method.divergence": options.divergence,
                    "evaluation.every": options.steps // 2,
                    "evaluation.contexts": "[plain]",
                    "evaluation.teacher": "false",
                }
                config = wb.load_config(ROOT / "configs/opd.yaml", [f"{key}={value}" for key, value in values.items()])
                if ends == "merged":
                    wb.train(config)
                else:
                    with mock.patch("workbench.policies.loading.unify_eos_tokens"):
                        wb.train(config)
                answers = [row for row in load_records(config.run_dir) if row.policy == STUDENT]
                for step in sorted({row.step for row in answers}):
                    at_step = [row for row in answers if row.step == step]
                    right, ended, length = (
                        sum(values) / len(at_step)
                        for values in (
                            [row.reward or 0 for row in at_step],
                            [row.finished for row in at_step],
                            [row.length for row in at_step],
                        )
                    )
                    print(f"{ends:10} {seed:4} {step:4} {right:6.1%} {ended:6.1%} {length:6.1f}", flush=True)


if __name__ == "__main__":
    main()
