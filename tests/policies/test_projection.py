"""The subspace of keys and values: exact identities, whatever the weights."""

from pathlib import Path

import pytest
import torch
from failures import raises
from families import save_aya_vision, save_gemma3, save_llava, save_paligemma
from torch import nn

from workbench.data.contexts import build_prompt
from workbench.data.scenes import make_examples
from workbench.errors import ConfigError, DataError, PolicyError
from workbench.policies import SamplingOptions
from workbench.policies.autoregressive import AutoregressivePolicy, load_policy
from workbench.policies.projection import (
    EVERY_TOKEN,
    calibrate,
    find_projections,
    gradient_subspace,
    projected,
    random_subspace,
    rank_of,
)
from workbench.types import Example, Mark

OPTIONS = SamplingOptions(max_completion_length=8)


@pytest.fixture(scope="module")
def student(models: dict) -> AutoregressivePolicy:
    return load_policy(models["student"], "student")


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return make_examples("train", seed=0, start=0, count=6)


@pytest.fixture(scope="module")
def moments(student: AutoregressivePolicy, examples: list[Example]) -> dict:
    return calibrate(student, examples, count=3, kind="answer", layers="all").moments


def logits(policy: AutoregressivePolicy, example: Example) -> torch.Tensor:
    ids = policy.answer_ids(example.reference)
    with torch.no_grad():
        return policy.forward([build_prompt(example, "plain")], [ids]).logits(torch.arange(len(ids)))


def written(policy: AutoregressivePolicy, examples: list[Example]) -> list[tuple[int, ...]]:
    prompts = [build_prompt(example, "plain") for example in examples]
    return [item.ids for values in policy.sample(prompts, [[1, 2]] * len(prompts), OPTIONS) for item in values]


def num_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("rank", [1, 5, 16])
def test_projector_is_symmetric_idempotent_of_its_rank(moments: dict, rank: int) -> None:
    for values in (*moments.values(), torch.zeros(16, 16, dtype=torch.float64)):
        for space in (gradient_subspace(values, rank), random_subspace(16, rank, 0)):
            P = space.projector
            assert torch.equal(P, P.T)
            assert torch.allclose(P @ P, P, atol=1e-6)
            assert float(P.trace()) == pytest.approx(rank, abs=1e-5)


