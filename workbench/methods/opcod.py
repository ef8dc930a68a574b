"""OPCoD: students that are strong at different things learn at once; what a peer says about an answer goes into its
teaching.

Source: Be My Tutor, arXiv 2606.14368. The idea, a gate by competence, anchoring and stripped answers are the paper's.
Its formulas could not be read: the objective (SDPO's), the form of the gate, kappa and all that is marked * are
reconstructed.
1. Every student answers the same questions; answers are graded.
2. Gate*: a peer may speak about a question if at least `kappa` of its own answers to it are right.
3. It says how it went about it*, the clauses of an own answer (a right one if there is one), or what it writes when
   asked about the student's answer (feedback=written). Dropped: a line that tells an answer, and (`anchor`) a line
   whose own words name nothing by which the question differs from most others of its family in the batch*: in the
   built-in world nearly every clause, since answers name places and tags and questions name things. The recipe there
   has anchor=false.
4. A copy of the student, shown another right answer of its own*, if any, and what peers said, reads the student's
   tokens; the student is pulled to it. Nothing to show: no loss, counted (regime NONE).
5. All write before any learns, and all learn at every step: no rounds.
Controls: exchange (none, ungated), anchor, leak, and noise in what peers say that do not know the question.
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
ASKED = "Another student answered: {text}\nSay where to look and how to go about it, without the answer."


@dataclass(frozen=True)
class Options:
    exchange: Annotated[
        str,
        Option("who may speak: peers that know the question, every peer, nobody", choices=("gated", "ungated", "none")),
    ] = "gated"
    kappa: Annotated[float, Option("share of a peer's own answers that must be right", low=0, high=1)] = 0.5
    feedback: Annotated[
        str, Option("from the peer's own answer, or written by it when asked", choices=("own_answer", "written"))
    ] = "own_answer"
    anchor: Annotated[
        bool, Option("drop lines that do not hold a word of the question which most questions of its family lack")
    ] = True
    leak: Annotated[bool, Option("control: keep lines that tell an answer")] = False
    noise: Annotated[
        float,
        Option("control: share of questions below kappa at which a peer speaks of another question", low=0, high=1),
    ] = 0.0
    divergence: Annotated[str, Option("what is minimised", choices=KINDS[1:4])] = "jensen_shannon"
    top_k: Annotated[
        int, Option("most likely entries of the student that are compared, and one for the rest; 0 = all", low=0)
    ] = 100
    self_policy: Annotated[str, Option("weights of the self-teacher", choices=("student@ema", "student@start"))] = (
        "student@ema"
    )
    ema_rate: Annotated[float, Option("share of the student mixed into student@ema each step", low=1e-6, high=1)] = 0.05


def build(options: Options) -> Method:
    if options.noise and options.feedback == "written":
        raise ConfigError(
            f"method.noise={options.noise:g} is of feedback=own_answer: asked about an answer, a peer has no other "
            "question to speak of. Set one of the two back."
        )

    def annotate(written: tuple[Rollout, ...], *peers: tuple[Rollout, ...]) -> tuple[Rollout, ...]:
        heard = () if options.exchange == "none" else peers
        return tuple(_annotated(options, rollout, written, heard) for rollout in written)

    def route(batch: RouteBatch) -> Routing:
        facts = [dict(rollout.facts) for rollout in batch.rollouts]
        kinds = [int(fact["own_answer"]) + 2 * (fact["lines_kept"] > 0) for fact in facts]
        regime = torch.tensor(kinds, device=batch.sequence.device)[batch.sequence]
        return Routing(regime, torch.ones(batch.num_positions, device=regime.device))

    support = "top_k" if options.top_k else "full"
    loss = Loss("self", Divergence(options.divergence, support, top_k=options.top_k, of="learner", tail="bucket"))
    return Method(
        name="opcod",
        views={"student": View("student", "plain", learns=True), "self": View(options.self_policy, "feedback")},
        regimes={
            "NONE": Regime((), "nothing to show: no supervision"),
            "OWN": Regime((loss,), "self, shown another right answer of its own"),
            "PEER": Regime((loss,), "self, shown what peers said"),
            "BOTH": Regime((loss,), "self, shown both"),
        },
        route=route,
        annotate=annotate,
        needs=() if options.exchange == "ungated" else ("answer",),
        asks_peers=ASKED if options.feedback == "written" and options.exchange != "none" else None,
        min_learners=1 if options.exchange == "none" else 2,
        min_generations=2 if options.exchange == "none" else 1,
        ema_rate=options.ema_rate,
    )


def _annotated(options: Options, rollout: Rollout, written: tuple[Rollout, ...], peers: tuple) -> Rollout:
    """The rollout with what its self-teacher is shown, and what was decided about it."""
    own_answer = next(
        (other.text for other in _about(written, rollout) if other.reward == 1.0 and other is not rollout), None
    )
    facts = dict.fromkeys(("own_answer", "gate_open", "lines_kept", "lines_off_topic", "lines_telling"), 0.0)
    lines: list[str] = []
    anchors = distinguishing_concepts(rollout, written)
    for number, answers in enumerate(peers):
        peer_rollouts = _about(answers, rollout)
        knows = sum(other.reward == 1.0 for other in peer_rollouts) >= options.kappa * len(peer_rollouts)
        facts["gate_open"] += knows / len(peers)
        if options.exchange == "gated" and not knows:
            continue
        best = next((other for other in peer_rollouts if other.reward == 1.0), peer_rollouts[0])
        if not knows and draw_uniform("noise", best.example.id, best.ids) < options.noise:
            best = answers[(answers.index(peer_rollouts[-1]) + 1) % len(answers)]
        remark = rollout.remarks[number].splitlines() if options.feedback == "written" else _CLAUSE_END.split(best.text)
        for line in filter(str.strip, remark):
            if options.anchor and not concepts(line) & anchors:
                facts["lines_off_topic"] += 1
            elif not options.leak and _tells(line, rollout.example.answer, final_answer(best.text)):
                facts["lines_telling"] += 1
            elif line.strip() not in lines:
                lines.append(line.strip())
    facts |= {"own_answer": float(own_answer is not None), "lines_kept": float(len(lines))}
    parts = [f"hint: {' and '.join(lines)}"] * bool(lines) + [f"reference: {own_answer}"] * (own_answer is not None)
    return replace(rollout, feedback="\n".join(parts) or None, facts=tuple(facts.items()))


def _about(rollouts: tuple[Rollout, ...], rollout: Rollout) -> list[Rollout]:
    return [other for other in rollouts if other.example.id == rollout.example.id]


def _tells(line: str, *answers: str | None) -> bool:
    return any(grade(line, answer, "contains") == 1.0 for answer in answers if answer)
