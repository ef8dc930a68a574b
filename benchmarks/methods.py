"""Compare a step of every method, with its recipe, with its floor: the forward passes of its views and one loss.

The floor keeps the method's models, writing, contexts and batch, and puts the rule of opd in place of its own: every
view that does not learn reads the answers, the learner reads them with gradient, and one divergence pulls it to the
first view that does not learn (to the written tokens where there is none). What is above the floor is routing, more
losses and whatever else a method does in a step. How many forward passes each makes is printed beside it; opd makes
two. Target: at most 1.15.
"""

import argparse
import dataclasses
import statistics
import tempfile
from pathlib import Path

from benchmarks.steps import WARMUP, Steps
from benchmarks.timing import machine, take_turns
from workbench.config.schema import load_config
from workbench.distill.divergences import Divergence
from workbench.distill.method import TOKENS, Loss, Method, Regime
from workbench.distill.routing import everywhere
from workbench.errors import WorkbenchError
from workbench.methods import list_methods
from workbench.runs.folder import RunFolder
from workbench.training.loop import Trainer
from workbench.types import RouteBatch, Routing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(list_methods()), help="methods, joined by commas")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    print(f"one step of every recipe, medians of {args.repeats}, processor time; {machine()}")
    print(f"{'method':16}{'forwards':>9}{'floor ms':>10}{'method ms':>11}{'ratio':>8}")
    for name in args.only.split(","):
        try:
            print(measured(name, args.repeats), flush=True)
        except WorkbenchError as error:
            print(f"{name:16} not measured: {error}", flush=True)


def measured(name: str, repeats: int) -> str:
    """Format one line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        full, floor = (trainer(name, Path(folder), which, repeats) for which in ("own", "floor"))
        floor.method = floor_of(full.method)
        turns = take_turns({"floor": Steps(floor), "own": Steps(full)}, repeats=repeats, warmup=WARMUP)
    low, high = (1000 * statistics.median(turn.processor_s for turn in turns[which]) for which in ("floor", "own"))
    return f"{name:16}{len(full.method.views):9}{low:10.1f}{high:11.1f}{high / low:8.2f}"


def floor_of(method: Method) -> Method:
    """Return a method with the same sampling and views, but one loss at every position and no rule."""
    others = [name for name, view in method.views.items() if not view.learns]
    if not others:
        return dataclasses.replace(
            method, regimes={"ALL": Regime((Loss(TOKENS, Divergence("nll")),))}, route=everywhere, router_views=()
        )

    def where_read(batch: RouteBatch) -> Routing:  # some views read only rollouts that have what they show
        return dataclasses.replace(everywhere(batch), regime=batch.scores[others[0]].logprob.isnan().long())

    regimes = {"ALL": Regime((Loss(others[0], Divergence("reverse_kl")),)), "UNREAD": Regime(())}
    return dataclasses.replace(method, regimes=regimes, route=where_read, router_views=())


def trainer(name: str, folder: Path, run: str, repeats: int) -> Trainer:
    """Build a recipe's trainer without evaluation, probes and traces, with all answers at maximum length."""
    settings = ("trace.every=0", "trace.probes=0", "data.eval=null", "evaluation.teacher=false", "training.steps=10000")
    config = load_config(f"configs/{name}.yaml", [f"output_dir={folder}", f"name={run}", *settings])
    limit = config.training.batch_size * (repeats + WARMUP)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, max_train_examples=limit))
    run_folder = RunFolder.create(config.run_dir, config.to_yaml(), seed=config.seed, method=name)
    done = Trainer(config, run_folder)
    for learner in done.learners:
        placeholders = getattr(learner.student, "placeholders", None)
        if placeholders is not None:
            learner.student.placeholders = [*placeholders, *learner.student.stop_ids]  # never sampled
    return done


if __name__ == "__main__":
    main()
