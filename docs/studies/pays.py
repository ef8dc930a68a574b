"""When does privilege pay? The tables of the studies pays_*, from their stored answers. Nothing is trained.

    python docs/studies/pays.py docs/studies/data/pays_crowded          # or the study's folder, runs/pays_crowded

Prints, for a study's data set: what the untrained student and the teacher answer with each kind of evidence; what each
method gained, how much of it wrong evidence gains too, and the over-confidence that came with it; accuracy by family of
questions; wrong answers by kind; and the course of training. From a study's own folder it also writes curves.parquet.

A control is the row NAME_wrong of a method NAME: the same with the evidence of another example. Brackets are 95 %
intervals, paired over seeds and questions (workbench.studies.bootstrap), in points.
"""

import argparse
import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.data.examples import load_examples
from workbench.data.scenes.world import PLACES
from workbench.runs.folder import RunFolder
from workbench.studies.bootstrap import paired_interval

UNTRAINED, TEACHER, WRONG = "untrained", "teacher", "_wrong"
CONTRASTS = (
    ("naive", "opd"),
    ("dopd", "opd"),
    ("vision_opd", "opd"),
    ("naive_forward", "naive"),
    ("opd_forward", "opd"),
    ("dopd", "naive"),
    ("dopd_wrong", "opd"),
    ("dopd", "random_mask"),
    ("dopd_live", "dopd"),
    ("dopd", "opsd"),
    ("naive", "opsd"),
    ("opsd_forward", "opsd"),
    ("vision_opd", "opsd"),
)
PARTS = 5  # of equal length, into which the course of training is cut
_PLACE = re.compile(rf"\b({'|'.join(PLACES)})\b")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="+")
    for folder in parser.parse_args().folder:
        print_tables(folder)


def print_tables(folder: Path) -> None:
    answers = pd.read_parquet(folder / "questions.parquet")
    for data, rows in answers.groupby("data", observed=True):
        print(f"## {folder.name}: {data}\n")
        print("### What could be taught: accuracy of the untrained student and of the teacher, by evidence\n")
        print(by_evidence(rows))
        trained = Accuracies(rows[rows["context"] == "plain"])
        print("### What was gained, how much of it with wrong evidence, and how sure the student became\n")
        print(gains(trained))
        if table := by_kind_of_evidence(rows, trained):
            print(
                "### Kinds of evidence: what the teacher makes of each, and what reaches the student that imitates it\n"
            )
            print(table)
        if table := contrasts(trained):
            print("### One method against another\n")
            print(table)
        print("### Accuracy by family, visible questions\n")
        print(by_family(trained))
        print("### Wrong answers to visible questions, by kind\n")
        print(by_error(trained.rows))
    print("### Accuracy of sampled training answers, by part of training\n")
    print(course(curves(folder)))


class Accuracies:
    """Answers on the plain view. `of(name, visibility)` is a row's accuracy as a table, seeds by questions."""

    def __init__(self, rows: pd.DataFrame) -> None:
        self.rows = rows.assign(seed=rows["seed"].fillna(-1))
        self.names = [name for name in dict.fromkeys(self.rows["variant"]) if name not in (UNTRAINED, TEACHER)]

    def of(self, name: str, visibility: str, column: str = "accuracy") -> pd.DataFrame:
        rows = self.rows[(self.rows["variant"] == name) & (self.rows["visibility"] == visibility)]
        return rows.pivot(index="seed", columns="example_id", values=column).astype(float)

    def overconfidence(self, name: str) -> pd.DataFrame:
        """Confidence minus accuracy on privileged questions, seeds by questions."""
        return self.of(name, "privileged", "confidence") - self.of(name, "privileged")

    def accuracy_apart(self, first: str, second: str) -> tuple[float, float, float]:
        """Difference in accuracy on visible questions with its interval, in points."""
        return _apart(self.of(first, "visible"), self.of(second, "visible"))

    def overconfidence_apart(self, first: str, second: str) -> tuple[float, float, float]:
        return _apart(self.overconfidence(first), self.overconfidence(second))


