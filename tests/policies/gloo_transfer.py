"""vLLM's weight transfer over gloo, for machines without NCCL: a plugin of a server, and what a run joins.

All but the communicator is what NCCL's backend has: its requests, its meeting point, packed chunks, the loading.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NAME = "gloo"


class Group:
    """A communicator, as vLLM's PyNcclCommunicator."""

    def __init__(self, rank: int, facts: dict[str, Any]) -> None:
        from vllm.distributed.utils import stateless_init_torch_distributed_process_group as join  # noqa: PLC0415

        self.group = join(facts["master_address"], facts["master_port"], rank, facts["world_size"], "gloo")

    def broadcast(self, tensor: Tensor, src: int) -> None:
        self.group.broadcast(tensor, src).wait()

    def destroy(self) -> None:
        self.group = None


def join_gloo(facts: dict[str, Any]) -> Group:
    """The run's place in the group."""
    return Group(0, facts)


def register() -> None:
    """Called by vLLM in each of its processes."""
    from vllm.distributed.weight_transfer import nccl_engine, packed_tensor  # noqa: PLC0415
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory  # noqa: PLC0415

    class GlooEngine(nccl_engine.NCCLWeightTransferEngine):
        def init_transfer_engine(self, init_info: Any) -> None:
            assert init_info.packed
            self.packed_buffer_size_bytes = init_info.packed_buffer_size_bytes
            self.model_update_group = Group(init_info.rank_offset + self.parallel_config.rank, vars(init_info))

        def receive_weights(self, update_info: Any) -> None:
            names: list[tuple[str, list[int], torch.dtype]] = []
            rows = list(zip(update_info.names, update_info.shapes, update_info.dtype_names, strict=True))
            for idx, (name, shape, dtype) in enumerate(rows):
                names.append((name, shape, getattr(torch, dtype)))
                sizes = [torch.Size(each).numel() * kind.itemsize for _, each, kind in names]
                if sum(sizes) > self.packed_buffer_size_bytes or idx + 1 == len(rows):
                    packed = torch.empty(sum(sizes), dtype=torch.uint8)
                    self.model_update_group.broadcast(packed, src=0)
                    self.model.load_weights(packed_tensor.unpack_tensor(packed, *zip(*names, strict=True), sizes))
                    names = []

    if NAME not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(NAME, GlooEngine)


def install(folder: Path) -> str:
    """Describe the plugin to Python in a folder; returns the PYTHONPATH of a server that loads it."""
    facts = folder / "gloo_transfer-0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: gloo-transfer\nVersion: 0\n")
    (facts / "entry_points.txt").write_text("[vllm.general_plugins]\ngloo = gloo_transfer:register\n")
    return f"{folder}:{Path(__file__).parent}"
