"""Is a sparse update enough? Geometry of OPD's updates over seeds, and training only the changed coordinates.

    python docs/studies/geometry.py [seeds=[0,1] overrides.training.steps=20 ...]
    python docs/studies/geometry.py configs/studies/updates.yaml         other teachers and SGD beside OPD; no masks

Trains what configs/studies/geometry.yaml says (goes on after a kill), makes the masks from the runs of opd, trains
again under them, measures, and writes a page with the study's name beside this file. With overrides (but for
parallel=1) it is a trial: the page is printed and not written.
"""

import dataclasses
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from workbench.analysis.geometry.files import measure_pair, pair_of_run
from workbench.analysis.geometry.measure import RANDOM, UPDATE
from workbench.runs.folder import RunFolder
from workbench.studies.measures import values_of
from workbench.studies.plan import TEACHER, UNTRAINED, Study, load_study
from workbench.studies.report import collect, report_header, unfinished, write_report
from workbench.studies.run import run_study
from workbench.training.update_mask import mask_facts, overlap, write_mask, write_random_mask

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, 1 to 9 degrees of freedom
HERE = Path(__file__).parent
FULL = "opd"
UPDATES = {"opd": "OPD", "off_policy": "off-policy", "sft": "fine-tuning", "rewards": "rewards", "sgd": "OPD by SGD"}
TITLES = {"geometry": "Is a sparse update enough?", "updates": "Does it matter who teaches, and by which optimizer?"}
FURTHEST = 0.1  # share of coordinates in the second mask
METRICS = {
    "relative size, \\|\\|D\\|\\| / \\|\\|W0\\|\\|": ("relative_delta", "float32"),
    "unchanged, float32": ("unchanged", "float32"),
    "unchanged, rounded to bfloat16": ("unchanged", "bfloat16"),
    "\\|D\\| < 1e-5, float32": ("below_1e-05", "float32"),
    "\\|D\\| < 1e-5, rounded to bfloat16": ("below_1e-05", "bfloat16"),
    "numerical rank (1e-5), of the full one": ("rank_1e-05", "float32"),
    "effective rank": ("effective_rank", "float32"),
    "energy in the 16 largest directions": ("energy_top_16", "float32"),
    "energy inside the principal 10 % of directions": ("projection_10pct", "float32"),
    "rotation of the principal 10 % (mean sine)": ("rotation_10pct", "float32"),
    "enrichment on the principal 10 % of weights, bfloat16": ("enrichment_principal_10pct_0e+00", "bfloat16"),
    "enrichment on the smallest 10 % of weights, bfloat16": ("enrichment_low_10pct_0e+00", "bfloat16"),
}


def main() -> None:
    file, *overrides = (
        sys.argv[1:] if sys.argv[1:2] and "=" not in sys.argv[1] else ["configs/studies/geometry.yaml", *sys.argv[1:]]
    )
    study = load_study(file, overrides)
    free = [variant for variant in study.usable if not variant.config.training.update_mask]
    train_all(dataclasses.replace(study, variants=tuple(free)))
    masks = make_masks(study) if len(free) < len(study.usable) else None
    train_all(study)
    print(f"tables with paired intervals: {write_report(study)}")
    text = page(study, masks, geometry_of(study), recovered(study), answers(study))
    if any(not override.startswith("parallel=") for override in overrides):
        print(text)
    else:
        (HERE / f"{study.name}.md").write_text(text)


def train_all(study: Study) -> None:
    """Every run of a study; ends the program if one was stopped or failed."""
    if not run_study(study) or unfinished(study):
        sys.exit(f"not finished, the same command goes on: {unfinished(study)}")


