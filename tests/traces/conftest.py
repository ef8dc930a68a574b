"""A small batch with everything a trace can hold, in odd sizes."""

import pytest
import torch
from PIL import Image

from workbench.data.contexts import build_prompt
from workbench.distill.divergences import Divergence
from workbench.distill.method import Loss, Regime
from workbench.distill.step import TopKTokens
from workbench.traces.writer import TracedBatch
from workbench.types import Box, Evidence, Example, Rollout, Routing, TokenScores, Turn

VIEWS = {"student": ("student", "plain"), "self": ("student@ema", "boxes"), "teacher": ("teacher", "boxes")}
REGIMES = {
    "low": Regime((Loss("teacher", Divergence("reverse_kl")),), "low gap: teacher"),
    "high": Regime((Loss("self", Divergence("jensen_shannon")),), "high gap: privileged self"),
    "none": Regime((), "no supervision"),
}


@pytest.fixture(scope="session")
def make_batch():
    """make_batch(step, lengths=..., views=..., seed=..., top=...) -> TracedBatch with numbers by step and seed."""

    def make(step=0, *, lengths=(3, 0, 5, 1), views=VIEWS, seed=0, top=0) -> TracedBatch:
        generator = torch.Generator().manual_seed(1000 * seed + step)
        num_positions = sum(lengths)

        def draw() -> torch.Tensor:
            return torch.randn(num_positions, generator=generator)

        ids = torch.randint(0, 99, (num_positions,), generator=generator).split(lengths)
        examples = [_example(row) for row in range(len(lengths))]
        return TracedBatch(
            step=step,
            rollouts=tuple(
                Rollout(item, row, tuple(ids[row].tolist()), f"ответ {row}", row != 2, reward=(1.0, 0.0, None)[row % 3])
                for row, item in enumerate(examples)
            ),
            views=views,
            prompts={
                view: tuple(build_prompt(example, context) for example in examples)
                for view, (_, context) in views.items()
            },
            scores={
                view: TokenScores(-draw().abs(), draw().abs(), -draw().abs(), draw().abs().long()) for view in views
            },
            routing=Routing(draw().abs().long() % 3, draw(), thresholds={"gap": 0.1 + step, "probability_sum": 1.5}),
            regimes=REGIMES,
            loss_normalizer=draw().abs(),
            loss=draw().abs(),
            token_texts=tuple(tuple(f"w{token}" for token in row.tolist()) for row in ids),
            labels=tuple(
                tuple(("tag", "privileged") if at % 2 else ("", None) for at in range(length)) for length in lengths
            ),
            top_k_tokens=_top_k(num_positions, top, generator) if top else None,
        )

    return make


def _example(row: int) -> Example:
    return Example(
        id=f"e{row}",
        question='What\'s "that"? 你好',
        images=(Image.new("RGB", (5, 7), (row % 2, 0, 0)),),
        answer="7",
        evidence=Evidence(
            (Box(0.5, 1, 3, 4, "tag"),), hint="left", crops=(Image.new("RGB", (2, 2)),), crop_box=Box(0, 1, 4, 5)
        ),
        history=(Turn("user", "hello"),),
        domain=("read", "count")[row % 2],
        origin=f"data.jsonl:{row}",
    )


def _top_k(num_positions: int, top: int, generator: torch.Generator) -> TopKTokens:
    index = torch.arange(num_positions - 1, 0, -3)  # in no order that a writer might rely on
    ids = torch.randint(0, 99, (len(index), top), generator=generator)
    return TopKTokens(index, {"teacher": (ids, -torch.rand(len(index), top, generator=generator))})
