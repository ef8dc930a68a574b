"""Taking turns, and a table of what came out."""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch


class Turn(NamedTuple):
    """What one turn took. Processor time counts all threads, and other programs on the machine hardly disturb it."""

    wall_s: float
    processor_s: float


class Clock:
    """Measures turns: `start`, work, `stop`; the GPU's queue is empty at both ends."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        _wait()
        self._start = time.perf_counter(), time.process_time()

    def stop(self) -> Turn:
        _wait()
        return Turn(time.perf_counter() - self._start[0], time.process_time() - self._start[1])


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def take_turns(variants: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 2) -> dict[str, list[Turn]]:
    """Each variant `repeats` times, one after the other: whatever else the machine does meets all of them alike."""
    turns: dict[str, list[Turn]] = {name: [] for name in variants}
    for turn in range(-warmup, repeats):
        for name, variant in variants.items():
            clock = Clock()
            variant()
            if turn >= 0:
                turns[name].append(clock.stop())
    return turns


def machine() -> str:
    """Describe the machine in one line."""
    return f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def show(title: str, turns: dict[str, list[Turn]], *, base: str) -> None:
    """Print medians of wall and processor time, their ratios to `base`, and quartiles of the wall ratios."""
    print(f"\n{title}\n{machine()}, {len(turns[base])} turns, medians")
    print(f"{'':40}{'wall ms':>10}{'ratio':>8}{'processor ms':>15}{'ratio':>8}{'wall quartiles':>18}")
    for name, values in turns.items():
        line = f"{name:40}"
        for column, width in ((0, 10), (1, 15)):
            median, other = (statistics.median(turn[column] for turn in rows) for rows in (values, turns[base]))
            line += f"{1000 * median:{width}.1f}{median / other:8.3f}"
        pairs = [rows.wall_s / other.wall_s for rows, other in zip(values, turns[base], strict=True)]
        low, high = (pairs * 2)[:2] if len(pairs) < 2 else statistics.quantiles(pairs, n=4)[::2]
        print(f"{line}{low:9.3f} .. {high:.3f}")
