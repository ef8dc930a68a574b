"""Sum of gradients over ranks that each hold all weights, while the last backward pass of a step is still running.

torch's DistributedDataParallel does this for one forward call of a wrapped module. Here a pass is several calls of the
model below its head, losses use the head outside of them, and ranks differ in their numbers of passes.

    with reduction.during_last_pass():
        loss.backward()          # a bucket of gradients is summed as soon as it is complete
    reduction.finish()           # now every rank has the sums
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from workbench.distributed import BUCKET_BYTES, ProcessGroup


class GradientReduction:
    """Sums the gradients of some weights over all ranks, in buckets of the same order on every rank.

    A bucket begins when all of its gradients and all earlier buckets are complete, at the latest after the pass.
    Weights without a gradient (a vision tower without images) count as zero, and keep none if no rank has one.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], process_group: ProcessGroup) -> None:
        self._parameters, self._process_group = parameters, process_group
        self._buckets = list(buckets(parameters))
        self._bucket_of = {id(weight): idx for idx, bucket in enumerate(self._buckets) for weight in bucket}
        self._missing: list[int] = []  # gradients by bucket that the pass has not completed
        self._started: list[dist.Work] = []
        self._has_gradient: list[bool] = []

    @contextlib.contextmanager
    def during_last_pass(self) -> Iterator[None]:
        """Sum gradients while the backward pass inside completes them."""
        self._missing, self._started = [len(bucket) for bucket in self._buckets], []
        handles = [weight.register_post_accumulate_grad_hook(self._completed) for weight in self._parameters]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._has_gradient = [weight.grad is not None for weight in self._parameters]
        self._start(len(self._buckets))

    def finish(self) -> None:
        """Wait for all sums. Raises LostProcess if a rank exited."""
        for work in self._started:
            self._process_group.wait(work)
        self._started = []
        any_rank = self._process_group.any_rank(self._has_gradient, self._parameters[0].device)
        for weight, has_gradient in zip(self._parameters, any_rank, strict=True):
            if not has_gradient:
                weight.grad = None

    def _completed(self, weight: Tensor) -> None:
        self._missing[self._bucket_of[id(weight)]] -= 1
        self._start(next((idx for idx, count in enumerate(self._missing) if count), len(self._missing)))

    @torch.no_grad()
    def _start(self, stop: int) -> None:
        """Begin the sums of the buckets before `stop` that have not begun. Gradients become views of their bucket."""
        for bucket in self._buckets[len(self._started) : stop]:
            grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in bucket]
            flat = grads[0].reshape(-1) if len(grads) == 1 else torch.cat([grad.reshape(-1) for grad in grads])
            for weight, part in zip(bucket, flat.split([grad.numel() for grad in grads]), strict=True):
                weight.grad = part.view(weight.shape)
            del grads
            self._started.append(self._process_group.start_sum(flat))


def buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Group weights whose gradients are summed at once: the last weights first, as a backward pass completes them, of
    one data type, at most BUCKET_BYTES unless one weight is larger.
    """
    bucket: list[nn.Parameter] = []
    size = 0
    ordered = list(reversed(parameters))
    ordered.sort(key=lambda weight: str(weight.dtype))
    for weight in ordered:
        if bucket and (weight.dtype != bucket[0].dtype or size + weight.nbytes > BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(weight)
        size += weight.nbytes
    if bucket:
        yield bucket
