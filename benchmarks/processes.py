"""Several processes on one machine: host memory while a sharded model loads and scores, and the time of passes.

    python -m benchmarks processes [--processes 2,4] [--layers 24] [--width 512]

A text model of random weights in float32, sharded (FSDP2, gloo). Memory is the resident size above that of the
processes before they load; time is processor time, since other programs may use the machine.

load    peak of all processes together, in copies of the weights, without and with the pages of mapped files, which the
        system drops when it needs memory: rank 0 reads, all ranks get their parts
score   peak of each process while it scores, above what it keeps after loading, beside two layers and the root
        (embeddings, final norm, head), in MiB, with its part of what the processes share. Then the time of scoring
        layer by layer against the whole model gathered once
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from benchmarks.gpu import build_tokenizer
from benchmarks.timing import machine
from workbench.distill.scoring import Batch, forward_view
from workbench.distributed import ProcessGroup, join
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.fsdp import layer_by_layer, shard, unsharded, unsharded_root
from workbench.policies.loading import load_policy
from workbench.policies.proven import agree, prove_all
from workbench.types import Example, Prompt, Rollout

MIB = 2**20
ENVIRONMENT = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",  # freed tensors leave the resident size at once
}


def main() -> None:
    args = arguments()
    if args.folder:
        measure(Path(args.folder), args.rows, args.tokens, args.repeats)
        return
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), args.layers, args.width)
        save(Path(folder) / "small", 2, 64)
        for count in args.processes:
            show(count, launched(count, Path(folder), args))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=lambda text: [int(number) for number in text.split(",")], default=[2, 4])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rows", type=int, default=8, help="answers of each process in the timed passes")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def save(folder: Path, layers: int, width: int) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    config = Qwen3Config(
        vocab_size=4096,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=width // 8,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def launched(count: int, folder: Path, args: argparse.Namespace) -> list[dict]:
    """Results of `count` processes, by rank."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command += ["-m", "benchmarks.processes", "--folder", str(folder)]
    for name in ("rows", "tokens", "repeats"):
        command += [f"--{name}", str(getattr(args, name))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT})
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(count)]


def show(count: int, ranks: list[dict]) -> None:
    first = ranks[0]
    copy = first["bytes"]
    print(f"\n{count} processes, a model of {copy / MIB:.0f} MiB")
    peak, kept, files = (first[name] / copy for name in ("load", "kept", "with_files"))
    print(
        f"load    {peak:.2f} copies at the peak, all processes together, {files:.2f} with file pages; {kept:.2f} kept"
    )
    bound = 2 * first["layer"] + first["root"]
    peaks = ", ".join(f"{(rank['score'] - rank['kept_alone']) / MIB:.0f}" for rank in ranks)
    layers = (copy - first["root"]) / MIB
    print(f"score   {peaks} MiB at the peak; two layers and the root: {bound / MIB:.0f}; all layers: {layers:.0f}")
    parts, whole = (statistics.median(first[name]) for name in ("by_layer", "at_once"))
    ratio = parts / whole
    print(f"        {parts:.2f} s layer by layer, {whole:.2f} s whole: {ratio:.2f} of the processor time", flush=True)


class Resident:
    """Resident size of processes together, above that at the start.

    files  with pages of mapped files, which the system drops when it needs memory
    """

    def __init__(self, pids: list[int], *, files: bool = False) -> None:
        self._processes, self._files = [psutil.Process(pid) for pid in pids], files
        self._start, self._done = self.now(), threading.Event()

    def now(self) -> int:
        infos = [process.memory_info() for process in self._processes]
        return sum(info.rss - (0 if self._files else info.shared) for info in infos)

    @property
    def grown(self) -> int:
        return self.now() - self._start

    def peak(self, act: Callable[[], object]) -> int:
        """Largest number of bytes while `act` runs."""
        self._highest = 0
        self._done.clear()
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            act()
        finally:
            self._done.set()
            thread.join()
        return self._highest

    def _watch(self) -> None:
        while not self._done.wait(0.001):
            self._highest = max(self._highest, self.grown)


def measure(folder: Path, rows: int, tokens: int, repeats: int) -> None:
    """Measure as one of several processes."""
    torch.set_num_threads(1)
    group = join()
    small, large = batch_of(1, 8), batch_of(rows, tokens)
    warm = load(folder / "small", group)  # what is imported and cached at the first load is not of the weights
    with unsharded_root(warm), torch.no_grad():
        score(warm, small, by_layer=True)
    group.all_gather_object("warm")
    pids = group.all_gather_object(os.getpid())
    everyone, with_files, alone = Resident(pids), Resident(pids, files=True), Resident([os.getpid()])
    loaded: list[AutoregressivePolicy] = []
    result: dict = {}

    def read() -> None:
        result["load"] = everyone.peak(lambda: loaded.append(load(folder, group)))

    result["with_files"] = with_files.peak(read)
    policy = loaded[0]
    group.all_gather_object("loaded")
    result |= {"kept": everyone.grown, "kept_alone": alone.grown}
    result |= sizes(policy)
    with unsharded_root(policy), torch.no_grad():
        result["score"] = alone.peak(lambda: score(policy, small, by_layer=True)) + shared_bytes(policy)
        result |= {"by_layer": [], "at_once": []}
        for _ in range(repeats):
            for name in ("by_layer", "at_once"):
                start = time.process_time()
                score(policy, large, by_layer=name == "by_layer")
                result[name].append(time.process_time() - start)
    (folder / f"rank-{group.rank}.json").write_text(json.dumps(result))


def load(folder: Path, group: ProcessGroup) -> AutoregressivePolicy:
    """The model as `build_learner` loads and shards it."""
    policy = load_policy(folder, "teacher", empty=not group.is_main, mapped=True)
    prove_all([policy])
    agree([policy], group)
    shard([policy], group, "cpu")
    return policy


def sizes(policy: AutoregressivePolicy) -> dict[str, int]:
    """Bytes of the whole model, of a layer and of the root."""
    layers = [sum(weight.nbytes for weight in layer.parameters()) for layer in policy.shards.layers]
    total = sum(weight.nbytes for weight in policy.model.parameters())
    return {"bytes": total, "layer": max(layers), "root": total - sum(layers)}


def shared_bytes(policy: AutoregressivePolicy) -> int:
    """Of memory that the processes share, this one's part, which is not in its resident size here."""
    return policy.shards.memory.nbytes if policy.shards.memory is not None else 0


def batch_of(rows: int, tokens: int) -> Batch:
    rollouts = (Rollout(Example(f"{row}", ""), row, tuple(range(7, 7 + tokens)), "", False) for row in range(rows))
    return Batch(tuple(rollouts), micro_batch_size=4)


def score(policy: AutoregressivePolicy, batch: Batch, *, by_layer: bool) -> None:
    prompts = tuple(Prompt((), f"w{row + 100} w{row + 200}", key=f"{row}") for row in range(len(batch.rollouts)))
    with layer_by_layer(policy) if by_layer else unsharded(policy):
        forward_view(policy, prompts, batch)


if __name__ == "__main__":
    main()
