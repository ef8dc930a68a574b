"""SPD: does writing with projected keys and values change words of style more than it changes which values are right?

    python docs/studies/style_and_values.py        no training: the starting student of configs/spd.yaml, five seeds

The paper's idea is that the subspace of correct answers lets style go and keeps values. For every seed the subspace is
found as a run of that seed finds it. The student then writes with it and without it, and reads the data's answers so.
Writes style-and-values.md beside this file.
"""

import contextlib
import sys
from pathlib import Path

import numpy as np
import torch
from intervals import interval

from workbench.config.schema import load_config
from workbench.data.contexts import build_prompt
from workbench.data.examples import load_examples
from workbench.distill.losses import score
from workbench.distill.rollouts import sample_rollouts
from workbench.evals.evaluate import visibility_of
from workbench.methods import load_method
from workbench.policies import SamplingOptions
from workbench.policies.autoregressive import load_policy
from workbench.runs.folder import describe_environment
from workbench.seeding import EpochOrder, derive_seed
from workbench.types import VISIBLE, Example, label_completion, label_tokens

HERE = Path(__file__).parent
SEEDS = range(5)
QUESTIONS = "scenes:eval?count=384"
BATCH = 64
STYLE, VALUES = ("template",), ("location", "attribute", "tag", "answer")
WRITERS = {
    "nothing projected": {"subspace": "none"},
    "gradients, half": {"subspace": "gradient"},
    "gradients, a quarter": {"subspace": "gradient", "fraction": 0.25},
    "random, half (control)": {"subspace": "random"},
    "every token's gradients, half": {"subspace": "gradient", "calibrate_on": "all"},
}


def main() -> None:
    torch.set_num_threads(1)
    config = load_config("configs/spd.yaml")
    student = load_policy(config.models.student, "student")
    questions = [example for example in load_examples(QUESTIONS) if visibility_of(example) == VISIBLE]
    training = load_examples(config.data.train)
    measured_runs = {
        name: [measured(student, questions, training, options, seed, config) for seed in SEEDS]
        for name, options in WRITERS.items()
    }
    (HERE / "style-and-values.md").write_text(page(measured_runs, len(questions)))


def measured(
    student, questions: list[Example], training: list[Example], options: dict, seed: int, config
) -> dict[str, float]:
    """One writer of one seed: entropies (nats a token), shares of right values and right answers."""
    prepare = load_method("spd", options).sampling_patch
    order = EpochOrder(len(training), seed)
    if prepare is None:
        writing = contextlib.nullcontext()
    else:
        in_order = (training[order.index(idx)] for idx in range(len(training)))
        writing = prepare.apply(student, prepare.build(student, in_order, derive_seed("prepare", seed)).tensors)
    sampling = SamplingOptions(config.sampling.max_completion_length)
    with writing, torch.no_grad():
        rollouts = sample_rollouts(
            student,
            questions,
            context="plain",
            sampling=sampling,
            num_generations=1,
            seed=(seed, "style"),
            batch_size=BATCH,
        )
        written = [label_completion(student.token_texts(item.ids), item) for item in rollouts]
        written_scores = read(student, questions, [item.ids for item in rollouts], written)
        ids = [student.answer_ids(item.reference) for item in questions]
        data_labels = [
            label_tokens([*student.token_texts(item)[:-1], ""], example.marks)
            for item, example in zip(ids, questions, strict=True)
        ]
        data = read(student, questions, ids, data_labels)
    right = float(np.mean([item.reward for item in rollouts]))
    return {
        "style, written": written_scores["style"],
        "values, written": written_scores["values"],
        "style, data": data["style"],
        "values, data": data["values"],
        "value right": data["right"],
        "answer right": right,
    }


def read(student, questions: list[Example], ids: list[tuple[int, ...]], labels: list) -> dict[str, float]:
    """Mean entropy at tokens of style and of value, and the share of values that are the most likely token."""
    entropy, rank = [], []
    for start in range(0, len(ids), BATCH):
        part = slice(start, start + BATCH)
        output = student.forward([build_prompt(item, "plain") for item in questions[part]], ids[part])
        scores = score(output, torch.tensor([token for item in ids[part] for token in item]))
        entropy.append(scores.entropy)
        rank.append(scores.rank)
    kinds = [kind for sequence in labels for kind, _ in sequence]
    entropy, rank = torch.cat(entropy), torch.cat(rank)
    style, values = (torch.tensor([kind in wanted for kind in kinds]) for wanted in (STYLE, VALUES))
    return {
        "style": float(entropy[style].mean()),
        "values": float(entropy[values].mean()),
        "right": float((rank[values] == 0).float().mean()),
    }


def page(runs_by_name: dict[str, list[dict]], num_questions: int) -> str:
    where, plain = describe_environment(), runs_by_name[next(iter(runs_by_name))]
    lines = [
        "# Does the projection touch style more than values?",
        "",
        f"`python {' '.join(sys.argv)}`: no training. {num_questions} visible questions of `{QUESTIONS}`, seeds "
        f"{', '.join(map(str, SEEDS))} (of the calibration's",
        "examples, of random subspaces and of what is sampled); commit "
        f"{str(where['commit'])[:10]}{' with changes' if where.get('dirty') else ''}. *Style*: tokens of the template",
        "(`at`, `tag`, `answer`, commas, the end). *Values*: places, attributes, tags and the answer. *Written*: in "
        "the student's own sampled answers, read as",
        "they were written. *Data*: in the data's answers; a value is right if it is the most likely token after the "
        "data's own words before it.",
        "± half of the 95 % interval over seeds (Student's t).",
        "",
        "| projected on | entropy of style, written, nats | of values, written | of style, data | of values, data | "
        "values right, data | answers right, written |",
        "|---|---|---|---|---|---|---|",
    ]
    shows = {
        "style, written": "{:.4f}",
        "values, written": "{:.3f}",
        "style, data": "{:.4f}",
        "values, data": "{:.3f}",
        "value right": "{:.1%}",
        "answer right": "{:.1%}",
    }
    for name, runs in runs_by_name.items():
        cells = [text([run[key] for run in runs], show) for key, show in shows.items()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "Against nothing projected, seed by seed, in per cent of its value there. *More*: the size of the change of "
        "the style's entropy minus that of the",
        "right answers, both written: above zero, style changes more.",
        "",
        "| projected on | entropy of style, written | of values, written | of style, data | of values, data | values "
        "right, data | answers right, written | more |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in list(runs_by_name.items())[1:]:
        changes = {key: [run[key] / before[key] - 1 for run, before in zip(runs, plain, strict=True)] for key in shows}
        more = [
            abs(style) - abs(right)
            for style, right in zip(changes["style, written"], changes["answer right"], strict=True)
        ]
        lines.append(f"| {name} | {' | '.join(text(values, '{:+.1%}') for values in (*changes.values(), more))} |")
    return "\n".join([*lines, ""])


def text(values: list[float], show: str) -> str:
    mean, half = interval(values)
    return f"{show.format(mean)} ± {show.replace('+', '').format(half)}"


if __name__ == "__main__":
    main()
