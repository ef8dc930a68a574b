"""Cost of tracing: time per step, bytes per position, time per query.

    python benchmarks/traces.py [--steps 200] [--rollouts 32] [--tokens 20]

The data are drawn so that they compress like a run's: log-probs and entropies are those of real softmaxes over 512
tokens whose sharpness differs from position to position, the privileged student and the teacher are noisy copies of the
student, and every four rollouts share an example with its prompts, boxes and hint.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from workbench.analysis.regimes import shares_over_steps
from workbench.data.contexts import build_prompt
from workbench.distill.divergences import Divergence
from workbench.distill.losses import score
from workbench.distill.method import Loss, Regime
from workbench.distill.step import TopKTokens
from workbench.policies.view_output import Head, ViewOutput
from workbench.traces.parts import compact
from workbench.traces.reader import open_traces
from workbench.traces.writer import TracedBatch, TraceWriter
from workbench.types import Box, Evidence, Example, Rollout, Routing

VIEWS = {"student": ("student", "plain"), "self": ("student", "boxes"), "teacher": ("teacher", "boxes")}
REGIMES = {
    "LH": Regime((Loss("teacher", Divergence("reverse_kl")),), "low gap, both sure: teacher, light"),
    "LL": Regime((Loss("self", Divergence("reverse_kl")),), "low gap, unsure: privileged self, weak"),
    "HT": Regime((Loss("teacher", Divergence("jensen_shannon")),), "high gap, teacher leads: teacher, strong"),
    "HS": Regime((Loss("self", Divergence("reverse_kl")),), "high gap, self leads: privileged self, light"),
}
VOCABULARY = 512
LABELS = (("template", "visible"), ("location", "visible"), ("tag", "privileged"), ("answer", "privileged"))


def example(idx: int) -> Example:
    """Make a question about its own small image."""
    box = Box(idx % 7 * 8, idx % 5 * 8, idx % 7 * 8 + 16, idx % 5 * 8 + 16, "tag")
    picture = Image.new("RGB", (96, 96), (idx % 256, idx // 256 % 256, 7))
    evidence = Evidence((box,), hint=f"look at row {idx % 3}")
    question = f"What does the tag in row {idx % 3} say, {idx}?"
    return Example(f"scene-{idx:06d}", question, (picture,), answer=str(idx % 97), evidence=evidence, domain="read")


def batch(step: int, num_rollouts: int, num_tokens: int, *, top: int = 0) -> TracedBatch:
    """Make the traces of a step. top: number of top tokens at every fourth position."""
    generator = torch.Generator().manual_seed(step)
    num_positions = num_rollouts * num_tokens
    sharpness = torch.rand(num_positions, 1, generator=generator) * 7 + 1
    logits = torch.randn(num_positions, VOCABULARY, generator=generator)
    views = {
        name: (logits + 0.3 * noise * torch.randn(logits.shape, generator=generator)) * sharpness
        for noise, name in enumerate(VIEWS)
    }
    ids = torch.distributions.Categorical(logits=views["student"]).sample()
    scores = {
        name: score(ViewOutput.of(values, Head(torch.nn.Identity()), VOCABULARY), ids) for name, values in views.items()
    }
    gap = scores["teacher"].logprob - scores["self"].logprob
    regime = 2 * (gap.abs() > gap.abs().mean()).long() + (gap < 0).long()
    examples = [example(step * (num_rollouts // 4) + row // 4) for row in range(num_rollouts)]
    rows = ids.reshape(num_rollouts, num_tokens).tolist()
    logprobs = scores["student"].logprob.reshape(num_rollouts, num_tokens).tolist()
    rollouts = tuple(
        Rollout(
            item, row % 4, tuple(rows[row]), " ".join(map(str, rows[row])), True, tuple(logprobs[row]), float(row % 2)
        )
        for row, item in enumerate(examples)
    )
    index = torch.arange(0, num_positions, 4)
    return TracedBatch(
        step=step,
        rollouts=rollouts,
        views=VIEWS,
        prompts={name: tuple(build_prompt(item, context) for item in examples) for name, (_, context) in VIEWS.items()},
        scores=scores,
        routing=Routing(regime, torch.ones(num_positions), thresholds={"gap": float(gap.abs().mean())}),
        regimes=REGIMES,
        loss_normalizer=torch.full((num_positions,), 1 / num_positions),
        loss=torch.rand(num_positions, generator=generator) * gap.abs(),
        token_texts=tuple(tuple(f" w{token}" for token in row) for row in rows),
        labels=tuple(tuple(LABELS[min(3, position % 9 // 2)] for position in range(num_tokens)) for _ in rows),
        top_k_tokens=_top_k(index, views, top) if top else None,
    )


def _top_k(index: torch.Tensor, views: dict[str, torch.Tensor], top: int) -> TopKTokens:
    best = {name: values.log_softmax(-1)[index].topk(top) for name, values in views.items()}
    return TopKTokens(index, {name: (entry.indices, entry.values) for name, entry in best.items()})


def size(folder: Path, table: str) -> int:
    return sum(file.stat().st_size for file in (folder / "traces" / table).iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rollouts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--top", type=int, default=0, help="top tokens at every fourth position")
    args = parser.parse_args()
    num_positions = args.steps * args.rollouts * args.tokens
    with tempfile.TemporaryDirectory() as name:
        folder, write_s = Path(name), []
        writer = TraceWriter(folder, method="dopd", policy_text=str)
        for step in range(args.steps):
            step_batch = batch(step, args.rollouts, args.tokens, top=args.top)
            start = time.perf_counter()
            writer.write(step_batch)
            write_s.append(time.perf_counter() - start)
        before = size(folder, "tokens")
        compact(folder)
        print(f"{args.steps} steps of {args.rollouts} rollouts x {args.tokens} tokens")
        print(f"write        {1000 * statistics.median(write_s):8.2f} ms per step (median)")
        print(f"             {1000 * statistics.fmean(write_s):8.2f} ms per step (mean, merging included)")
        print(f"             {1000 * max(write_s):8.2f} ms (longest, a step that merged)")
        print(f"positions    {size(folder, 'tokens') / num_positions:8.2f} bytes each, merged")
        print(f"             {before / num_positions:8.2f} bytes each at the last step")
        print(f"rollouts     {size(folder, 'rollouts') / num_positions:8.2f} bytes per position, merged")
        traces = open_traces(folder)
        for title, query in {
            "summary": traces.summary,
            "regime shares": lambda: shares_over_steps(traces),
            "rollouts": lambda: traces.rollouts(f"step={args.steps // 2}"),
            "rollouts, all steps by gap": lambda: traces.rollouts("sort:-abs_information_gap"),
            "rollout": lambda: traces.rollout(args.steps // 2, 3),
        }.items():
            start = time.perf_counter()
            query()
            print(f"query        {1000 * (time.perf_counter() - start):8.2f} ms {title}")


if __name__ == "__main__":
    main()
