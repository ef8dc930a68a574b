"""LM+KD: does who predicts a token better, the teacher or a student without one, tell whether the teacher helps there?

    workbench study configs/studies/lm_kd.yaml
    python docs/studies/oracle_split.py runs/lm_kd weak-0.5 strong-0.5

Reads the data's answers to held-out questions with the last student of every run of the named variants (two or more
folders' names without their seed; the last has the strongest teacher) and of the one without a teacher. Tokens are
split by the teacher and by the student of another seed that learned from the data alone; the difference that is
explained is between students of the run's own seed. If both came from one student, what that student happens to do
badly would look like the teacher's help; the first table's control shows how much. Writes oracle-split.md beside this
file.
"""

import sys
from pathlib import Path

import torch
from intervals import came_from, interval
from torch import Tensor

from workbench.config.schema import RunConfig, load_config
from workbench.data.contexts import build_prompt
from workbench.data.examples import load_examples
from workbench.distill.losses import score
from workbench.policies.autoregressive import load_policy
from workbench.runs.checkpoints import latest_checkpoint
from workbench.types import STUDENT, Example, TokenScores

HERE = Path(__file__).parent
BASELINE = "data"  # the variant without a teacher
QUESTIONS = {"as in training": "scenes:eval?count=256", "unseen pairs (`combos`)": "scenes:combos?count=128"}
BATCH = 64


def main() -> None:
    torch.set_num_threads(1)
    study, variants = Path(sys.argv[1]), sys.argv[2:]
    alone = sorted(study.glob(f"{BASELINE}-s*"))
    if len(alone) < 3:
        sys.exit(f"{study} has {len(alone)} runs named {BASELINE}-s*; three are needed. Run the study first.")
    seeds = [folder.name.rpartition("-s")[2] for folder in alone]
    used = alone + [study / f"{variant}-s{seed}" for variant in variants for seed in seeds]
    configs = {folder: load_config(folder / "config.yaml") for folder in used}
    teachers = {configs[study / f"{variant}-s{seeds[0]}"].models.teacher for variant in variants}
    sections = []
    for title, source in QUESTIONS.items():
        examples = load_examples(source)
        of_teacher = {path: read(path, examples) for path in sorted(teachers)}
        of_run = {folder: read(last_student(folder), examples) for folder in used}
        sections += section(title, source, study, variants, seeds, configs, of_teacher, of_run)
    (HERE / "oracle-split.md").write_text("\n".join([*head(len(seeds), came_from(alone)), *sections, ""]))


def last_student(folder: Path) -> Path:
    checkpoint, torn = latest_checkpoint(folder)
    if checkpoint is None:
        sys.exit(f"{folder} has no complete checkpoint: the study is not finished. {' '.join(torn)}")
    return checkpoint.weights(STUDENT)


@torch.no_grad()
def read(path: str | Path, examples: list[Example]) -> TokenScores:
    """Every token of the data's answers as a model sees it, shown the plain question."""
    policy, parts = load_policy(path, "model"), []
    ids = [policy.answer_ids(item.reference) for item in examples]
    for start in range(0, len(examples), BATCH):
        part = slice(start, start + BATCH)
        output = policy.forward([build_prompt(item, "plain") for item in examples[part]], ids[part])
        parts.append(score(output, torch.tensor([token for item in ids[part] for token in item])))
    return TokenScores(*(torch.cat([getattr(item, name) for item in parts]) for name in vars(parts[0])))


