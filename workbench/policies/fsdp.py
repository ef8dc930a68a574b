"""Weights in parts: each process of a run holds a part of every weight, of its gradient and of its moments (FSDP2).

The decoder's layers are one group of weights each. All else (embeddings, head, vision tower) is the root, which is put
together once a step and stays so until its end: losses read the head outside of any forward pass.

    learn         a layer is together while it computes, forwards and backwards, and its gradient is summed and parted in the
                  backward pass. All processes go through the same layers the same number of times: who has fewer
                  micro-batches reads one again for nothing
    write, read   without gradient the model is together all the while (`unsharded`), so that nothing is sent between tokens
                  and processes need not make equally many passes. It costs one whole model at a time beside the parts

Without shards every function here does nothing.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from types import MethodType

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from workbench.distributed import Group
from workbench.errors import ConfigError, PolicyError
from workbench.policies import Policy
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.by_domain import PolicyByDomain
from workbench.policies.diffusion import DiffusionPolicy


class FsdpModel:
    """One model in parts over all processes of a group; what calls it with gradient is `model.below_head`.

    Raises: PolicyError if its decoder has no list of layers, or its weights are of several kinds of number.
    """

    def __init__(self, model: nn.Module, group: Group, mesh: DeviceMesh) -> None:
        self.model, self.group, self._depth = model, group, 0
        layers = getattr(model.get_decoder(), "layers", None)
        adapted = any(_is_adapter(name) for name, _ in model.named_parameters())  # then all else is frozen
        trained = (parameter for name, parameter in model.named_parameters() if not adapted or _is_adapter(name))
        kinds = sorted({str(parameter.dtype) for parameter in trained})
        if not isinstance(layers, nn.ModuleList) or len(kinds) > 1:
            fault = (
                f"has weights of {' and '.join(kinds)}" if len(kinds) > 1 else "has a decoder without a list of layers"
            )
            raise PolicyError(
                f"{type(model).__name__} {fault}, and cannot be sharded. Start with distributed_type: MULTI_GPU "
                "(configs/accelerate/one-node-8.yaml)."
            )
        self.layers = list(layers)
        model.below_head = MethodType(_below_head, model)
        for part in (*self.layers, model):
            fully_shard(part, mesh=mesh)
            part.set_gradient_divide_factor(1.0)  # a position's coefficient counts all processes already
            part.set_force_sum_reduction_for_comms(True)
        register_fsdp_forward_method(model, "below_head")
        if (
            adapted
        ):  # the first layer's gradient is sent from its backward pass too, in processes without a picture as in others
            model.get_input_embeddings().register_forward_hook(_with_gradient)
        model.set_reduce_scatter_unused_params(True)  # one process may have pictures where another has none
        self._work_in_layers()

    def _work_in_layers(self) -> None:
        self.model.set_requires_gradient_sync(True)
        for layer in self.layers:
            layer.set_reshard_after_forward(self.group.sharding.reshard)
            layer.set_reshard_after_backward(True)
        self.model.set_reshard_after_forward(False, recurse=False)
        self.model.set_reshard_after_backward(False, recurse=False)

    @contextlib.contextmanager
    def unsharded(self) -> Iterator[None]:
        """Inside, all weights are whole in every process, and passes send nothing; after it, the root still is."""
        if not self._depth:
            self.group.all_gather_object("unshard")  # who failed before says so here, and nobody waits for its weights
            for part in (*self.layers, self.model):
                part.unshard()
            self.model.set_reshard_after_forward(False)
            self.model.set_reshard_after_backward(False)
            self.model.set_requires_gradient_sync(False)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._work_in_layers()
                for layer in self.layers:
                    layer.reshard()

    @contextlib.contextmanager
    def unsharded_head(self) -> Iterator[None]:
        """Inside, the root is whole; after it, all is in parts."""
        self.group.all_gather_object("unshard head")
        self.model.unshard()
        try:
            yield
        finally:
            self.model.reshard()

    @torch.no_grad()
    def leave_untouched(self, parameters: Sequence[nn.Parameter]) -> None:
        """A gradient that is zero everywhere is that of a weight that took no part (the vision tower, without pictures): as
        in a process alone it becomes None, and neither momentum nor decay moves the weight."""
        zero = torch.zeros((), dtype=torch.bool, device=parameters[0].device)
        moved = [zero if parameter.grad is None else parameter.grad.to_local().any() for parameter in parameters]
        for parameter, is_touched in zip(parameters, self.group.any_rank(torch.stack(moved), zero.device), strict=True):
            if not is_touched:
                parameter.grad = None


def _with_gradient(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return output.requires_grad_().clone() if torch.is_grad_enabled() else output


def _is_adapter(name: str) -> bool:
    return "lora_" in name


def _below_head(model: nn.Module, **inputs: object) -> Tensor:
    return model.base_model(**inputs).last_hidden_state


def shard(policies: Iterable[Policy], group: Group, device: str) -> None:
    """Part the models of policies over the processes, each part on its process's `device`.

    Raises: ConfigError if torch is too old; PolicyError for a model that cannot be, a masked diffusion model among them.
    """
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise ConfigError(
            f"sharded weights need torch 2.13 or newer, this is {torch.__version__}. Install it, or start with "
            "distributed_type: MULTI_GPU (configs/accelerate/one-node-8.yaml)."
        )
    mesh = init_device_mesh(torch.device(device).type, (group.size,))
    of_model: dict[int, FsdpModel] = {}  # with LoRA, student@start is the student's own model
    for policy in single_policies(policies):
        if policy.shards is None:
            if isinstance(policy, DiffusionPolicy):
                raise PolicyError(
                    f"{policy.name} is a masked diffusion model: it reads an answer in as many passes as it has steps, in each "
                    "process another number, so it cannot be sharded. Start with distributed_type: MULTI_GPU "
                    "(configs/accelerate/one-node-8.yaml)."
                )
            if id(policy.model) not in of_model:
                of_model[id(policy.model)] = FsdpModel(policy.model, group, mesh)
            policy.shards = of_model[id(policy.model)]


@contextlib.contextmanager
def unsharded(*policies: Policy) -> Iterator[None]:
    """Inside, the policies write and read without gradient, in each process as often as it likes."""
    with contextlib.ExitStack() as stack:
        for shards in _shards(policies):
            stack.enter_context(shards.unsharded())
        yield


@contextlib.contextmanager
def unsharded_heads(*policies: Policy) -> Iterator[None]:
    """Inside, the policies' heads can be used; no weight may change."""
    with contextlib.ExitStack() as stack:
        for shards in _shards(policies):
            stack.enter_context(shards.unsharded_head())
        yield


