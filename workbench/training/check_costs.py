"""What a step costs, as `workbench check` states it: seconds by a measured batch, and the least memory by sizes."""

import os

import torch

from workbench.config.schema import RunConfig
from workbench.errors import WorkbenchError
from workbench.training.planning.plan import least_bytes
from workbench.training.planning.report import gigabytes


def describe_time(config: RunConfig, num_answers: int, sampling_s: float, scoring_s: float) -> str:
    """Seconds of a step's sampling and scoring, at the rate of the measured answers."""
    per_step = config.training.batch_size * config.sampling.num_generations
    seconds = (sampling_s + scoring_s) * per_step / num_answers
    return (
        f"about {seconds:.2g} s a step for {per_step} answers, and the backward pass on top: {num_answers} answers "
        f"were sampled in {sampling_s:.2g} s and scored in {scoring_s:.2g} s"
    )


def describe_memory(config: RunConfig, device: torch.device, served_heads: int) -> tuple[str, bool]:
    """What a run needs of the device's memory at least, and whether the device has it.

    served_heads  bytes of the heads of served teachers, which is all that a run has of them
    """
    try:
        least = least_bytes(config, served_teacher="") + served_heads
    except WorkbenchError as error:
        return f"not counted: {error}", False
    total = device_bytes(device)
    has = gigabytes(total)
    text = (
        f"at least {gigabytes(least)} GB of the {has} GB of {device}, in one process: weights, gradients and the "
        f"optimizer's moments; `workbench plan CONFIG --memory {has}GB` adds activations and caches"
    )
    return text, least <= total


def device_bytes(device: torch.device) -> int:
    """Memory of a device in bytes; of a device without a count of its own, that of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
