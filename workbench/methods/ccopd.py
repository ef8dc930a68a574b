"""CCOPD: a question revealed over turns is to be answered as the model itself answers it in one prompt.

Source: Same Evidence, Different Answers, arXiv 2605.30251; methods note 5. No code of the authors was found.
1. The question comes in turns, what is asked first; the student's start replies to each (replies_by), so early replies
   are guesses.
2. The student answers the last turn, having read these replies. They are read and never learned from.
3. A copy frozen at the start reads the same tokens after the canonical prompt: as much information, better presented.
4. ANSWER: KL(student || frozen copy), the student's own direction, over the whole vocabulary.
5. Image-text: a turn may bring images (`turns=rows` of the built-in scenes: a row of the picture each).
Differs: the paper sums over the answer's positions, here the loss is their mean over each answer, then over answers, so
that a long answer weighs no more than a short one; replies are written anew in each step instead of stored once;
whether all of the last reply is meant or what states the answer is not clear from the notes, so `positions` chooses.
student_context=concat is the control without replies in between; plain has no loss until the weights move.
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
        str, Option("how the student is shown the question", choices=("turns", "concat", "plain"))
    ] = "turns"
    replies_by: Annotated[
        str,
        Option(
            "who replies to the turns before the last: the frozen start, or the student as it is",
            choices=("student@start", "student"),
        ),
    ] = "student@start"
    positions: Annotated[
        str,
        Option("where the loss is: the last reply, or its tokens that state the answer", choices=("reply", "answer")),
    ] = "reply"
    divergence: Annotated[str, Option("what is minimised; forward_kl is the paper's ablation", choices=KINDS[1:4])] = (
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
        average_over="supervised",
        replier=options.replies_by,
    )
