"""Query times of a large run: ten million positions from the trace writer, and the queries of the app.

    python benchmarks/big_run.py [--positions 10000000] [--folder runs/big] [--repeats 40]

The folder is kept if --folder names it, and read again if it is there. The numbers are drawn, not computed by models:
log-probs of a sharp or unsure student, of a privileged copy that knows some tokens better, and of a teacher near it.
Regimes follow DOPD's rule, so that their shares over token types are like those of a run. It has metrics of every
step and ten evaluations of 256 questions.
"""

import argparse
import itertools
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from workbench.analysis import illusion as tables
from workbench.analysis.regimes import shares_by, shares_over_steps
from workbench.app.context import AppContext, run_names
from workbench.app.tabs import answers, compare, leakage, movement, training
from workbench.config.schema import build_config
from workbench.data.contexts import build_prompt
from workbench.distill.divergences import Divergence
from workbench.distill.method import Loss, Regime
from workbench.distill.step import TopKTokens
from workbench.evals.records import EvalRecord, save_records
from workbench.runs.folder import RunFolder
from workbench.traces.parts import compact
from workbench.traces.reader import Traces, open_traces
from workbench.traces.writer import TracedBatch, TraceWriter
from workbench.types import Box, Evidence, Example, Prompt, Rollout, Routing, TokenScores

VIEWS = {"student": ("student", "plain"), "self": ("student", "boxes"), "teacher": ("teacher", "boxes")}
REGIMES = {
    "LH": Regime((Loss("teacher", Divergence("reverse_kl")),), "low gap, both sure: teacher, light"),
    "LL": Regime((Loss("self", Divergence("reverse_kl")),), "low gap, unsure: privileged self, weak"),
    "HT": Regime((Loss("teacher", Divergence("jensen_shannon")),), "high gap, teacher leads: teacher, strong"),
    "HS": Regime((Loss("self", Divergence("reverse_kl")),), "high gap, self leads: privileged self, light"),
}
LABELS = (("template", "visible"),) * 5 + (("location", "visible"), ("attribute", "visible"), ("tag", "privileged"))
DOMAINS = ("read", "count", "compare", "locate")
WORDS = [f" w{idx}" for idx in range(5000)]
EXAMPLES = 20_000
PROBE_EVERY, NUM_PROBES, PROBE_TOKENS = 10, 16, 48
NUM_EVALS, EVALUATED = 10, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, default=10_000_000)
    parser.add_argument("--rollouts", type=int, default=64, help="answers per step")
    parser.add_argument("--tokens", type=int, default=160, help="mean length of an answer")
    parser.add_argument("--folder", type=Path, help="where the run is made and kept")
    parser.add_argument("--repeats", type=int, default=40, help="repeats of each query")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary) / "big"
        if not (folder / "traces").is_dir():
            make_run(folder, args.positions, args.rollouts, args.tokens)
        measure(folder, args.repeats)


