"""Sharded weights (FSDP2): each rank holds a shard of every weight, of its gradient and of its optimizer state.

Each decoder layer is one FSDP unit. All else (embeddings, head, vision tower) is the root unit, which is all-gathered
once a step and stays unsharded until its end, because losses use the head outside of a forward pass.

    with gradient  a layer is unsharded only while it computes, and its gradient is reduce-scattered in the backward
                   pass. All ranks run the same layers equally often: a rank with fewer micro-batches repeats one with
                   zero loss (`lockstep_forward`). Layers that are not to be resharded stay whole from sampling to the
                   end of the step (`stays_whole`)
    scoring        a layer is unsharded only while it computes. Ranks make passes in rounds: a rank without a pass in a
                   round takes part in its all-gathers (`layer_by_layer`)
    sampling       the whole model is unsharded (`unsharded`), since a pass per token would gather all layers for each
                   token. This costs the memory of one full model in the precision of the pass, unless an engine or a
                   server samples: it gets the weights a layer at a time (`FsdpModel.parts`)

Without sharding every function here does nothing.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import MethodType
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from workbench.distributed import ProcessGroup
from workbench.errors import ConfigError, PolicyError
from workbench.policies import Policy
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.by_domain import PolicyByDomain
from workbench.policies.diffusion import DiffusionPolicy
from workbench.policies.layer_memory import (
    autocast_dtype,
    cast_in_each_pass,
    communicate_in_memory,
    in_half_precision,
    whole_bytes,
)
from workbench.policies.node_memory import NodeMemory
from workbench.policies.scattering import broadcast_buffers, match_structure, scattered
from workbench.policies.serving.served import ServedPolicy

R = TypeVar("R")


class FsdpModel:
    """A model sharded over all ranks of a process group; forward passes call `model.below_head` or the model itself.

    Raises: PolicyError if its decoder has no list of layers, or its weights have several dtypes.
    """

    def __init__(
        self,
        model: nn.Module,
        process_group: ProcessGroup,
        mesh: DeviceMesh,
        device: torch.device,
        memory: NodeMemory | None = None,
    ) -> None:
        self.model, self.process_group, self.memory, self._depth = model, process_group, memory, 0
        self.rounds: Rounds | None = None  # inside of layer_by_layer
        self._passed: list[int] = []  # layers of the current pass
        self.stays_whole = False  # until the root is resharded
        layers = getattr(model.get_decoder(), "layers", None)
        adapted = any(_is_adapter(name) for name, _ in model.named_parameters())  # then only the adapter is trained
        match_structure(model, process_group)
        trained = (parameter for name, parameter in model.named_parameters() if not adapted or _is_adapter(name))
        kinds = sorted({str(parameter.dtype) for parameter in trained})
        if not isinstance(layers, nn.ModuleList) or len(kinds) > 1:
            fault = (
                f"has weights of {' and '.join(kinds)}" if len(kinds) > 1 else "has a decoder without a list of layers"
            )
            raise PolicyError(
                f"cannot shard {type(model).__name__}, which {fault}. Start with distributed_type: MULTI_GPU "
                "(configs/accelerate/one-node-8.yaml)."
            )
        self.layers = list(layers)
        model.below_head = MethodType(_below_head, model)
        process_group.all_gather_object("built")  # raises the error of a rank whose model differs
        with in_lockstep(process_group):
            for part in (*self.layers, model):
                with scattered(part, process_group, device):
                    fully_shard(part, mesh=mesh)
        broadcast_buffers(model, process_group, device)
        for part in (*self.layers, model):
            part.set_gradient_divide_factor(1.0)  # loss_normalizers already cover all ranks
            part.set_force_sum_reduction_for_comms(True)
        if device.type == "cpu":
            communicate_in_memory(self.layers, model, memory)
        cast_in_each_pass(self.layers, lambda: not self._depth)
        register_fsdp_forward_method(model, "below_head")
        if adapted:  # the first layer also needs a backward pass on ranks without an image
            model.get_input_embeddings().register_forward_hook(_with_gradient)
        model.set_reduce_scatter_unused_params(True)  # ranks differ in whether they have images
        for idx, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(functools.partial(_append, self._passed, idx))
        self._work_in_layers()

    def make_pass(self, forward: Callable[[], R]) -> R:
        """Make a forward pass in the way of the present context.

        Raises: PolicyError if its layers do not run one after the other, as other ranks without a pass gather them.
        """
        if self._depth or self.stays_whole or torch.is_grad_enabled():
            return forward()
        assert self.rounds is not None, "a pass of sharded weights outside of unsharded and layer_by_layer"
        return self.rounds.run(self, forward)

    def pass_in_layers(self, forward: Callable[[], R]) -> R:
        """Make this rank's pass of a round."""
        self._passed.clear()
        result = forward()
        if self._passed != list(range(len(self.layers))):
            raise PolicyError(
                f"cannot shard {type(self.model).__name__}, whose decoder layers do not run one after the other. Start "
                "with distributed_type: MULTI_GPU (configs/accelerate/one-node-8.yaml)."
            )
        return result

    def gather_in_layers(self) -> None:
        """Take part in another rank's pass of a round: all-gather and reshard layer after layer."""
        for layer in self.layers:
            layer.unshard()
            layer.reshard()

    def parts(self) -> Iterator[list[tuple[str, nn.Module]]]:
        """Yield the modules of each layer while it is unsharded, then all others, with their names. All ranks take part
        to the end; the root must be unsharded.
        """
        others = dict(self.model.named_modules())
        prefixes = {id(module): name for name, module in others.items()}
        for layer in self.layers:
            modules = list(layer.named_modules(prefix=prefixes[id(layer)]))
            others = {name: module for name, module in others.items() if name not in dict(modules)}
            with in_lockstep(self.process_group):
                layer.unshard()
            yield modules
            layer.reshard()
        yield list(others.items())

    def forget_passes(self) -> None:
        """Drop FSDP's record of passes without gradient, which only a backward pass would."""
        for part in (*self.layers, self.model):
            for group in part._get_fsdp_state()._fsdp_param_groups:
                group._post_forward_indices.clear()
                getattr(group.comm_ctx, "post_forward_order", []).clear()  # not there before the first pass

    def _work_in_layers(self) -> None:
        self.model.set_requires_gradient_sync(True)
        for layer in self.layers:
            layer.set_reshard_after_forward(self.process_group.sharding.reshard)
            layer.set_reshard_after_backward(not self.stays_whole)
        self.model.set_reshard_after_forward(False, recurse=False)
        self.model.set_reshard_after_backward(False, recurse=False)

    def _reshard_layers(self) -> None:
        for layer in self.layers:
            layer.reshard()

    @contextlib.contextmanager
    def unsharded(self) -> Iterator[None]:
        """All-gather all weights; inside, forward passes need no communication. The root stays unsharded afterwards;
        the layers too, if the model learns and the launcher asks for layers that are not resharded.

        Under autocast, linear layers of the decoder are held in its precision alone, so they cannot stay.
        """
        if not self._depth:
            self.process_group.all_gather_object("unshard")  # raises the error of a rank that failed before
            self.model.unshard()
            dtype = autocast_dtype(next(self.model.parameters()).device)
            for layer in self.layers:
                layer.unshard()
                for _, _, weight in in_half_precision(layer, dtype) if dtype is not None else ():
                    weight.untyped_storage().resize_(0)  # until the layer is gathered again
            self.model.set_reshard_after_forward(False)
            self.model.set_reshard_after_backward(False)
            self.model.set_requires_gradient_sync(False)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                learns = any(weight.requires_grad for weight in self.model.parameters())
                is_float32 = autocast_dtype(next(self.model.parameters()).device) is None
                self.stays_whole = learns and is_float32 and not self.process_group.sharding.reshard
                self._work_in_layers()
                if not self.stays_whole:
                    self._reshard_layers()

    @contextlib.contextmanager
    def unsharded_head(self) -> Iterator[None]:
        """All-gather the root unit, which has the head; reshard it afterwards, and what stayed whole."""
        self.process_group.all_gather_object("unshard head")
        self.model.unshard()
        if self.memory is not None:
            self.memory.release_flat()
        try:
            yield
        finally:
            self.model.reshard()
            self._reshard_layers()
            if self.stays_whole:
                self.stays_whole = False
                self._work_in_layers()
            if self.memory is not None:
                self.memory.release_summand()

    @torch.no_grad()
    def leave_untouched(self, parameters: Sequence[nn.Parameter]) -> None:
        """Set gradients that are zero on all ranks to None, as without sharding.

        They belong to unused weights (a vision tower without images), which momentum and weight decay must not change.
        """
        zero = torch.zeros((), dtype=torch.bool, device=parameters[0].device)
        gradients = [parameter.grad for parameter in parameters]
        has_gradient = [zero if gradient is None else _any(gradient.to_local()) for gradient in gradients]
        for parameter, is_touched in zip(
            parameters, self.process_group.any_rank(torch.stack(has_gradient), zero.device), strict=True
        ):
            if not is_touched:
                parameter.grad = None


