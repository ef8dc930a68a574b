"""A step with a served teacher against the larger of student and teacher, and what an answer costs on the wire.

    python -m benchmarks served step [--student FOLDER --teacher FOLDER] [--prompts 8] [--generations 4] [--tokens 32]
    python -m benchmarks served ahead [the same options]
    python -m benchmarks served wire [--rows 512] [--width 5120] [--layers 64]

step: dopd with crops, once with the teacher in the run's process and once behind `workbench teacher` on this machine,
by turns; processor time, the server's by the system's count. The student's share of a step is what its local step takes
beside the teacher's forward passes. Two processes work at the same time if each takes no more than the larger share.

ahead: dopd with crops and `workbench sampler`, with sampling.ahead 0 and 1 by turns. Processor time of trainer and
server, and wall time, which is only worth something if the machine has two idle cores. Without it, a step lasts at
least the sum of the two processes' times, ahead the larger one: this ratio does not depend on what else runs.

wire: processor time of both ends together for hidden states in bfloat16, through the real server and client, against a
part of a read: the three matrix products of each layer's MLP at that width, without attention and vision tower.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import uvicorn

from benchmarks.steps import Steps, make_trainer, step_arguments
from benchmarks.timing import machine
from workbench.policies.serving.addresses import Patience
from workbench.policies.serving.client import ServerClient
from workbench.policies.serving.door import build_door
from workbench.policies.serving.service import TeacherService
from workbench.policies.serving.wire import TEMPLATE, ReadRequest, pack_request
from workbench.types import Prompt

METHOD = {"name": "dopd", "privilege": "crop"}


def main() -> None:
    part = sys.argv.pop(1) if len(sys.argv) > 1 else "step"
    {"step": measure_step, "ahead": measure_ahead, "wire": measure_wire}[part]()


def measure_step() -> None:
    args = step_arguments(__doc__)
    teacher, port = args.teacher, _free_port()
    command = [Path(sys.executable).with_name("workbench"), "teacher", teacher, "--port", str(port)]
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(command) as server:
        try:
            local = make_trainer("local", args, Path(folder), METHOD)
            args.teacher = f"http://127.0.0.1:{port}"
            steps = {"local": Steps(local), "served": Steps(make_trainer("served", args, Path(folder), METHOD))}
            teacher_s = _counted(local.learners[0].policies["teacher"])
            rows: dict[str, list[float]] = {"student": [], "teacher": [], "trainer, served": [], "server": []}
            for turn in range(-args.warmup, args.repeats):
                teacher_s.clear()
                whole = _processor(steps["local"])
                before = _processor_of(server.pid)
                trainer = _processor(steps["served"])
                values = (whole - sum(teacher_s), sum(teacher_s), trainer, _processor_of(server.pid) - before)
                if turn >= 0:
                    for name, value in zip(rows, values, strict=True):
                        rows[name].append(value)
        finally:
            server.terminate()
    print(f"\n{machine()}, {args.repeats} turns, medians of processor ms")
    medians = {name: 1000 * statistics.median(values) for name, values in rows.items()}
    for name, value in medians.items():
        print(f"{name:20}{value:10.1f}")
    larger = max(medians["student"], medians["teacher"])
    print(f"larger process to larger share: {max(medians['trainer, served'], medians['server']) / larger:.3f}")
    print(f"both processes to both shares:  {sum(list(medians.values())[2:]) / sum(list(medians.values())[:2]):.3f}")


def measure_ahead() -> None:
    args, port = step_arguments(__doc__), _free_port()
    command = [Path(sys.executable).with_name("workbench"), "sampler", args.student, "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(command) as server:
        try:
            steps = [
                Steps(make_trainer(f"ahead-{ahead}", args, Path(folder), METHOD, server=address, ahead=ahead))
                for ahead in (0, 1)
            ]
            rows: list[list[tuple[float, float, float]]] = [[], []]  # by ahead: trainer, server, wall
            for turn in range(-args.warmup, args.repeats):
                for ahead in (0, 1):
                    begun, before = time.perf_counter(), _processor_of(server.pid)
                    trainer = _processor(steps[ahead])
                    took = trainer, _processor_of(server.pid) - before, time.perf_counter() - begun
                    if turn >= 0:
                        rows[ahead].append(took)
        finally:
            server.terminate()
    print(f"\n{machine()}, {args.repeats} turns, medians in ms\n{'':20}{'trainer':>10}{'server':>10}{'wall':>10}")
    medians = [[1000 * statistics.median(column) for column in zip(*turns, strict=True)] for turns in rows]
    for ahead, values in enumerate(medians):
        print(f"{f'sampling.ahead={ahead}':20}" + "".join(f"{value:10.1f}" for value in values))
    (trainer, sampler, wall), (trainer_ahead, sampler_ahead, wall_ahead) = medians
    print(f"larger process ahead to both without: {max(trainer_ahead, sampler_ahead) / (trainer + sampler):.3f}")
    print(f"processor time of both: {(trainer_ahead + sampler_ahead) / (trainer + sampler):.3f}")
    print(f"wall: {wall_ahead / wall:.3f}")
    print(
        ", ".join(
            f"{name} {value:.3g}" for name, value in steps[1].metrics.items() if name.startswith(("ratio", "sampler"))
        )
    )


def _counted(policy) -> list[float]:
    """Processor seconds of each of a policy's forward passes from now on, without the encoding of prompts."""
    seconds, forward = [], policy.forward

    def timed(prompts, *arguments):
        for prompt in prompts:
            policy.encoder.encode(prompt)  # cached; the trainer also encodes the prompts of a served teacher
        begun = time.process_time()
        try:
            return forward(prompts, *arguments)
        finally:
            seconds.append(time.process_time() - begun)

    policy.forward = timed
    return seconds


