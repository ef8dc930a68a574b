"""Time and peak memory of the chunked losses against whole (N, V) logits, values and gradients compared.

    python -m benchmarks losses [--positions 2048] [--vocabulary 151936] [--width 1024] [--repeats 5]
                                [--liger-chunk 1024]

Whole: logits of learner and target for all positions at once, the divergence as its formula reads, autograd. Liger: the
fused linear Jensen-Shannon loss of the package liger-kernel, where that is installed: its chunked one in PyTorch, with
--liger-chunk positions a chunk (compiled on a GPU alone), and on a GPU its Triton kernel too. The chunked losses here
also give the learner's log-prob, entropy and rank of every position, which Liger's do not. Each measurement runs in
a separate process. Memory is the highest resident size above what it was when weights and hidden states existed; the
gradient of the head, (V, D), is part of the result of both and is also shown apart.
"""

import argparse
import importlib.util
import json
import math
import resource
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable

import psutil
import torch
from torch import nn

from benchmarks.timing import Clock, Turn, machine, show
from workbench.distill.divergences import Divergence
from workbench.distill.losses import compute_losses
from workbench.distill.method import Loss, Regime
from workbench.policies.view_output import Head, ViewOutput
from workbench.types import Routing


def whole_reverse_kl(learner: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    p, q = learner.log_softmax(-1), target.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def whole_jensen_shannon(learner: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    p, q = learner.log_softmax(-1), target.log_softmax(-1)
    m = torch.logaddexp(p, q) - math.log(2)
    return ((p.exp() * (p - m)).sum(-1) + (q.exp() * (q - m)).sum(-1)) / 2


def whole_top_128(learner: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    p, q = learner.log_softmax(-1), target.log_softmax(-1)
    ids = p.detach().topk(128, -1).indices
    p, q = p.gather(-1, ids), q.gather(-1, ids)
    p_rest, q_rest = (torch.log1p(-logprobs.exp().sum(-1)) for logprobs in (p, q))
    return (p.exp() * (p - q)).sum(-1) + p_rest.exp() * (p_rest - q_rest)


CASES = {
    "reverse_kl": (Divergence("reverse_kl"), whole_reverse_kl),
    "jensen_shannon": (Divergence("jensen_shannon"), whole_jensen_shannon),
    "reverse_kl top-128, bucket": (Divergence("reverse_kl", "top_k", top_k=128), whole_top_128),
}
WHOLE, CHUNKED, LIGER, TRITON = "whole", "chunked", "Liger, chunked", "Liger, Triton kernel"
LIGER_BETA = {"reverse_kl": 1.0, "jensen_shannon": 0.5}  # its generalized Jensen-Shannon divergence, by our name


def main() -> None:
    args = arguments()
    if args.variant:
        print(json.dumps(measure(args)))
        return
    print(f"{args.positions} positions, vocabulary {args.vocabulary}, width {args.width}, fp32; {machine()}")
    for name in [name for name in CASES if args.only in (None, name)]:
        results_of: dict[str, list[dict]] = {variant: [] for variant in (WHOLE, CHUNKED, LIGER, TRITON)}
        for variant in (LIGER, TRITON):
            if reason := why_not(variant, name):
                print(f"{variant}: skipped, {reason}")
                del results_of[variant]
        for _ in range(args.repeats):
            for variant, results in results_of.items():
                results.append(in_process(args, name, variant))
        show(
            name,
            {variant: [Turn(*result["turn"]) for result in results] for variant, results in results_of.items()},
            base=WHOLE,
        )
        head = args.vocabulary * args.width * 4 / 2**30
        memory = {
            v: statistics.median(result["bytes"] for result in results) / 2**30 for v, results in results_of.items()
        }
        print(f"memory (gradient of the head, {head:.2f} GiB, is in all):")
        for variant, variant_gib in memory.items():
            beside = (memory[WHOLE] - head) / max(variant_gib - head, 1e-9)
            print(
                f"  {variant:24}{variant_gib:8.2f} GiB, 1/{memory[WHOLE] / variant_gib:.1f} of whole; beside that "
                f"gradient 1/{beside:.1f}"
            )
        for key in ("loss", "of_hidden", "of_head"):
            values = {variant: results[0][key] for variant, results in results_of.items()}
            whole = values.pop(WHOLE)
            apart = {variant: abs(value - whole) / abs(whole) for variant, value in values.items()}
            differences = ", ".join(f"{variant} differs by {error:.1e}" for variant, error in apart.items())
            print(f"{key:12} whole {whole:.9g}; {differences}")


def why_not(variant: str, name: str) -> str | None:
    """Return why a variant cannot be measured for a divergence; None if it can."""
    if name not in LIGER_BETA:
        return f"it has no {name}"
    if importlib.util.find_spec("liger_kernel") is None:
        return "the package is not here: pip install liger-kernel (without Triton: pip install --no-deps liger-kernel)"
    if variant == TRITON and not torch.cuda.is_available():
        return "it needs Triton and a GPU, and there is none"
    return None


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=tuple(CASES))
    parser.add_argument(
        "--liger-chunk", type=int, default=1024, help="positions a chunk of Liger's; 1,024 is its default"
    )
    parser.add_argument("--variant", choices=(WHOLE, CHUNKED, LIGER, TRITON), help=argparse.SUPPRESS)
    return parser.parse_args()


def in_process(args: argparse.Namespace, name: str, variant: str) -> dict:
    command = [sys.executable, "-m", "benchmarks.losses", "--variant", variant, "--only", name]
    for key in ("positions", "vocabulary", "width", "liger_chunk"):
        if hasattr(args, key):
            command += [f"--{key.replace('_', '-')}", str(getattr(args, key))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{variant} {name} ended with {done.returncode}; too little memory? {done.stderr[-500:]}")
    return json.loads(done.stdout)


def measure(args: argparse.Namespace) -> dict:
    """Measure seconds, bytes, and a few values and gradients of one variant."""
    torch.manual_seed(0)
    work = prepared(args.variant, args.only, 16, 512, 64, args.liger_chunk)
    work()  # code that is paged in on first use is not what is measured
    N, V, D = args.positions, args.vocabulary, args.width
    work = prepared(args.variant, args.only, N, V, D, args.liger_chunk)
    with Peak() as peak:
        clock = Clock()
        loss, of_hidden, of_head = work()
        turn = clock.stop()
    sums = {"of_hidden": float(of_hidden.double().norm()), "of_head": float(of_head.norm(dtype=torch.double))}
    return {"turn": turn, "bytes": peak.bytes, "loss": float(loss)} | sums


def prepared(
    variant: str, name: str, N: int, V: int, D: int, liger_chunk: int = 1024
) -> Callable[[], tuple[torch.Tensor, ...]]:
    """Prepare weights and hidden states. Returns a function that computes loss and both gradients."""
    learner, target = (nn.Linear(D, V, bias=False) for _ in range(2))
    target.requires_grad_(False)
    for linear in (learner, target):  # logits with a standard deviation of 3: peaked, as a model's
        nn.init.normal_(linear.weight, std=3 / D**0.5)
    hidden, other = torch.randn(N, D, requires_grad=True), torch.randn(N, D)
    ids, (divergence, formula) = torch.randint(0, V, (N,)), CASES[name]

    def work() -> tuple[torch.Tensor, ...]:
        if variant == WHOLE:
            student_output = learner(hidden)
            with torch.no_grad():
                wanted = target(other)
            total = formula(student_output, wanted).mean()
        elif variant in (LIGER, TRITON):
            total = liger(variant, LIGER_BETA[name], liger_chunk)(hidden, learner.weight, other, target.weight, ids)
        else:
            total = compute_losses(
                ViewOutput.of(hidden, Head(learner), V),
                {"teacher": ViewOutput.of(other, Head(target), V)},
                ids,
                regimes=(Regime((Loss("teacher", divergence),)),),
                routing=Routing(torch.zeros(N, dtype=torch.long), torch.ones(N)),
                loss_normalizer=torch.full((N,), 1 / N),
            ).total
        total.backward()
        return total.detach(), hidden.grad, learner.weight.grad

    return work


def liger(variant: str, beta: float, chunk: int) -> Callable[..., torch.Tensor]:
    """Mean divergence from hidden states and heads; beta 1 = reverse KL, 1/2 = Jensen-Shannon."""
    if variant == LIGER:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        return LigerFusedLinearJSDLoss(0.0, 1.0, beta, compiled=torch.cuda.is_available(), chunk_size=chunk)
    from liger_kernel.transformers import LigerFusedLinearJSD

    loss = LigerFusedLinearJSD(jsd_beta=beta)
    return lambda hidden, weight, other, target, ids: loss(
        hidden, weight, other, target, None
    )  # no labels: none is left out


class Peak:
    """Measure the peak resident size in the block, relative to its start."""

    def __enter__(self) -> "Peak":
        self._process, self._done = psutil.Process(), threading.Event()
        self._start = self._highest = self._process.memory_info().rss
        self._before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        highest = after if after > self._before else self._highest  # the kernel's own mark, where it moved
        self.bytes = highest - self._start

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self._highest = max(self._highest, self._process.memory_info().rss)


if __name__ == "__main__":
    main()
