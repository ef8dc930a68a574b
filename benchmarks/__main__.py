"""All benchmarks, by name. Ratios are within one run: variants take turns, and medians are compared.

    python -m benchmarks opd        a step of opd against a step of TRL's DistillationTrainer
    python -m benchmarks dopd       a step of dopd against a step of opd, and the least it could cost
    python -m benchmarks methods    a step of every method against its floor: the forward passes that its views need
    python -m benchmarks losses     time and peak memory of the chunked losses against whole logits, and Liger's
    python -m benchmarks packing    answers of mixed length: padded, sorted, by a token budget, packed
    python -m benchmarks memory     peak memory and time of steps of 1,024 to 16,384 positions, vocabulary of 151,936
    python -m benchmarks plan       which public models fit on which devices, planned without weights: docs/devices.md
    python -m benchmarks processes  sharded models in several processes: memory while loading and scoring, time
    python -m benchmarks speedup    a step of two processes on two cores against one process on one core
    python -m benchmarks gpu        Qwen3-VL with random weights: parts of a step, floor, memory (small without a GPU)
    python -m benchmarks served     a step with a served teacher, and one sampled ahead by a server; cost of the wire
    python -m benchmarks served_parity   log-probs of a served teacher against those of transformers in this process
    python -m benchmarks tracing    what recording every token adds to a step
    python -m benchmarks recorded   what recording a step of TRL as a run adds to it
    python -m benchmarks traces     the trace files alone: bytes per token, time per query
    python -m benchmarks big_run    a run of ten million positions with the queries of the app
    python -m benchmarks run_table  the table of a thousand runs: first and second call
    python -m benchmarks study      overhead of a study, and of two runs at once: study parts, study beside
    python -m benchmarks together   runs at once against the same runs one after the other
    python -m benchmarks app        first page, drawing in the browser, watching a run: app page, app draw, app monitor
    python -m benchmarks long_answer   an answer of 16,000 tokens in Chromium: time to draw, longest frame of scrolling
    python -m benchmarks bad_rows   campaign: rows with one odd value; none may end in a traceback
    python -m benchmarks first_losses   losses of every recipe's first three steps, bit by bit against another commit's
    python -m benchmarks recovery   what a pruned real model recovers by distillation: docs/real-models.md
    python -m benchmarks kills      campaign: runs killed at random and resumed, compared with uninterrupted ones
    python -m benchmarks bad_input  campaign: broken recipes, overrides, studies, run files and rows

Arguments after the name go to the benchmark: python -m benchmarks opd --help. Results are in docs/LOG.md.
"""

import runpy
import sys

NAMES = (
    "first_losses",
    "recovery",
    "opd",
    "dopd",
    "methods",
    "losses",
    "packing",
    "memory",
    "plan",
    "processes",
    "speedup",
    "gpu",
    "served",
    "served_parity",
    "tracing",
    "recorded",
    "traces",
    "big_run",
    "run_table",
    "study",
    "together",
    "app",
    "long_answer",
    "bad_rows",
    "kills",
    "bad_input",
)


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        sys.exit(__doc__)
    name = sys.argv.pop(1)
    runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