def _apart(first: pd.DataFrame, second: pd.DataFrame) -> tuple[float, float, float]:
    """Paired over the seeds that both have; an untrained model has one row of answers for all seeds."""
    seeds = first.index.intersection(second.index) if len(second) > 1 else first.index
    left = first.loc[seeds].to_numpy()
    right = second.loc[seeds].to_numpy() if len(second) > 1 else np.broadcast_to(second.to_numpy(), left.shape)
    return tuple(100 * value for value in paired_interval(left, right))


def by_evidence(rows: pd.DataFrame) -> str:
    references = rows[rows["variant"].isin([UNTRAINED, TEACHER]) & (rows["visibility"] == "visible")]
    table = references.pivot_table(index="variant", columns="context", values="accuracy", observed=True, sort=False)
    return markdown(
        ["visible questions", *table.columns],
        [[name, *(f"{100 * value:.1f} %" for value in values)] for name, *values in table.itertuples()],
    )


def gains(answers: Accuracies) -> str:
    lines = []
    for name in (UNTRAINED, *answers.names):
        accuracy = f"{100 * answers.of(name, 'visible').to_numpy().mean():.1f} %"
        sure = 100 * answers.of(name, "privileged", "confidence").to_numpy().mean()
        right = 100 * answers.of(name, "privileged").to_numpy().mean()
        gained = kept = evidence = surer = ""
        if name != UNTRAINED:
            difference = answers.accuracy_apart(name, UNTRAINED)
            gained = points(difference)
            if (control := name + WRONG) in answers.names:
                wrong = answers.accuracy_apart(control, UNTRAINED)
                kept = f"{wrong[0]:+.1f} ({wrong[0] / difference[0]:.0%})" if difference[1] > 0 else f"{wrong[0]:+.1f}"
                evidence = points(answers.accuracy_apart(name, control))
                surer = points(answers.overconfidence_apart(name, control))
        apart = f"{sure - right:+.0f}"
        lines.append([name, accuracy, gained, kept, evidence, apart, surer, f"{sure:.0f} %, {right:.0f} %"])
    return markdown(
        [
            "",
            "visible, right",
            "gained over the untrained",
            "of it with wrong evidence",
            "right minus wrong evidence",
            "over-confidence, privileged",
            "of it right minus wrong evidence",
            "sure, right",
        ],
        lines,
    )


def by_kind_of_evidence(rows: pd.DataFrame, answers: Accuracies) -> str:
    """Of a study with a variant per kind of evidence: the teacher's accuracy with it, and what its student gained."""
    teacher = (
        rows[(rows["variant"] == TEACHER) & (rows["visibility"] == "visible")]
        .groupby("context", observed=True)["accuracy"]
        .mean()
    )
    kinds = {name.replace("_", "+"): name for name in answers.names}
    if "plain" not in kinds or len(kinds.keys() & set(teacher.index)) < 3:
        return ""
    lines = [
        [
            kind,
            f"{100 * teacher[kind]:.1f} %",
            f"{100 * (teacher[kind] - teacher['plain']):+.1f}",
            points(answers.accuracy_apart(name, UNTRAINED)),
            points(answers.accuracy_apart(name, "plain")) if kind != "plain" else "",
            f"{100 * answers.overconfidence(name).to_numpy().mean():+.0f}",
        ]
        for kind, name in kinds.items()
        if kind in teacher.index
    ]
    head = [
        "evidence",
        "teacher with it",
        "teacher gains",
        "student gained",
        "more than without evidence",
        "over-confidence",
    ]
    return markdown(head, lines)


def contrasts(answers: Accuracies) -> str:
    pairs = [pair for pair in CONTRASTS if set(pair) <= set(answers.names)]
    if not pairs:
        return ""
    lines = [
        [
            f"{first} - {second}",
            points(answers.accuracy_apart(first, second)),
            points(answers.overconfidence_apart(first, second)),
        ]
        for first, second in pairs
    ]
    return markdown(["", "accuracy, visible", "over-confidence, privileged"], lines)