def _processor(work) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def _processor_of(pid: int) -> float:
    """Processor seconds of another process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class _Ready(TeacherService):
    """A service whose hidden states are computed already."""

    engine: Any = SimpleNamespace(fingerprint="ready")

    def __init__(self, hidden: torch.Tensor) -> None:
        self.hidden = hidden

    def read(self, request: ReadRequest) -> tuple[torch.Tensor, list]:
        return self.hidden, []


def measure_wire() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=512, help="answer tokens of a request")
    parser.add_argument("--width", type=int, default=5120)
    parser.add_argument("--layers", type=int, default=64, help="of the model that is read")
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    hidden, port = torch.randn(args.rows, args.width).bfloat16(), _free_port()
    server = uvicorn.Server(uvicorn.Config(build_door(_Ready(hidden)), port=port, log_level="warning", lifespan="off"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    client = ServerClient((f"http://127.0.0.1:{port}",), "teacher", Patience())
    client._fingerprint = "ready"
    answers: list[tuple[int, ...]] = [(1,) * 32] * (args.rows // 32)
    request = ReadRequest(
        [Prompt((), "?")], [0] * len(answers), answers, [list(range(len(answers)))], dict.fromkeys(TEMPLATE)
    )

    def ask() -> None:
        tensors, _ = client.send(pack_request(request), "/read").result()
        assert torch.equal(tensors["hidden"], hidden)

    wire = statistics.median(_processor(ask) for _ in range(args.repeats))
    states, weight = torch.ones(128, args.width).bfloat16(), torch.zeros(args.width, 5 * args.width).bfloat16()
    product = statistics.median(_processor(lambda: states @ weight) for _ in range(3)) / len(states)
    wire /= args.rows
    print(f"{machine()}, {args.rows} tokens of width {args.width}, processor time of both ends")
    print(f"wire {1e6 * wire:.1f} us a token; a product with {args.width} x {5 * args.width} {1e6 * product:.0f} us")
    print(f"share of the MLPs of {args.layers} layers, three products each: {wire / (3 * args.layers * product):.3%}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    main()
