"""Devices of a plan: their memory, and the speed that times are stated for."""

import re
from dataclasses import dataclass

from workbench.config.schema import RunConfig
from workbench.errors import ConfigError, show

GB = 10**9
_UNITS = {"GB": GB, "GIB": 2**30, "MB": 10**6, "MIB": 2**20, "TB": 10**12, "TIB": 2**40}
_MEMORY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)\s*")


@dataclass(frozen=True)
class Speed:
    """Peak speed of a device, from its maker's data sheet, without sparsity.

    half, single  operations per second with bfloat16 and with float32 inputs
    bandwidth     bytes per second of its memory
    """

    name: str
    half: float
    single: float
    bandwidth: float


# the smallest memory that a class of devices has, in GB, and its speed
_SPEEDS = (
    (100, Speed("H200", 989e12, 67e12, 4.8e12)),
    (40, Speed("A100 80GB", 312e12, 19.5e12, 2.0e12)),
    (0, Speed("RTX 4090", 165e12, 82.6e12, 1.0e12)),
)


def parse_memory(text: str) -> int:
    """Bytes of "80GB", "24 GiB". Raises: ConfigError for anything else, and for none."""
    match = _MEMORY.fullmatch(text)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or not float(match[1]):
        raise ConfigError(
            f"--memory {show(text)} must be a number above 0 with one of the units {', '.join(_UNITS)}, as in 80GB."
        )
    return int(float(match[1]) * unit)


def parse_picture(text: str) -> tuple[int, int]:
    """Width and height of "1280x960", in pixels. Raises: ConfigError for anything else."""
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text)
    if match is None or not int(match[1]) or not int(match[2]):
        raise ConfigError(f"--picture {show(text)} must be WIDTHxHEIGHT in pixels, as in 1280x960.")
    return int(match[1]), int(match[2])


def require_count(name: str, count: int) -> int:
    """Raise ConfigError unless a number of devices or nodes is at least 1."""
    if count < 1:
        raise ConfigError(f"{name} must be at least 1, got {count}.")
    return count


def speed_of(memory: int) -> Speed:
    """Speed of a common device of this memory."""
    return next(speed for smallest, speed in _SPEEDS if memory >= smallest * GB)


def seconds(flops: float, traffic: float, config: RunConfig, speed: Speed, share: float) -> float:
    """Time of a phase: its operations at a share of the peak, or its reads token by token, whichever takes longer."""
    is_half = config.forward_dtype != "float32"
    return max(flops / (share * (speed.half if is_half else speed.single)), traffic / (share * speed.bandwidth))