def make_run(folder: Path, num_positions: int, num_rollouts: int, num_tokens: int) -> None:
    """Make a finished run with at least that many positions."""
    config = build_config(
        {
            "name": folder.name,
            "output_dir": str(folder.parent),
            "method": {"name": "dopd"},
            "models": {"student": "student", "teacher": "teacher"},
            "data": {"train": "scenes:train", "eval": "scenes:eval?count=256"},
        }
    )
    run = RunFolder.create(folder, config.to_yaml(), seed=0, method="dopd")
    writer = TraceWriter(folder, method="dopd", policy_text=lambda token_id: WORDS[token_id])
    examples = [make_example(idx) for idx in range(EXAMPLES)]
    start, written, step, write_s = time.perf_counter(), 0, 0, []
    while written < num_positions:
        step += 1
        batch = make_batch(step, examples, num_rollouts, num_tokens)
        before = time.perf_counter()
        writer.write(batch)
        if step % PROBE_EVERY == 0:
            writer.write_probe(make_batch(step, examples, NUM_PROBES, PROBE_TOKENS, probe=True))
        write_s.append(time.perf_counter() - before)
        written += batch.loss.numel()
        run.log_metrics("train", step, make_metrics(batch))
    for at in range(0, step + 1, max(1, step // (NUM_EVALS - 1))):
        save_records(folder, at, make_answers(at / step))
    run.update(status="finished", steps=step, steps_done=step)
    compact(folder)
    sizes = sum(file.stat().st_size for file in (folder / "traces").rglob("*.parquet"))
    print(
        f"made {written:,} positions, {step:,} steps, in {time.perf_counter() - start:.0f} s; writing a step took "
        f"{1000 * statistics.median(write_s):.0f} ms (median); {sizes / 2**20:.0f} MiB"
    )


def make_metrics(batch: TracedBatch) -> dict[str, float]:
    """Make the metrics of a step that the app draws."""
    values = {name: value.logprob for name, value in batch.scores.items()}
    gaps = {"capability_gap": values["teacher"] - values["self"], "information_gap": values["self"] - values["student"]}
    return {
        "loss": float(batch.loss.mean()),
        "entropy": float(batch.scores["student"].entropy.mean()),
        "learning_rate": 1e-4,
        "accuracy": 0.6,
        "completion_length": batch.loss.numel() / len(batch.rollouts),
        "truncated": 0.05,
        "duplicate_rate": 0.9,
        **{name: float(gap.mean()) for name, gap in gaps.items()},
    }


def make_answers(progress: float) -> list[EvalRecord]:
    """Make an evaluation in which accuracy grows on visible, confidence on privileged questions."""
    chooser, rows = random.Random(progress), []
    for policy, context in (("student", "plain"), ("student", "boxes"), ("teacher", "plain"), ("teacher", "boxes")):
        for idx in range(EVALUATED):
            visibility = "privileged" if idx % 4 == 0 else "visible"
            knows = 0.9 if visibility == "visible" or context == "boxes" else 0.3
            is_right, sure = (
                chooser.random() < knows * (0.7 + 0.3 * progress),
                min(1.0, 0.5 + 0.4 * progress + chooser.random() / 10),
            )
            rows.append(
                EvalRecord(
                    round(1000 * progress),
                    policy,
                    context,
                    f"scene-{idx:06d}",
                    DOMAINS[idx % 4],
                    visibility,
                    str(idx % 97),
                    f"answer {idx}",
                    float(is_right),
                    sure,
                    30,
                    True,
                )
            )
    return rows


def make_example(idx: int) -> Example:
    """Make a question about one of a few small images."""
    box = Box(idx % 7 * 8, idx % 5 * 8, idx % 7 * 8 + 16, idx % 5 * 8 + 16, "tag")
    picture = Image.new("RGB", (96, 96), (idx % 16 * 15, 40, 7))
    question = f"What does the tag in row {idx % 3} say, {idx}?"
    evidence = Evidence((box,), hint=f"look at row {idx % 3}")
    return Example(f"scene-{idx:06d}", question, (picture,), str(idx % 97), None, evidence, domain=DOMAINS[idx % 4])


def make_batch(
    step: int, examples: list[Example], num_rollouts: int, num_tokens: int, *, probe: bool = False
) -> TracedBatch:
    """Make a step whose gaps shrink slowly with training. Probes have the same tokens at every step."""
    generator = torch.Generator().manual_seed(0 if probe else step)
    chooser = random.Random(0 if probe else step)
    lengths = [chooser.randint(num_tokens // 2, num_tokens * 3 // 2) for _ in range(num_rollouts)]
    num_positions = sum(lengths)
    ids = (torch.rand(num_positions, generator=generator) ** 3 * len(WORDS)).long()
    if probe:
        generator.manual_seed(step)
    label_of = torch.arange(num_positions) % len(LABELS)
    scores = make_scores(label_of == len(LABELS) - 1, 1 / (1 + step / 500), generator)
    gap = scores["teacher"].logprob - scores["self"].logprob
    sure = scores["teacher"].logprob.exp() + scores["self"].logprob.exp()
    high = gap.abs() >= gap.abs().mean()
    regime = torch.where(high, torch.where(gap >= 0, 2, 3), torch.where(sure >= sure.mean(), 0, 1))
    chosen = [examples[(0 if probe else step * num_rollouts // 4) % EXAMPLES + row // 4] for row in range(num_rollouts)]
    rows = [tuple(row.tolist()) for row in ids.split(lengths)]
    texts = [tuple(WORDS[token] for token in row) for row in rows]
    logprobs = [tuple(row.tolist()) for row in scores["student"].logprob.split(lengths)]
    labels, start = [], 0
    for length in lengths:
        labels.append(tuple(LABELS[idx % len(LABELS)] for idx in range(start, start + length)))
        start += length
    index = torch.arange(sum(lengths[:4]))  # the first four answers have top tokens
    top = {
        name: (torch.randint(len(WORDS), (len(index), 3)), -torch.rand(len(index), 3).sort().values) for name in VIEWS
    }
    return TracedBatch(
        step=step,
        rollouts=tuple(
            Rollout(
                example,
                row % 4,
                rows[row],
                "".join(texts[row]),
                chooser.random() < 0.95,
                logprobs[row],
                float(chooser.random() < 0.6),
            )
            for row, example in enumerate(chosen)
        ),
        views=VIEWS,
        prompts={name: tuple(_prompt(example, context) for example in chosen) for name, (_, context) in VIEWS.items()},
        scores=scores,
        routing=Routing(
            regime,
            torch.ones(num_positions),
            thresholds={"gap": float(gap.abs().mean()), "probability_sum": float(sure.mean())},
        ),
        regimes=REGIMES,
        loss_normalizer=torch.full((num_positions,), 1 / num_positions),
        loss=torch.rand(num_positions, generator=generator) * gap.abs(),
        token_texts=tuple(texts),
        labels=tuple(labels),
        top_k_tokens=TopKTokens(index, top),
    )


def make_scores(privileged: torch.Tensor, scale: float, generator: torch.Generator) -> dict[str, TokenScores]:
    """Make scores by view: confident at most tokens, with the evidence explaining privileged ones."""

    def draw() -> torch.Tensor:
        return torch.rand(len(privileged), generator=generator)

    student = -(draw() ** 4) * 4 - privileged * draw() * 3 * scale
    privileged_student = student * torch.where(privileged, 0.1 + 0.3 * draw(), 0.8 + 0.3 * draw())
    logprobs = {"student": student, "self": privileged_student, "teacher": privileged_student * (0.5 + draw())}
    return {
        name: TokenScores(value, -value * 0.7 + 0.05 * draw(), value * 0.6, (-value).long())
        for name, value in logprobs.items()
    }


_PROMPTS: dict[tuple[str, str], Prompt] = {}


def _prompt(example: Example, context: str) -> Prompt:
    key = (example.id, context)
    if key not in _PROMPTS:
        _PROMPTS[key] = build_prompt(example, context)
    return _PROMPTS[key]


def measure(folder: Path, repeats: int) -> None:
    """Measure times of each query, each time with another step or answer. The target is for p95."""
    start = time.perf_counter()
    traces = open_traces(folder)
    summary = traces.summary()
    print(f"open and first summary {1000 * (time.perf_counter() - start):.0f} ms; {summary['positions']:,} positions")
    chooser = random.Random(0)
    steps = traces.steps()
    for kind, questions in {
        "selection (150 ms)": selections(traces, steps, chooser),
        "text search (500 ms)": searches(traces),
        "Answers as a whole (150 ms)": answers_tab(folder, steps, chooser),
        "summary (1 s)": summaries(traces),
        "the other tabs as a whole (1 s)": other_tabs(folder),
    }.items():
        print(f"\n{kind:40} {'median':>9} {'p95':>9} {'longest':>9} {'processor':>10}")
        for title, ask in questions.items():
            times, used_s = [], time.process_time()
            for _ in range(repeats):
                before = time.perf_counter()
                ask()
                times.append(1000 * (time.perf_counter() - before))
            used_ms = 1000 * (time.process_time() - used_s) / repeats  # unlike the others, not longer on a busy machine
            times.sort()
            p95 = times[int(0.95 * (len(times) - 1))]
            print(f"  {title:38} {statistics.median(times):9.1f} {p95:9.1f} {times[-1]:9.1f} {used_ms:10.1f} ms")
    print(f"\nlargest memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def selections(traces: Traces, steps: list[int], chooser: random.Random) -> dict[str, Callable]:
    """Run the queries of a click in Answers."""
    step = lambda: chooser.choice(steps)  # noqa: E731
    return {
        "one answer": lambda: traces.rollout(step(), chooser.randrange(64)),
        "answers of one step": lambda: traces.rollouts(f"step={step()}"),
        "one step, with a regime": lambda: traces.rollouts(f"step={step()} token.regime=HS"),
        "one step, largest information gap": lambda: traces.rollouts(f"step={step()} sort:-abs_information_gap"),
        "all steps, newest first": lambda: traces.rollouts(),
        "all steps, page 1000": lambda: traces.rollouts(offset=50_000),
        "all steps, largest information gap": lambda: traces.rollouts("sort:-abs_information_gap"),
        "all steps, HS, wrong, largest loss": lambda: traces.rollouts("token.regime=HS grade=incorrect sort:-loss"),
        "all steps, privileged, one domain": lambda: traces.rollouts("token.visibility=privileged domain=read"),
        "count of the same": lambda: traces.count_rollouts("token.visibility=privileged domain=read"),
        "HS and privileged, the same token": lambda: traces.rollouts("token.regime=HS token.visibility=privileged"),
        "a token with information gap > 3": lambda: traces.rollouts("token.information_gap>3 sort:-loss"),
        "HS with a gap in both parts": lambda: traces.rollouts(
            "token.regime=HS token.information_gap>2 token.capability_gap<-1 grade=incorrect"
        ),
        "longer than 200 tokens, ascending loss": lambda: traces.rollouts("tokens>200 sort:loss"),
        "list of steps": lambda: traces.steps(),
    }


def searches(traces: Traces) -> dict[str, Callable]:
    """Search the texts of all answers and questions."""
    return {
        "two words, in any case": lambda: traces.rollouts('"W4999 w17"'),
        "in answers alone": lambda: traces.rollouts("answer:w4999"),
        "in questions alone": lambda: traces.rollouts("question:123"),
        "regular expression": lambda: traces.rollouts("/w4[0-9]9 w(1|2)777/"),
        "one that backtracking would not end": lambda: traces.rollouts("answer:/(w1+)+ w1+$/"),
        "with numbers and a token": lambda: traces.rollouts("w4999 tokens>150 token.regime=HS sort:-loss"),
    }


def answers_tab(folder: Path, steps: list[int], chooser: random.Random) -> dict[str, Callable]:
    """Do all work of the server for a click in Answers: choices, list, count, answer, HTML."""
    context = AppContext(folder.parent, folder.parent)
    unseen = itertools.cycle(chooser.sample(steps, len(steps)))

    def random_answer() -> dict:
        return {"step": str(chooser.choice(steps)), "rollout": str(chooser.randrange(64))}

    def filtered(**address: str) -> Callable:
        pages = itertools.count()  # a new page each time, since pages are remembered
        return lambda: answers.draw(context, folder.name, {**address, "list_page": str(next(pages))})

    return {
        "another answer": lambda: answers.draw(context, folder.name, random_answer()),
        "another page": lambda: answers.draw(context, folder.name, {"list_page": str(chooser.randrange(3000))}),
        "one step": lambda: answers.draw(context, folder.name, {"at_step": str(next(unseen))}),
        "largest information gap": filtered(order="-abs_information_gap"),
        "HS, wrong, largest loss": filtered(regime="HS", grade="incorrect", order="-loss"),
        "privileged, one domain": filtered(domain="read", visibility="privileged"),
        "probes": filtered(probe="1"),
        "down to the next answer": lambda: answers.step_selection(
            context, folder.name, {**random_answer(), "list_page": str(next(unseen))}, 1
        ),
    }


def other_tabs(folder: Path) -> dict[str, Callable]:
    """Do all work of the server when a tab is opened."""
    context, run = AppContext(folder.parent, folder.parent), folder.name
    return {
        "training": lambda: training.update(context, run, "light", "", None, redraw_all=True),
        "movement": lambda: movement.draw(context, run, "light", {}),
        "movement by domain": lambda: movement.draw(
            context, run, "light", {"color": "loss", "of": "visible", "panels": "domain", "share": "loss_share"}
        ),
        "compare: examples of both": lambda: compare.draw_examples(folder, folder, ""),
        "compare: accuracies": lambda: compare.draw_accuracy(folder, folder),
        "leakage": lambda: leakage.draw(context, run, "light", {}, None),
        "the list of runs": lambda: run_names(context),
    }


def summaries(traces: Traces) -> dict[str, Callable]:
    """Run the queries of the other tabs."""
    return {
        "summary": traces.summary,
        "regime shares over steps": lambda: shares_over_steps(traces),
        "regime shares by token type": lambda: shares_by(traces, "token_type"),
        "regime shares by visibility": lambda: shares_by(traces, "visibility"),
        "regime shares by domain": lambda: shares_by(traces, "domain"),
        "regime shares of probes": lambda: shares_over_steps(traces, probe=True),
        "which gap finds privileged tokens": lambda: tables.separation(traces),
        "worst cases": lambda: tables.worst_cases(traces),
        "information-dominated": lambda: tables.information_dominated_loss(traces),
    }


if __name__ == "__main__":
    main()
