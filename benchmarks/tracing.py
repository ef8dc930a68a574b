"""Overhead of recording every token in a step, including the merging of trace files.

Two runs of the same configuration take turns, one records everything, one nothing. The share is that of the medians,
plus the merging that happens every hundred steps and that a median would not show.
"""

import statistics
import tempfile
from pathlib import Path

from benchmarks.steps import Steps, make_trainer, parts, step_arguments
from benchmarks.timing import Clock, show, take_turns
from workbench.traces.parts import compact

OFF, ON = "nothing recorded", "every token recorded"


def main() -> None:
    args = step_arguments(__doc__)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        method = {"name": "dopd", "privilege": "crop", "self_policy": "student@start"}
        variants = {
            OFF: Steps(make_trainer("off", args, folder, method)),
            ON: Steps(make_trainer("on", args, folder, method, traced=True)),
        }
        traced = variants[ON].trainer
        traced.trace_writer.compact_every = 0
        turns = take_turns(variants, repeats=args.repeats, warmup=args.warmup)
        trace_s = [line["seconds/trace"] for line in traced.folder.metrics("train")][args.warmup :]
        print(f"last step: {parts(variants[ON].metrics)}")
        show(f"one step, {args.prompts} prompts x {args.generations} answers x {args.tokens} tokens", turns, base=OFF)
        traced.trace_writer.flush()
        clock = Clock()
        compact(traced.folder.path, min_parts=2)
        merged_s = clock.stop().wall_s / (args.repeats + args.warmup)
        own_s, step_s = statistics.median(trace_s), statistics.median(turn.wall_s for turn in turns[OFF])
        print(f"recording              {1000 * own_s:8.2f} ms a step, wall")
        print(f"merging                {1000 * merged_s:8.2f} ms a step, wall")
        print(f"together               {100 * (own_s + merged_s) / step_s:8.2f} % of a step")


if __name__ == "__main__":
    main()