def make_masks(study: Study) -> pd.DataFrame:
    """The masks of every seed; a row for each with its size, its limit, and what it shares with the next seed's."""
    by_name = {variant.name: variant for variant in study.variants}
    files = {
        (name, seed): Path(study.config(by_name[name], seed).training.update_mask)
        for name in by_name
        if name not in UPDATES
        for seed in study.seeds
    }
    for seed in study.seeds:
        pair = pair_of_run(study.config(by_name[FULL], seed).run_dir)
        sizes = [(pair.target.tensor(name) - pair.source.tensor(name)).abs().flatten() for name in pair.source.shapes]
        sizes = torch.cat(sizes)
        limit = float(sizes.kthvalue(round((1 - FURTHEST) * len(sizes))).values)
        for name, precision, above in (("visible", "bfloat16", 0.0), ("furthest", "float32", limit)):
            if not files[name, seed].is_file():
                write_mask(files[name, seed], pair.source, pair.target, dtype=precision, above=above)
                write_random_mask(files[f"{name}_random", seed], files[name, seed], seed=seed)
    rows = []
    for (name, seed), file in files.items():
        facts, following = mask_facts(file), files[name, study.seeds[(study.seeds.index(seed) + 1) % len(study.seeds)]]
        share = int(facts["coordinates"]) / int(facts["of"])
        rows.append({"mask": name, "share": share, "above": float(facts["above"]), **overlap(file, following)})
    return pd.DataFrame(rows)


def geometry_of(study: Study) -> pd.DataFrame:
    """Every metric of "all" tensors, of every seed of the updates and of their random controls."""
    rows = []
    for variant in study.usable:
        if variant.name in UPDATES:
            for seed in study.seeds:
                groups = measure_pair(pair_of_run(study.config(variant, seed).run_dir), seed=seed).geometry.groups
                rows.append(groups[groups["group"] == "all"].assign(variant=variant.name, seed=seed))
    return pd.concat(rows)


def recovered(study: Study) -> pd.DataFrame:
    """Loss on the probes (reverse KL to the teacher, nats per token) before and after, as a share of OPD's decrease."""
    shares = {}
    for variant in study.usable:
        if variant.config.method["name"] != "opd":  # its loss is another divergence
            continue
        for seed in study.seeds:
            lines = RunFolder(study.config(variant, seed).run_dir).metrics("probe")
            shares[variant.name, seed] = (lines[0]["loss"], lines[-1]["loss"])
    rows = []
    for (name, seed), (before, after) in shares.items():
        fall = shares[FULL, seed][0] - shares[FULL, seed][1]
        rows.append(
            {"variant": name, "seed": seed, "before": before, "after": after, "recovered": (before - after) / fall}
        )
    return pd.DataFrame(rows)


def answers(study: Study) -> pd.DataFrame:
    """Accuracy on visible and over-confidence on privileged questions of every variant and seed, in points."""
    values = [
        vars(value) if not dataclasses.is_dataclass(value) else dataclasses.asdict(value)
        for value in values_of(collect(study).arms)
    ]
    frame = pd.DataFrame(values)
    wanted = [("accuracy", "visible"), ("overconfidence", "privileged"), ("entropy", "all")]
    return frame[[pair in wanted for pair in zip(frame["measure"], frame["visibility"], strict=True)]]


def interval(values: pd.Series, show: str = "{:.3f}") -> str:
    """Mean ± half of the 95 % interval over seeds."""
    values = values.dropna().astype(float)
    if not len(values):
        return "-"
    if len(values) == 1:
        return show.format(values.mean())
    half = T_975[len(values) - 2] * values.std(ddof=1) / np.sqrt(len(values))
    return f"{show.format(values.mean())} ± {show.replace('+', '').format(half)}"


def column(geometry: pd.DataFrame, variant: str, delta: str, metric: tuple[str, str]) -> pd.Series:
    """A metric of one kind of update, by seed."""
    name, precision = metric
    selected = geometry[
        (geometry["variant"] == variant) & (geometry["delta"] == delta) & (geometry["precision"] == precision)
    ]
    return selected.set_index("seed")[name]


def number_format(metric: tuple[str, str], sign: str = "") -> str:
    return f"{{:{sign}.2f}}" if metric[0].startswith(("effective", "enrichment")) else f"{{:{sign}.2%}}"


