"""Metrics of an update on deltas whose answer is known; two checkpoints on disk; which module a tensor belongs to."""

import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from failures import raises

from workbench.analysis.geometry import measure as geometry
from workbench.analysis.geometry.measure import columns, compare, measure, measure_all, random_like
from workbench.analysis.geometry.modules import group_of
from workbench.errors import PolicyError
from workbench.policies.tensors import open_weights

SIZE = 20


@pytest.fixture
def weight() -> torch.Tensor:
    """A square matrix with singular values 20, 19, ..., 1."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator))[0] for _ in range(2))
    return left @ torch.diag(torch.arange(SIZE, 0, -1.0)) @ right.T


def directions(weight: torch.Tensor, left: int, right: int, size: float = 0.1) -> torch.Tensor:
    """An update along one left and one right singular direction of the weight."""
    vectors = torch.linalg.svd(weight.double())
    return (size * torch.outer(vectors.U[:, left], vectors.Vh[right])).float()


def save(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(
        {name.replace("__", "."): item for name, item in tensors.items()}, folder / "model.safetensors"
    )
    return folder


def test_measure_rank_one_update_has_its_rank_and_norm(weight: torch.Tensor) -> None:
    result = measure(weight, weight + directions(weight, 3, 7))
    assert result["stable_rank"] == pytest.approx(1, abs=1e-4) and result["energy_top_1"] == pytest.approx(1, abs=1e-6)
    assert result["effective_rank"] == pytest.approx(1, abs=1e-3)
    assert result["rank_1e-04"] == 1 / SIZE
    assert result["delta_norm"] == pytest.approx(0.1, rel=1e-4)
    assert result["relative_delta"] == pytest.approx(0.1 / math.sqrt(sum(n * n for n in range(1, SIZE + 1))), rel=1e-4)


def test_measure_known_singular_values_give_known_ranks() -> None:
    zero, values = torch.zeros(SIZE, SIZE), torch.tensor([4.0, 2.0, 2.0] + [0.0] * (SIZE - 3))
    result = measure(zero, torch.diag(values))
    assert result["stable_rank"] == pytest.approx(24 / 16) and result["rank_1e-06"] == 3 / SIZE
    assert result["effective_rank"] == pytest.approx(2 ** (0.5 + 2 * 0.25 * 2))
    assert [result[f"energy_top_{item}"] for item in (1, 2, 4)] == pytest.approx([16 / 24, 20 / 24, 1])
    assert result["relative_delta"] is None, "there is nothing it could be relative to"


def test_measure_principal_subspace_projection_is_one_or_zero(
    weight: torch.Tensor,
) -> None:
    inside, outside, half = (measure(weight, weight + directions(weight, *at)) for at in ((1, 0), (18, 19), (0, 19)))
    assert [result["projection_10pct"] for result in (inside, outside, half)] == pytest.approx([1, 0, 0], abs=1e-5)
    assert half["projection_left_10pct"] == pytest.approx(1, abs=1e-5) and half["projection_right_10pct"] < 1e-5
    assert inside["projection_1pct"] < 1e-5, "the first direction alone does not hold it"


def test_measure_known_rotation_equals_sine(weight: torch.Tensor) -> None:
    vectors = torch.linalg.svd(weight.double())
    angle = 0.3
    turn = torch.eye(SIZE, dtype=torch.float64)
    turn[0, 0] = turn[5, 5] = math.cos(angle)
    turn[0, 5], turn[5, 0] = -math.sin(angle), math.sin(angle)
    after = (vectors.U @ turn @ torch.diag(vectors.S) @ vectors.Vh).float()
    result = measure(weight, after)
    assert result["rotation_1pct"] == pytest.approx(math.sin(angle), rel=1e-3)
    assert result["rotation_10pct"] == pytest.approx(math.sin(angle) / 2, rel=1e-3), "one of the two directions turned"
    assert result["spectral_drift"] == pytest.approx(0, abs=1e-6)
    assert measure(weight, 1.01 * weight)["spectral_drift"] == pytest.approx(0.01, rel=1e-3)


def test_measure_sparse_update_is_counted_exactly(weight: torch.Tensor) -> None:
    after = weight.clone()
    after[0, :8] = torch.arange(8) + 100.0
    result = measure(weight, after)
    assert result["unchanged"] == result["below_1e-05"] == 1 - 8 / SIZE**2
    assert result["energy_coordinates_5pct"] == pytest.approx(1), "20 coordinates hold all that changed"
    tiny = measure(torch.ones(10, 10), torch.ones(10, 10) + 5e-6)
    assert (tiny["unchanged"], tiny["below_1e-05"], tiny["below_1e-06"], tiny["below_rms_1e-04"]) == (0, 1, 0, 1)


def test_measure_bfloat16_hides_quarter_steps_only() -> None:
    """Between 1 and 2 the steps of bfloat16 are 2**-7."""
    before = torch.ones(4, 4)
    after = before.clone()
    after[0] += 2.0**-9
    after[1] += 2.0**-7
    assert measure(before, after)["unchanged"] == 0.5
    rounded = measure(before, after, precision="bfloat16")
    assert rounded["unchanged"] == 0.75 and rounded["largest"] == 2.0**-7


def test_measure_smallest_weights_are_enriched() -> None:
    before = torch.arange(1.0, 401.0).reshape(20, 20)
    after = before.clone()
    after.view(-1)[:20] += 1  # the smallest 5 %
    result = measure(before, after)
    assert result["overlap_low_5pct_0e+00"] == result["coverage_low_5pct_0e+00"] == 1
    assert result["enrichment_low_5pct_0e+00"] == pytest.approx(20) and result[
        "enrichment_low_10pct_0e+00"
    ] == pytest.approx(10)
    assert result["enrichment_principal_20pct_0e+00"] == 0, "the largest coordinates lie elsewhere"
    generator = torch.Generator().manual_seed(1)
    large = torch.randn(300, 300, generator=generator)
    moved = large + (torch.rand(300, 300, generator=generator) < 0.3)
    for name, value in measure(large, moved).items():
        if name.startswith("enrichment") and "1pct" not in name:
            assert value == pytest.approx(1, abs=0.06), name


def test_random_control_has_norm_of_update_and_high_rank(weight: torch.Tensor) -> None:
    after = weight + directions(weight, 0, 0)
    rows = {(row["precision"], row["delta"]): row for row in measure_all(weight, after, seed=3)}
    update, control = rows["float32", "update"], rows["float32", "random"]
    assert control["delta_norm"] == pytest.approx(update["delta_norm"], rel=1e-3)
    assert control["stable_rank"] > 3 > 1.01 > update["stable_rank"]
    assert rows["bfloat16", "random"]["unchanged"] > 0.1, "the control is rounded as the update is"
    assert torch.equal(random_like(weight, after, seed=3), random_like(weight, after, seed=3))


def test_measure_vector_has_no_spectrum(weight: torch.Tensor) -> None:
    assert "stable_rank" not in measure(torch.ones(5), torch.ones(5) + 1)
    none = measure(weight, weight)
    assert none["unchanged"] == 1 and "projection_10pct" not in none and none["overlap_low_5pct_0e+00"] is None
    patches = measure(torch.ones(8, 3, 2, 2), 2 * torch.ones(8, 3, 2, 2))
    assert patches["stable_rank"] == pytest.approx(1), "a convolution is read as a matrix"


def test_compare_two_checkpoints_by_tensor(weight: torch.Tensor, tmp_path: Path) -> None:
    layer, norm = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"
    source = {layer: weight, norm: torch.ones(SIZE), "counter": torch.zeros(1, dtype=torch.long)}
    target = {
        layer: weight + directions(weight, 0, 1),
        norm: torch.ones(SIZE) * 1.5,
        "counter": torch.ones(1, dtype=torch.long),
    }
    result = compare(*(open_weights(save(tmp_path / name, **item)) for name, item in (("a", source), ("b", target))))
    assert result.left_out == ("counter",) and len(result.tensors) == 8
    assert set(columns()) <= set(result.tensors.columns)
    for _, values in result.tensors.groupby(["precision", "delta"]):
        assert values["energy_share"].sum() == pytest.approx(1)
    groups = result.groups.set_index(["group", "precision", "delta"])
    whole = groups.loc["all", "float32", "update"]
    assert whole["delta_norm"] == pytest.approx(math.sqrt(0.01 + SIZE * 0.25), rel=1e-4)
    assert whole["stable_rank"] == pytest.approx(1, abs=1e-3) and whole["coordinates"] == SIZE**2 + SIZE
    assert groups.loc["norm", "float32", "update"]["relative_delta"] == pytest.approx(0.5)


def test_compare_architectures_raises_with_first_differing_tensor(models: dict, tmp_path: Path) -> None:
    first, second = open_weights(models["student"]), open_weights(save(tmp_path / "other", a=torch.ones(2)))
    with raises(PolicyError, "lm_head.weight"):
        compare(first, second)
    shaped = open_weights(save(tmp_path / "shaped", a=torch.ones(3)))
    with raises(PolicyError, "[2]", "[3]"):
        compare(second, shaped)


def test_open_weights_missing_or_torn_file_raises(tmp_path: Path) -> None:
    with raises(PolicyError, "model.safetensors"):
        open_weights(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with raises(PolicyError, "LoRA", "merge_and_unload"):
        open_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with raises(PolicyError, "model.safetensors"):
        open_weights(tmp_path)
    with raises(PolicyError, "folder"):
        open_weights(tmp_path / "missing" / "model")


def test_open_weights_shards_are_one_model(tmp_path: Path) -> None:
    for part in ("1", "2"):
        safetensors.torch.save_file({f"w{part}": torch.full((2,), float(part))}, tmp_path / f"part-{part}.safetensors")
    index = '{"weight_map": {"w1": "part-1.safetensors", "w2": "part-2.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    weights = open_weights(tmp_path)
    assert {name: weights.tensor(name).tolist() for name in weights.shapes} == {"w1": [1, 1], "w2": [2, 2]}


@pytest.mark.parametrize(
    ("name", "group", "layer"),
    [
        ("model.text_model.embed_tokens.weight", "embedding", None),
        ("model.text_model.layers.3.self_attn.q_proj.weight", "attention q", 3),
        ("language_model.model.layers.11.self_attn.o_proj.weight", "attention o", 11),
        ("model.language_model.layers.0.self_attn.k_norm.weight", "norm", 0),
        ("transformer.h.5.attn.c_attn.weight", "attention qkv", 5),
        ("transformer.h.5.attn.c_proj.weight", "attention o", 5),
        ("transformer.h.5.mlp.c_proj.weight", "MLP down", 5),
        ("gpt_neox.layers.2.attention.dense.weight", "attention o", 2),
        ("gpt_neox.layers.2.mlp.dense_h_to_4h.bias", "MLP up", 2),
        ("model.layers.1.mlp.experts.gate_up_proj", "MLP gate", 1),
        ("model.layers.1.mlp.gate.weight", "MLP", 1),
        ("model.layers.7.post_attention_layernorm.weight", "norm", 7),
        ("model.norm.weight", "norm", None),
        ("language_model.lm_head.weight", "head", None),
        ("vision_tower.vision_model.encoder.layers.4.self_attn.out_proj.bias", "vision tower", 4),
        ("visual.blocks.9.attn.qkv.weight", "vision tower", 9),
        ("visual.merger.mlp.0.weight", "connector", 0),
        ("multi_modal_projector.linear_1.weight", "connector", 1),
        ("model.connector.modality_projection.proj.weight", "connector", None),
        ("image_newline", "vision tower", None),
        ("something.unheard", "other", None),
    ],
)
def test_group_of_every_family_has_a_module(name: str, group: str, layer: int | None) -> None:
    position = group_of(name)
    assert position.group == group
    assert position.layer == (None if name == "multi_modal_projector.linear_1.weight" else layer)


def test_measure_large_matrix_draws_directions_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "MAX_EXACT", 4)
    before, moved = torch.randn(2, 60, 60, generator=torch.Generator().manual_seed(0))
    state, result = torch.get_rng_state(), []
    for seed in (3, 3, 4):
        result.append(measure(before, before + 0.1 * moved, seed=seed))
        torch.rand(1)
    torch.set_rng_state(state)
    assert result[0] == result[1] != result[2]