def test_subspace_is_that_of_stacked_gradients(student: AutoregressivePolicy, examples: list[Example]) -> None:
    """Gradients by a finite difference, one entry at a time, against what the moments say."""
    example = examples[0]
    name = next(name for name in find_projections(student.model, "last") if name.endswith("v_proj"))
    moments = calibrate(student, [example], count=1, kind="answer", layers="last").moments[name]
    texts = student.token_texts(student.answer_ids(example.reference))
    index = len(texts) - 2  # the answer is the word before the end token
    assert texts[index].strip() == example.answer
    module, wanted = student.model.get_submodule(name), student.answer_ids(example.reference)[index]

    def loss(direction: torch.Tensor, position: int) -> float:
        def nudge(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            output[0, position] += direction
            return output

        handle = module.register_forward_hook(nudge)
        try:
            return -float(logits(student, example).double().log_softmax(-1)[index, wanted])
        finally:
            handle.remove()

    length = student.encoder.encode(build_prompt(example, "plain"))["input_ids"].shape[1] + len(texts)
    step, width = 1e-2, 16
    direction = torch.randn(width, generator=torch.Generator().manual_seed(0))
    by_hand = [
        (loss(step * direction, at) - loss(-step * direction, at)) / (2 * step) for at in range(length)
    ]  # d loss along `direction`, at every position
    requested = float(direction.double() @ moments @ direction.double())
    assert sum(value**2 for value in by_hand) == pytest.approx(requested, rel=2e-2)


def test_projection_of_full_rank_keeps_logits_and_samples(
    student: AutoregressivePolicy, examples: list[Example], moments: dict
) -> None:
    projectors = {name: gradient_subspace(values, len(values)).projector for name, values in moments.items()}
    plain, answers = logits(student, examples[0]), written(student, examples)
    with projected(student, projectors):
        assert torch.allclose(logits(student, examples[0]), plain, atol=1e-5)
        assert written(student, examples) == answers


def test_projection_folded_weights_equal_hooks(
    student: AutoregressivePolicy, examples: list[Example], moments: dict
) -> None:
    before, plain = num_hooks(student.model), logits(student, examples[0])
    projectors = {name: gradient_subspace(values, 4).projector for name, values in moments.items()}
    with projected(student, projectors):
        hooked, answers = logits(student, examples[0]), written(student, examples)
    assert num_hooks(student.model) == before
    assert torch.equal(logits(student, examples[0]), plain)
    assert not torch.allclose(hooked, plain, atol=1e-3)
    twin = student.copy("twin")
    with torch.no_grad():
        for name in projectors:
            linear = twin.model.get_submodule(name)
            linear.bias = nn.Parameter(torch.zeros(linear.out_features))
            for values in (linear.weight, linear.bias):  # W' = P W, b' = P b
                values.copy_(projectors[name] @ values)
    assert torch.allclose(logits(twin, examples[0]), hooked, atol=1e-5)
    assert written(twin, examples) == answers


def test_projection_hooks_are_removed_after_error(student: AutoregressivePolicy, moments: dict) -> None:
    before = num_hooks(student.model)
    with (
        pytest.raises(ZeroDivisionError),
        projected(student, {name: torch.eye(16) for name in moments}),
    ):
        raise ZeroDivisionError
    assert num_hooks(student.model) == before


def test_calibration_loss_is_on_chosen_tokens_only(student: AutoregressivePolicy, examples: list[Example]) -> None:
    answer = calibrate(student, examples, count=4, kind="answer")
    every = calibrate(student, examples, count=4, kind=EVERY_TOKEN)
    assert answer.used == every.used == 4 and answer.left_out == 0
    assert answer.tokens == 4  # the built-in world's answers are one word
    assert every.tokens == sum(len(student.answer_ids(example.reference)) for example in examples[:4])
    unmarked = Example("x", "what is it?", answer="red", reference="at red, answer red")
    alone = calibrate(student, [unmarked, Example("y", "?")], count=2, kind="answer")
    assert (alone.used, alone.tokens, alone.left_out) == (1, 1, 1)


def test_calibration_without_answers_raises(student: AutoregressivePolicy, examples: list[Example]) -> None:
    with raises(DataError, "6 examples", "anser"):
        calibrate(student, examples, count=3, kind="anser")
    bare = Example("x", "what is it?", marks=(Mark("(a)", "answer"),))
    with raises(DataError, "add answers"):
        calibrate(student, [bare], count=3, kind="answer")


def test_projection_rank_above_layer_width_raises() -> None:
    assert rank_of("layers.0.k_proj", 16, 0.5) == 8
    assert rank_of("layers.0.k_proj", 16, 0.0) == 1
    with raises(ConfigError, "method.rank=17", "layers.0.k_proj"):
        rank_of("layers.0.k_proj", 16, 0.5, 17)


@pytest.mark.parametrize("save", [save_llava, save_gemma3, save_paligemma, save_aya_vision])
def test_text_decoder_of_family_is_found(save, tmp_path: Path) -> None:
    model = load_policy(save(tmp_path / "model"), "student").model
    result = find_projections(model, "middle+last")
    assert [name.rpartition("layers.")[2] for name in result] == [
        f"{layer}.self_attn.{kind}" for layer in (1,) for kind in ("k_proj", "v_proj")
    ]
    assert not any("vision" in name for name in result)


def test_projection_of_fused_layers_raises(student: AutoregressivePolicy) -> None:
    model = student.copy("fused").model
    attention = model.get_decoder().layers[1].self_attn
    attention.qkv_proj = attention.k_proj
    del attention.k_proj
    with raises(PolicyError, "layer 1", "qkv_proj"):
        find_projections(model)