class Rounds:
    """Passes of all ranks over some sharded models, in rounds.

    Each rank names the model of its next pass, or none; then all ranks pass through each named model once. So ranks
    may have different numbers of passes, and several models by domain. An error between passes reaches all ranks.
    """

    def __init__(self, models: Sequence[FsdpModel]) -> None:
        self.models, self._process_group = models, models[0].process_group

    def run(self, model: FsdpModel, forward: Callable[[], R]) -> R:
        """Make a pass of this rank, in the next round."""
        result: list[R] = []
        for turn in self._turns(self.models.index(model)):
            with in_lockstep(self._process_group):
                if turn is model:
                    result.append(model.pass_in_layers(forward))
                else:
                    turn.gather_in_layers()
        return result[0]

    def finish(self) -> None:
        """Take part in the rounds of other ranks until no rank has a pass."""
        while turns := self._turns(None):
            for turn in turns:
                with in_lockstep(self._process_group):
                    turn.gather_in_layers()

    def _turns(self, idx: int | None) -> list[FsdpModel]:
        """Models of the next round."""
        named = set(self._process_group.all_gather_object(idx)) - {None}
        return [self.models[idx] for idx in sorted(named)]


@contextlib.contextmanager
def in_lockstep(process_group: ProcessGroup) -> Iterator[None]:
    """Context of collectives of a model; a rank that fails inside exits without another collective."""
    process_group.in_lockstep = True
    yield
    process_group.in_lockstep = False