def by_family(answers: Accuracies) -> str:
    visible = answers.rows[answers.rows["visibility"] == "visible"]
    table = visible.pivot_table(index="variant", columns="domain", values="accuracy", observed=True, sort=False)
    counts = visible.groupby("domain", observed=True)["example_id"].nunique()
    return markdown(
        ["", *(f"{family} ({counts[family]})" for family in table.columns)],
        [[name, *(f"{100 * value:.0f} %" for value in values)] for name, *values in table.itertuples()],
    )


def by_error(rows: pd.DataFrame) -> str:
    """Share of all answers that are wrong because of their form, the place or the attribute read there."""
    visible = rows[rows["visibility"] == "visible"]
    references = {example.id: example.reference for example in load_scenes(visible["example_id"].unique())}
    kinds = [
        "right" if right else error_of(text, references[example])
        for text, example, right in zip(visible["text"], visible["example_id"], visible["accuracy"], strict=True)
    ]
    shares = pd.crosstab(visible["variant"], pd.Series(kinds, index=visible.index), normalize="index")
    columns = ["form", "place", "attribute"]
    order = [name for name in dict.fromkeys(visible["variant"]) if name in shares.index]
    shares = shares.reindex(index=order, columns=columns, fill_value=0.0)
    return markdown(
        ["", "form: no answer stated", "place: another one first", "attribute: right place, wrong value"],
        [[name, *(f"{100 * value:.1f} %" for value in values)] for name, *values in shares.itertuples()],
    )


def error_of(text: str, reference: str) -> str:
    """Why a worked answer, "at PLACE, ..., answer VALUE", is wrong: "form", "place" or "attribute"."""
    if not re.search(r"\banswer \w+$", text.strip()) or not (places := _PLACE.findall(text)):
        return "form"
    return "attribute" if places[0] in _PLACE.findall(reference) else "place"


def load_scenes(ids: np.ndarray) -> list:
    """The examples with these ids, such as scenes:hard:0:90000, drawn anew."""
    split, seed = ids[0].split(":")[1:3]
    numbers = [int(example.rpartition(":")[2]) for example in ids]
    count = max(numbers) - min(numbers) + 1
    return load_examples(f"scenes:{split}?count={count}&start={min(numbers)}&seed={seed}")


def curves(folder: Path) -> pd.DataFrame:
    """Accuracy and entropy of each step's sampled answers: variant, seed, step, accuracy, entropy."""
    file = folder / "curves.parquet"
    runs = sorted(folder.glob("*-s*/metrics.jsonl"))
    if not runs:
        return pd.read_parquet(file)
    lines = []
    for metrics in runs:
        variant, _, seed = metrics.parent.name.rpartition("-s")
        for line in RunFolder.open(metrics.parent).metrics("train"):
            lines.append((variant, int(seed), line["step"], line["accuracy"], line["entropy"]))
    table = pd.DataFrame(lines, columns=["variant", "seed", "step", "accuracy", "entropy"])
    table.to_parquet(file, compression="zstd", index=False)
    return table


def course(table: pd.DataFrame) -> str:
    last = int(table["step"].max())
    edges = np.linspace(0, last, PARTS + 1).astype(int)
    part = pd.cut(table["step"], edges, labels=[f"{low + 1} to {high}" for low, high in itertools.pairwise(edges)])
    means = table.pivot_table(index="variant", columns=part, values="accuracy", observed=True, sort=False)
    return markdown(
        ["steps", *means.columns],
        [[name, *(f"{100 * value:.0f} %" for value in values)] for name, *values in means.itertuples()],
    )


def points(difference: tuple[float, float, float]) -> str:
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*difference)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)


if __name__ == "__main__":
    main()
