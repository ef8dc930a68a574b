"""Compare a step of dopd with a step of opd and with its lower bound: one more forward pass of the student.

opd stands there twice: with a teacher shown what the student sees, and shown the same context as dopd's teacher, which
makes its prompts longer. The least, for each context: that second opd, and the student reading the same answers under
the context without gradient, its scalars taken and then thrown away.

    python -m benchmarks dopd --text --student smollm2 --teacher smollm2 --prompts 4 --tokens 48 --warmup 1 --repeats 2
"""

import dataclasses
import statistics
import tempfile
from pathlib import Path

from benchmarks.steps import Steps, make_trainer, parts, step_arguments
from benchmarks.timing import show, take_turns
from workbench.distill.method import View

CONTEXTS = ("boxes", "hint", "crop")  # with --text the hint alone


def main() -> None:
    args = step_arguments(__doc__)
    contexts = ("hint",) if args.text else CONTEXTS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        variants = {"opd": Steps(make_trainer("opd", args, folder, {"name": "opd"}))}
        for context in contexts:
            informed = {"name": "opd", "privilege": context}
            variants[f"opd with {context}"] = Steps(make_trainer(f"opd-{context}", args, folder, informed))
            least = make_trainer(f"least-{context}", args, folder, informed)
            views = least.method.views | {"self": View("student", context)}
            least.method = dataclasses.replace(least.method, views=views)
            variants[f"least with {context}"] = Steps(least)
            method = {"name": "dopd", "privilege": context}
            variants[f"dopd with {context}"] = Steps(make_trainer(f"dopd-{context}", args, folder, method))
        turns = take_turns(variants, repeats=args.repeats, warmup=args.warmup)
        for name, steps in variants.items():
            print(f"{name}, last step: {parts(steps.metrics)}")
        show(f"one step, {args.prompts} prompts x {args.generations} answers x {args.tokens} tokens", turns, base="opd")
        cost = {name: statistics.median(turn.processor_s for turn in repeats) for name, repeats in turns.items()}
        for context in contexts:
            against = " and ".join(
                f"{cost[f'dopd with {context}'] / cost[f'{name} with {context}']:.3f} times {name}"
                for name in ("opd", "least")
            )
            print(f"dopd with {context}: {against} with it, processor time")


if __name__ == "__main__":
    main()
