"""OPCoD: several students train together; feedback from peers becomes part of the privileged context.

Source: Be My Tutor, arXiv 2606.14368. Gate, anchoring and removal of answers are the paper's; its formulas were not
available, so the objective (SDPO's), the form of the gate, kappa and everything marked * are reconstructed.
1. Every student answers the same questions; answers are graded.
2. Gate*: a peer gives feedback on a question if at least `kappa` of its own answers to it are right.
3. Feedback*: clauses of one of the peer's answers (a right one if any), or its reply to the student's answer
   (feedback=reply). Dropped: lines that reveal an answer, and (`anchor`) lines without a distinguishing word of the
   question, one that most questions of its domain in the batch lack* (few pass in the built-in world: anchor=false).
4. Target: a copy of the student, given the feedback and another right answer of its own*, if any. NONE: neither.
5. All students sample before any trains, and all train at every step*.
Controls: exchange (none, ungated), anchor, leak, noise (feedback about another question).
"""

import re
from dataclasses import dataclass, replace
from typing import Annotated

import torch

from workbench.data.grading import final_answer, grade
from workbench.distill.divergences import KINDS, Divergence
from workbench.distill.method import Loss, Method, Option, Regime, View
from workbench.distill.routing import concepts, distinguishing_concepts
from workbench.errors import ConfigError
from workbench.seeding import draw_uniform
from workbench.types import Rollout, RouteBatch, Routing

_CLAUSE_END = re.compile(r"[,;\n]+|(?<=[.!?])\s+")
PEER_REQUEST = "Another student answered: {text}\nSay where to look and how to go about it, without the answer."


@dataclass(frozen=True)
class Options:
    exchange: Annotated[
        str, Option("peers that give feedback: above kappa, all, or none", choices=("gated", "ungated", "none"))
    ] = "gated"
    kappa: Annotated[float, Option("fraction of a peer's own answers that must be right", low=0, high=1)] = 0.5
    feedback: Annotated[str, Option("a peer's answer, or its reply", choices=("own_answer", "reply"))] = "own_answer"
    anchor: Annotated[bool, Option("drop feedback lines without a distinguishing word of the question")] = True
    leak: Annotated[bool, Option("control: keep feedback lines that reveal an answer")] = False
    noise: Annotated[float, Option("control: fraction of off-question feedback below kappa", low=0, high=1)] = 0.0
    divergence: Annotated[str, Option("divergence to the self-teacher", choices=KINDS[1:4])] = "jensen_shannon"
    top_k: Annotated[int, Option("entries of the student's top-k, plus one for the rest; 0 = all", low=0)] = 100
    self_policy: Annotated[str, Option("self-teacher", choices=("student@ema", "student@start"))] = "student@ema"
    ema_rate: Annotated[float, Option("weight of the student in each EMA update", low=1e-6, high=1)] = 0.05


def build(options: Options) -> Method:
    if options.noise and options.feedback == "reply":
        raise ConfigError(
            f"method.noise={options.noise:g} has no effect with method.feedback=reply. Set method.noise=0, or "
            "method.feedback=own_answer."
        )

    def annotate(rollouts: tuple[Rollout, ...], *peers: tuple[Rollout, ...]) -> tuple[Rollout, ...]:
        peers = () if options.exchange == "none" else peers
        return tuple(_annotated(options, rollout, rollouts, peers) for rollout in rollouts)

    def route(batch: RouteBatch) -> Routing:
        annotations = [dict(rollout.annotations) for rollout in batch.rollouts]
        kinds = [int(values["own_answer"]) + 2 * (values["lines_kept"] > 0) for values in annotations]
        regime = torch.tensor(kinds, device=batch.sequence.device)[batch.sequence]
        return Routing(regime, torch.ones(batch.num_positions, device=regime.device))

    support = "top_k" if options.top_k else "full"
    loss = Loss("self", Divergence(options.divergence, support, top_k=options.top_k, of="learner", tail="bucket"))
    return Method(
        name="opcod",
        views={"student": View("student", "plain", learns=True), "self": View(options.self_policy, "feedback")},
        regimes={
            "NONE": Regime((), "no privileged context: no supervision"),
            "OWN": Regime((loss,), "self, given another right answer of its own"),
            "PEER": Regime((loss,), "self, given feedback of peers"),
            "BOTH": Regime((loss,), "self, given both"),
        },
        route=route,
        annotate=annotate,
        needs=() if options.exchange == "ungated" else ("answer",),
        peer_request=PEER_REQUEST if options.feedback == "reply" and options.exchange != "none" else None,
        min_learners=1 if options.exchange == "none" else 2,
        min_generations=2 if options.exchange == "none" else 1,
        ema_rate=options.ema_rate,
    )


def _annotated(options: Options, rollout: Rollout, rollouts: tuple[Rollout, ...], peers: tuple) -> Rollout:
    """Attach the feedback for the self-teacher, and the counts for the trace."""
    siblings = [other for other in _about(rollouts, rollout) if other is not rollout]
    own_answer = next((sibling.text for sibling in siblings if sibling.reward == 1.0), None)
    annotations = dict.fromkeys(("own_answer", "gate_open", "lines_kept", "lines_off_topic", "lines_telling"), 0.0)
    lines, anchors = [], distinguishing_concepts(rollout, rollouts)
    for number, answers in enumerate(peers):
        peer_rollouts = _about(answers, rollout)
        knows = sum(other.reward == 1.0 for other in peer_rollouts) >= options.kappa * len(peer_rollouts)
        annotations["gate_open"] += knows / len(peers)
        if options.exchange == "gated" and not knows:
            continue
        best = next((other for other in peer_rollouts if other.reward == 1.0), peer_rollouts[0])
        if not knows and draw_uniform("noise", best.example.id, best.ids) < options.noise:
            best = answers[(answers.index(peer_rollouts[-1]) + 1) % len(answers)]
        remark = rollout.remarks[number].splitlines() if options.feedback == "reply" else _CLAUSE_END.split(best.text)
        for line in filter(str.strip, remark):
            if options.anchor and not concepts(line) & anchors:
                annotations["lines_off_topic"] += 1
            elif not options.leak and _tells(line, rollout.example.answer, final_answer(best.text)):
                annotations["lines_telling"] += 1
            elif line.strip() not in lines:
                lines.append(line.strip())
    annotations |= {"own_answer": float(own_answer is not None), "lines_kept": float(len(lines))}
    parts = [f"hint: {' and '.join(lines)}"] * bool(lines) + [f"reference: {own_answer}"] * (own_answer is not None)
    return replace(rollout, feedback="\n".join(parts) or None, annotations=tuple(annotations.items()))


def _about(rollouts: tuple[Rollout, ...], rollout: Rollout) -> list[Rollout]:
    return [other for other in rollouts if other.example.id == rollout.example.id]


def _tells(line: str, *answers: str | None) -> bool:
    return any(grade(line, answer, "contains") == 1.0 for answer in answers if answer)
