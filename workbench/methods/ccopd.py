"""CCOPD: train the student to answer a question split over turns as it answers the same question in one prompt.

Source: Same Evidence, Different Answers, arXiv 2605.30251; written from notes (no official code was found).
1. The question is split over turns. The student at its start replies to each early turn, so these replies
   are guesses.
2. The student answers the last turn. Earlier replies are part of its prompt and carry no loss.
3. A frozen copy of the start scores the same tokens after the one-prompt version, which holds the same information.
4. ANSWER: KL(student || frozen copy), which is the student's own direction, over the whole vocabulary.
5. A turn may contain images (`turns=rows` of the built-in scenes shows one row of the image per turn).
Differs: the paper sums over the positions of an answer; here the loss is the mean over each answer, then over answers.
Replies are sampled anew in each step instead of once. The notes do not say whether the loss covers the whole last reply
or only its final answer, so `positions` selects one. Controls: student_context=concat has no replies in between;
student_context=plain has no loss until the weights change.
"""

from dataclasses import dataclass
from typing import Annotated

import torch

from workbench.distill.divergences import KINDS, Divergence
from workbench.distill.method import Loss, Method, Option, Regime, View
from workbench.distill.routing import answer_positions
from workbench.types import RouteBatch, Routing


@dataclass(frozen=True)
class Options:
    student_context: Annotated[
        str, Option("form of the question in the student's prompt", choices=("turns", "concat", "plain"))
    ] = "turns"
    positions: Annotated[
        str,
        Option("where the loss is: the last reply, or its tokens that state the answer", choices=("reply", "answer")),
    ] = "reply"
    divergence: Annotated[str, Option("divergence; forward_kl is the paper's ablation", choices=KINDS[1:4])] = (
        "reverse_kl"
    )


def build(options: Options) -> Method:
    def route(batch: RouteBatch) -> Routing:
        everything = torch.ones(batch.num_positions, dtype=torch.bool, device=batch.sequence.device)
        chosen = answer_positions(batch) if options.positions == "answer" else everything
        return Routing((~chosen).long(), torch.ones(batch.num_positions, device=chosen.device))

    loss = Loss("canonical", Divergence(options.divergence))
    return Method(
        name="ccopd",
        views={
            "student": View("student", options.student_context, learns=True),
            "canonical": View("student@start", "plain"),
        },
        regimes={
            "ANSWER": Regime((loss,), "answer to the last turn: frozen self, shown the whole question at once"),
            "REST": Regime((), "not the answer: no supervision"),
        },
        route=route,
        normalize_by="supervised",
        replying_policy="student@start",
    )