def section(
    title: str,
    source: str,
    study: Path,
    variants: list[str],
    seeds: list[str],
    configs: dict[Path, RunConfig],
    of_teacher: dict[str, TokenScores],
    of_run: dict[Path, TokenScores],
) -> list[str]:
    alone = [of_run[study / f"{BASELINE}-s{seed}"] for seed in seeds]
    others = alone[1:] + alone[:1]  # who splits
    lines = [
        f"## {title[0].upper()}{title[1:]}",
        "",
        f"`{source}`, {alone[0].rank.numel()} tokens.",
        "",
        "| against | loss, all tokens | teacher better: share | change there | other student better: change there | "
        "part of the whole from the first | from the second |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = []
    for variant in variants:
        folders = [study / f"{variant}-s{seed}" for seed in seeds]
        mixed = [of_run[folder] for folder in folders]
        teacher = of_teacher[configs[folders[0]].models.teacher]
        rows.append((variant, mixed, others, teacher))
    strong = of_teacher[configs[study / f"{variants[-1]}-s{seeds[0]}"].models.teacher]
    third = alone[2:] + alone[:2]
    rows.append(("control: no teacher, the seed after next", third, others, strong))
    rows.append(("control: the same, split by the run's own student", third, alone, strong))
    for name, mixed, splitting, teacher in rows:
        results = [split(*four) for four in zip(mixed, alone, splitting, [teacher] * len(seeds), strict=True)]
        shows = ("{:+.4f}", "{:.1%}", "{:+.4f}", "{:+.4f}", "{:+.4f}", "{:+.4f}")
        cells = [text(values, show) for values, show in zip(zip(*results, strict=True), shows, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "By who has the token as its most likely one: share of tokens, and part of the whole change that comes from "
        "them.",
        "",
        "| against | only the teacher | only the other student | both | neither |",
        "|---|---|---|---|---|",
    ]
    for name, mixed, splitting, teacher in rows[: len(variants)]:
        results = [rights(*four) for four in zip(mixed, alone, splitting, [teacher] * len(seeds), strict=True)]
        cells = [
            f"{text([result[cell][0] for result in results], '{:.1%}')}: "
            f"{text([result[cell][1] for result in results], '{:+.4f}')}"
            for cell in range(4)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def split(mixed: TokenScores, alone: TokenScores, other: TokenScores, teacher: TokenScores) -> tuple[float, ...]:
    """Change of the loss (mixed minus alone, nats per token): all; share of the first kind; within each kind; parts."""
    change = alone.logprob - mixed.logprob
    first = teacher.logprob > other.logprob
    parts = [float((change * kind).mean()) for kind in (first, ~first)]
    return (
        float(change.mean()),
        float(first.float().mean()),
        float(change[first].mean()),
        float(change[~first].mean()),
        *parts,
    )


def rights(
    mixed: TokenScores, alone: TokenScores, other: TokenScores, teacher: TokenScores
) -> list[tuple[float, float]]:
    """Share of tokens and part of the change, of: only the teacher right, only the other student, both, neither."""
    change, is_teachers, is_others = alone.logprob - mixed.logprob, teacher.rank == 0, other.rank == 0

    def of(kind: Tensor) -> tuple[float, float]:
        return float(kind.float().mean()), float((change * kind).mean())

    return [
        of(is_teachers & ~is_others),
        of(~is_teachers & is_others),
        of(is_teachers & is_others),
        of(~is_teachers & ~is_others),
    ]


def head(num_seeds: int, source: str) -> list[str]:
    return [
        "# Where does a teacher help?",
        "",
        f"`python {' '.join(sys.argv)}`, after `workbench study configs/studies/lm_kd.yaml` ({num_seeds} runs of each "
        f"variant; {source}).",
        "Change of the loss on the data's answers, in nats a token, against learning from the data alone "
        f"(`{BASELINE}`) with the same seed: below zero the teacher helped.",
        "*Teacher better*: it gives the token a higher probability than a student does that learned from the data "
        "alone with the next seed.",
        "*Part of the whole*: the two sum to the change over all tokens. Mean over seeds ± half of the 95 % interval "
        "(Student's t).",
        "",
    ]


def text(values: list[float], show: str) -> str:
    mean, half = interval(values)
    return f"{show.format(mean)} ± {show.replace('+', '').format(half)}"


if __name__ == "__main__":
    main()