def mask_lines(masks: pd.DataFrame) -> list[str]:
    lines = [
        "",
        "## Masks",
        "",
        "*Visible*: the change is there after rounding both to bfloat16. *Furthest*: the largest tenth of changes, "
        "float32. *Same as another",
        "seed's*: share of a mask's coordinates that are in the mask of the next seed, and what chance gives with as "
        "many in every tensor.",
        "",
        "| mask | share of coordinates | changes above | same as another seed's | by chance |",
        "|---|---|---|---|---|",
    ]
    for name, group in masks.groupby("mask", sort=False):
        cells = [
            interval(group["share"], "{:.1%}"),
            interval(group["above"], "{:.1e}"),
            interval(group["overlap"], "{:.1%}"),
            interval(group["chance"], "{:.1%}"),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def page(
    study: Study, masks: pd.DataFrame | None, geometry: pd.DataFrame, loss: pd.DataFrame, answers: pd.DataFrame
) -> str:
    training, updates = study.usable[0].config.training, [name for name in UPDATES if name in set(geometry["variant"])]
    lines = [
        f"# {TITLES.get(study.name, study.name)}",
        "",
        f"`{shlex.join(['python', *sys.argv])}`: {len(study.seeds)} seeds, {training.steps} steps, rate "
        f"{training.learning_rate:g}, float32, AdamW without weight decay, "
        "the built-in student and teacher. Numbers: mean over seeds ± half of the 95 % interval (Student's t).",
        "",
        report_header(collect(study)),
        *(f"- {variant.name}: {variant.note}" for variant in study.usable),
        "",
        "## Geometry",
        "",
        "All tensors: shares over all coordinates, spectra as medians over matrices. In brackets: a Gaussian of the "
        "same norm in every tensor.",
        "",
        f"| metric | {' | '.join(UPDATES[name] for name in updates)} |",
        f"|{'---|' * (len(updates) + 1)}",
    ]
    for label, metric in METRICS.items():
        cells = [
            f"{interval(column(geometry, name, UPDATE, metric), number_format(metric))} "
            f"({number_format(metric).format(column(geometry, name, RANDOM, metric).mean())})"
            for name in updates
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    others = [name for name in updates if name != FULL]
    lines += [
        "",
        "Minus OPD's, seed by seed:",
        "",
        f"| metric | {' | '.join(UPDATES[name] for name in others)} |",
        f"|{'---|' * (len(others) + 1)}",
    ]
    for label, metric in METRICS.items():
        values = column(geometry, FULL, UPDATE, metric)
        cells = [
            interval(column(geometry, name, UPDATE, metric) - values, number_format(metric, "+")) for name in others
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    if masks is not None:
        lines += mask_lines(masks)
    lines += _recovered_table(study, loss, answers)
    lines += ["", "With paired intervals over seeds and questions: `table.md` in the study's folder.", ""]
    return "\n".join(lines)


def _recovered_table(study: Study, loss: pd.DataFrame, answers: pd.DataFrame) -> list[str]:
    """Table of losses and answers of every variant."""
    lines = [
        "",
        "## Recovered",
        "",
        "From the start again, the same steps. Loss: reverse KL to the teacher on "
        f"{study.usable[0].config.trace.probes} fixed answers to held-out questions, in the unit of the",
        "run's loss; *recovered*: its fall as a share of the fall in the same seed's whole training.",
        "",
        "| trained | loss before | loss after | recovered | right on visible | over-confidence on privileged | "
        "entropy, nats a token |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in [UNTRAINED, *(variant.name for variant in study.usable), TEACHER]:
        values, variant_answers = loss[loss["variant"] == name], answers[answers["variant"] == name]
        cells = [
            interval(values["before"], "{:.4f}"),
            interval(values["after"], "{:.4f}"),
            interval(values["recovered"], "{:.1%}"),
        ]
        cells += [
            interval(variant_answers[variant_answers["measure"] == measure]["value"], show)
            for measure, show in (("accuracy", "{:.1%}"), ("overconfidence", "{:+.1%}"), ("entropy", "{:.3f}"))
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