def _any(values: Tensor) -> Tensor:
    """Whether a number is not zero; on a CPU, the first ones decide nearly always."""
    first = values.flatten()[:1024].any() if values.device.type == "cpu" else None
    return first if first else values.any()


def _append(numbers: list[int], number: int, *_: object) -> None:
    numbers.append(number)


def _with_gradient(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return output.requires_grad_().clone() if torch.is_grad_enabled() else output


def _is_adapter(name: str) -> bool:
    return "lora_" in name


def _below_head(model: nn.Module, **inputs: object) -> Tensor:
    return model.base_model(**inputs).last_hidden_state


def shard(policies: Iterable[Policy], process_group: ProcessGroup, device: str) -> None:
    """Shard the models of policies over the ranks, on each rank's `device`. The weights are those of rank 0; the other
    ranks need none (`load_policies(..., empty=True)`).

    Raises: ConfigError if torch is too old; PolicyError for a model that cannot be sharded, such as a diffusion model.
    """
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise ConfigError(
            f"torch is {torch.__version__}. Expected 2.13 or newer for sharded weights. Install it, or start with "
            "distributed_type: MULTI_GPU (configs/accelerate/one-node-8.yaml)."
        )
    mesh = init_device_mesh(torch.device(device).type, (process_group.size,))
    memory = NodeMemory.of(process_group) if mesh.device_type == "cpu" else None
    of_model: dict[int, FsdpModel] = {}  # with LoRA, student@start shares the student's model
    for policy in single_policies(policies):
        if isinstance(policy, ServedPolicy):
            policy.to(device)
        elif policy.shards is None:
            if isinstance(policy, DiffusionPolicy):
                raise PolicyError(
                    f"cannot shard {policy.name}, a masked diffusion model, whose number of forward passes differs "
                    "between ranks. Start with distributed_type: MULTI_GPU (configs/accelerate/one-node-8.yaml)."
                )
            if id(policy.model) not in of_model:
                of_model[id(policy.model)] = FsdpModel(policy.model, process_group, mesh, torch.device(device), memory)
            policy.shards = of_model[id(policy.model)]


def describe_shards(sampling: Iterable[Policy], precision: str) -> str:
    """One line on which models are whole on a device, and when.

    sampling   the policies that sample
    precision  data type of their passes
    """
    singles = list(single_policies(sampling))
    whole = [policy for policy in singles if policy.samples_itself]
    by_engine = any(policy.engine is not None for policy in singles)
    instead = "each has a vllm, which samples" if by_engine else "a server samples"
    names = " and ".join(dict.fromkeys(policy.name for policy in whole))
    size = sum(whole_bytes(shards.layers, precision) for shards in _shards(whole))
    sampled = f"{names} is whole on each while sampling ({size / 1e9:.3g} GB of layers)" if whole else instead
    return (
        f"weights are sharded over {_shards(singles)[0].process_group.size} processes; {sampled}, and every model is "
        "gathered a layer at a time to score and learn"
    )


@contextlib.contextmanager
def unsharded(*policies: Policy) -> Iterator[None]:
    """All-gather the policies' weights to sample; inside, each rank makes any number of passes without gradient.

    Weights of a policy with an engine or a served sampler stay sharded.
    """
    with contextlib.ExitStack() as stack:
        for shards in _shards(_in_process(policies)):
            stack.enter_context(shards.unsharded())
        yield


@contextlib.contextmanager
def layer_by_layer(*policies: Policy) -> Iterator[None]:
    """All-gather the policies' weights one layer at a time; inside, each rank makes any number of passes without
    gradient. The roots must be unsharded (`unsharded_root`).
    """
    models = [model for model in _shards(policies) if not model.stays_whole]
    if not models or models[0].rounds is not None:  # not sharded, or inside of another such context
        yield
        return
    rounds = Rounds(models)
    for model in models:
        model.rounds = rounds
        for layer in model.layers:
            layer.set_reshard_after_forward(True)
    try:
        yield
        rounds.finish()
    finally:
        for model in models:
            model.rounds = None
            model.forget_passes()
            model._work_in_layers()


@contextlib.contextmanager
def unsharded_root(*policies: Policy) -> Iterator[None]:
    """All-gather the policies' heads; inside, no weight may change."""
    with contextlib.ExitStack() as stack:
        for shards in _shards(policies):
            stack.enter_context(shards.unsharded_head())
        yield


@contextlib.contextmanager
def lockstep_forward(policy: Policy) -> Iterator[None]:
    """Context of forward and backward passes of all ranks in lockstep; a failing rank exits without a collective."""
    with contextlib.ExitStack() as stack:
        for shards in _shards([policy]):
            stack.enter_context(in_lockstep(shards.process_group))
        yield


def num_synced_passes(policy: Policy, count: int) -> int:
    """Number of forward passes with gradient: `count`, or with sharded weights the maximum over the ranks."""
    counts = [shards.process_group.all_gather_object(count) for shards in _shards([policy])]
    return max([count, *itertools.chain.from_iterable(counts)])


def full_tensor(value: Tensor) -> Tensor:
    """All-gather a sharded tensor; other tensors are returned unchanged."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def scatter_like(value: Tensor, parameter: DTensor) -> DTensor:
    """Shard rank 0's full tensor like a parameter, on its device. On other ranks only dtype and shape of `value` count,
    which may be on the meta device.
    """
    value = torch.empty_like(value, device=parameter.device) if value.is_meta else value.to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=0)


def local_tensor(value: Tensor) -> Tensor:
    """This rank's shard of a tensor, or the tensor itself."""
    return value.to_local() if isinstance(value, DTensor) else value


def full_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield each saved weight and buffer by name, full and in host memory; tied weights share one tensor.

    Only the adapter's weights for a model with an adapter.
    """
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
    """Policies with a model of their own; a policy by domain is replaced by its members."""
    for policy in policies:
        parts = (*policy.members.values(), policy.other) if isinstance(policy, PolicyByDomain) else (policy,)
        yield from (part for part in parts if isinstance(part, AutoregressivePolicy))


def class_name(model: nn.Module) -> str:
    """Name of a model's class before it was sharded."""
    return next(kind.__name__ for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))


def _in_process(policies: Iterable[Policy]) -> Iterator[AutoregressivePolicy]:
    """Policies whose own passes sample."""
    return (policy for policy in single_policies(policies) if policy.samples_itself)


def _shards(policies: Iterable[Policy]) -> list[FsdpModel]:
    shards_by_id = {
        id(policy.shards): policy.shards for policy in single_policies(policies) if policy.shards is not None
    }
    return list(shards_by_id.values())