@contextlib.contextmanager
def lockstep_forward(policy: Policy) -> Iterator[None]:
    """Inside, the policy is read with gradient, by all processes together; who fails there leaves without waiting for others."""
    groups = [shards.group for shards in _shards([policy])]
    for group in groups:
        group.in_lockstep = True
    yield
    for group in groups:
        group.in_lockstep = False


def num_synced_passes(policy: Policy, count: int) -> int:
    """How often the policy is to be read with gradient: `count` times, or as often as in the process with the most."""
    return max([count, *(most for shards in _shards([policy]) for most in shards.group.all_gather_object(count))])


def full_tensor(value: Tensor) -> Tensor:
    """A tensor put together of its parts, in every process; one that is whole is given back."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a whole tensor, or all of it, as it is of a parameter; on its device."""
    value = value.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def local_tensor(value: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value


def full_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every weight and buffer that is saved under its name, whole and in host memory; tied ones are one tensor. Of a model with
    adapters these alone are."""
    whole_by_id: dict[int, Tensor] = {}
    values = model.state_dict(keep_vars=True)
    adapted = any(map(_is_adapter, values))
    for name, value in values.items():
        if adapted and not _is_adapter(name):
            continue
        if id(value) not in whole_by_id:
            whole_by_id[id(value)] = full_tensor(value.detach()).cpu()
        yield name, whole_by_id[id(value)]


def single_policies(policies: Iterable[Policy]) -> Iterator[AutoregressivePolicy]:
    """Every policy that has a model of its own to call: of a policy by domain, those that it is made of."""
    for policy in policies:
        parts = (*policy.members.values(), policy.other) if isinstance(policy, PolicyByDomain) else (policy,)
        yield from (part for part in parts if isinstance(part, AutoregressivePolicy))


def _shards(policies: Iterable[Policy]) -> list[FsdpModel]:
    shards_by_id = {
        id(policy.shards): policy.shards for policy in single_policies(policies) if policy.shards is not None
    }
    return list(shards_by_id.values())
