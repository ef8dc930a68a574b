"""A step of dopd against a step of opd, and the least it could cost: one more forward pass of the student.

The least, for each privileged context: opd with a teacher shown that context, and the student reading the same answers
under it without gradient, its scalars taken and then thrown away.
"""

import dataclasses
import tempfile
from pathlib import Path

from benchmarks.steps import WARMUP, Steps, make_trainer, parts, step_arguments
from benchmarks.timing import show, take_turns
from workbench.method import View


def main() -> None:
    args = step_arguments(__doc__)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        variants = {"opd": Steps(make_trainer("opd", args, folder, {"name": "opd"}))}
        for context in ("boxes", "hint", "crop"):
            least = make_trainer(f"least-{context}", args, folder, {"name": "opd", "privilege": context})
            views = least.method.views | {"self": View("student", context)}
            least.method = dataclasses.replace(least.method, views=views)
            variants[f"least with {context}"] = Steps(least)
            method = {"name": "dopd", "privilege": context}
            variants[f"dopd with {context}"] = Steps(make_trainer(f"dopd-{context}", args, folder, method))
        turns = take_turns(variants, repeats=args.repeats, warmup=WARMUP)
        for name, steps in variants.items():
            print(f"{name}, last step: {parts(steps.metrics)}")
        show(f"one step, {args.prompts} prompts x {args.generations} answers x {args.tokens} tokens", turns, base="opd")


if __name__ == "__main__":
    main()
