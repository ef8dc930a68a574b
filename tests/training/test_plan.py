"""Plans against the bytes that torch's allocator gives out in a real step."""

import contextlib
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from allocated import peaks_of_second_step
from failures import raises
from families import save_gemma3, save_idefics3, save_qwen3
from processes import launch
from servers import Server
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from workbench.config.schema import RunConfig, build_config, override
from workbench.errors import ConfigError, PolicyError
from workbench.training.planning import depths, report
from workbench.training.planning.command import plan_from_options
from workbench.training.planning.devices import parse_memory, parse_picture
from workbench.training.planning.dry_run import ACTIVATIONS, CACHE, WEIGHTS, DryRun
from workbench.training.planning.known_shapes import KnownShapes
from workbench.training.planning.models import sizes_of, specs_of
from workbench.training.planning.plan import Phase, Plan, least_bytes, plan_run
from workbench.training.planning.prompts import PromptSize
from workbench.training.planning.remedies import SERVED_TEACHER, choices, mend, parallel_devices, remedies

WITHIN = 0.10
SIZES = Path("benchmarks/sizes")


def widen(folder: Path, auto_class: type, layers: int, seed: int) -> Path:
    """Rebuild a small model with a wider decoder, so that weights, activations and caches all count."""
    config = AutoConfig.from_pretrained(folder)
    text = config.get_text_config()
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 256, 1024, layers
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = 8, 4, 32
    if getattr(text, "layer_types", None):
        text.layer_types = ["full_attention"] * layers
    torch.manual_seed(seed)
    model = auto_class.from_config(config)
    model.generation_config.eos_token_id = AutoTokenizer.from_pretrained(folder).eos_token_id
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Student and teacher of three families."""
    folder, pairs = tmp_path_factory.mktemp("wide"), {}
    for save, auto_class, layers in (
        (save_idefics3, AutoModelForImageTextToText, 2),
        (save_gemma3, AutoModelForImageTextToText, 2),
        (save_qwen3, AutoModelForCausalLM, 3),
    ):
        name = save.__name__.removeprefix("save_")
        pairs[name] = tuple(widen(save(folder / f"{name}-{seed}", seed), auto_class, layers, seed) for seed in (0, 1))
    return pairs


def config_of(pair: tuple[Path, Path], output: Path, **values: object) -> RunConfig:
    """A DOPD run of a few answers, without evaluation; dotted keys with __ for the dot."""
    student, teacher = pair
    plain = {
        "name": "run",
        "output_dir": str(output),
        "models": {"student": str(student), "teacher": str(teacher), "device": "cpu"},
        "data": {"train": "scenes:hard?count=4"},
        "method": {"name": "dopd", "privilege": "hint", "self_policy": "student@ema"},
        "sampling": {"num_generations": 2, "max_completion_length": 16},
        "training": {"steps": 2, "batch_size": 4, "micro_batch_size": 4},
        "trace": {"probes": 0, "every": 0},
    }
    for key, value in values.items():
        section, _, name = key.partition("__")
        plain[section] = {**plain[section], name: value}
    return build_config(plain)


def texts(folder: Path) -> dict[str, str]:
    """Questions without pictures, for a language model."""
    file = folder / "texts.jsonl"
    row = {
        "question": "How many red circles are left of the blue square?",
        "answer": "3",
        "hint": "count from the left",
    }
    file.write_text("".join(json.dumps(row | {"id": str(idx)}) + "\n" for idx in range(8)))
    return {"data__train": str(file)}


FEW = {"training__batch_size": 1, "training__micro_batch_size": 1, "sampling__num_generations": 1}
LORA = {"models__lora": {"rank": 8}, "method__self_policy": "student@start"}
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
HALF = {"training__mixed_precision": "bf16"}
VARIANTS = {
    "gemma3": ("gemma3", {}),
    "qwen3 with adapters, recomputed": ("qwen3", {"models__gradient_checkpointing": True} | LORA),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_plan_of_a_step_is_within_a_tenth_of_what_is_allocated(name, pairs, tmp_path) -> None:
    family, values = VARIANTS[name]
    config = config_of(pairs[family], tmp_path, **values, **(texts(tmp_path) if family == "qwen3" else {}))
    assert_near(peaks_of_second_step(config), plan_run(config))


def assert_near(peaks: dict[str, int], plan: Plan) -> None:
    planned = {phase.name: phase.total for phase in plan.phases}
    assert peaks.keys() | {"sample"} == {"sample", "score", "learn"}
    for phase, measured in peaks.items():
        assert planned[phase] == pytest.approx(measured, rel=WITHIN), (phase, planned, peaks)


TWO = {
    "data parallel": ("idefics3", {}, {}),
    "sharded in half precision": ("idefics3", HALF, SHARDED),
    "sharded adapters and servers": ("qwen3", LORA | {"sampling__max_completion_length": 32}, SHARDED),
}


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.parametrize("name", TWO)
def test_plan_of_two_processes_is_within_a_tenth_of_what_each_allocates(name, pairs, tmp_path) -> None:
    family, values, environment = TWO[name]
    student, teacher = pairs[family]
    with contextlib.ExitStack() as stack:
        if "servers" in name:
            served = Server(tmp_path / "teacher", teacher), Server(tmp_path / "sampler", student, command="sampler")
            for server in served:
                stack.callback(server.stop)
            values = values | {"models__teacher": served[0].address, "sampling__server": served[1].address}
        config = config_of(pairs[family], tmp_path, **values, **(texts(tmp_path) if family == "qwen3" else {}))
        (tmp_path / "config.yaml").write_text(config.to_yaml())
        code = "import runpy; runpy.run_path('tests/allocated.py', run_name='__main__')"
        arguments = str(tmp_path / "config.yaml"), str(tmp_path / "peaks")
        ended = launch(tmp_path / "ranks", code, *arguments, environment=environment)
    assert not any(item.returncode for item in ended), [item.stderr[-2000:] for item in ended]
    served_teacher = str(teacher) if "servers" in name else None
    plan = plan_run(config, processes=2, sharded=bool(environment), served_teacher=served_teacher)
    for rank in range(2):
        peaks = json.loads((tmp_path / f"peaks.{rank}").read_text())
        if rank == 0 and "servers" in name:
            del peaks["sample"]  # what it sends is in host memory, which is the device's here
        assert_near(peaks, plan)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("qwen3-vl-2b", 2_127_532_032),
        ("qwen3-vl-8b", 8_767_123_696),
        ("qwen3-vl-32b", 33_357_390_064),
        ("qwen2.5-vl-72b", 73_410_777_344),
    ],
)
def test_sizes_of_public_models_are_their_numbers_of_weights(name, parameters, tmp_path) -> None:
    config = config_of((SIZES / name, SIZES / name), tmp_path, models__dtype="bfloat16")
    sizes = sizes_of(specs_of(config, config.load_method())[0], config.models)
    assert sizes.parameters == parameters
    assert sizes.total == pytest.approx(2 * parameters, rel=1e-3)


@pytest.mark.parametrize(("text", "count"), [("80GB", 80e9), ("24 GiB", 24 * 2**30), ("0.5tb", 0.5e12)])
def test_memory_with_a_unit_is_bytes(text, count) -> None:
    assert parse_memory(text) == count


@pytest.mark.parametrize("text", ["80", "80 bananas", "0GB", "-1GB", "", "GB"])
def test_memory_without_number_or_unit_is_refused(text) -> None:
    with pytest.raises(ConfigError, match="--memory"):
        parse_memory(text)


@pytest.mark.parametrize("text", ["80", "0x10", "10x", "axb"])
def test_picture_of_no_size_is_refused(text) -> None:
    with pytest.raises(ConfigError, match="--picture"):
        parse_picture(text)


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("--devices", {"devices": 0}),
        ("--nodes", {"nodes": -1}),
        ("--share", {"share": 0.0}),
        ("--sharded", {"sharded": True}),
        ("--text-tokens", {"text_tokens": 0}),
        ("training.batch_size", {"devices": 9}),
    ],
)
def test_options_out_of_range_are_refused(key, options) -> None:
    with pytest.raises(ConfigError, match=key):
        plan_from_options("demo", [], **{"memory": "80GB", **options})


def test_folder_without_config_is_refused(tmp_path) -> None:
    with pytest.raises(PolicyError, match=r"config\.json"):
        plan_from_options("demo", [f"models.teacher={tmp_path}"], memory="80GB")


@pytest.mark.slow
def test_folder_with_config_alone_is_planned_by_its_patches(tmp_path) -> None:
    """A picture of 640 x 320 has 20 x 10 tokens of 32 x 32 pixels, and two marks; its crop as many again."""
    pair = tmp_path / "student", tmp_path / "teacher"
    for folder in pair:
        values = json.loads((SIZES / "qwen3-vl-2b/config.json").read_text())
        values["text_config"] |= {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 152_000}
        values["text_config"] |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
        values["vision_config"] |= {"depth": 2, "out_hidden_size": 64, "hidden_size": 32, "num_heads": 2}
        values["vision_config"] |= {"intermediate_size": 32, "deepstack_visual_indexes": [0, 1]}
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(values))
    config = config_of(pair, tmp_path, method__privilege="crop", **FEW)
    plan = plan_run(config, size=PromptSize(100, (640, 320)))
    assert plan.prompts["teacher", "plain"].tokens == 100 + 202
    assert plan.prompts["teacher", "crop"].tokens == 100 + 2 * 202
    assert plan.prompts["teacher", "crop"].picture_tokens == 2 * 202


@pytest.mark.slow
def test_deep_model_is_planned_as_if_all_its_layers_ran(pairs, tmp_path, monkeypatch) -> None:
    deep = tuple(tmp_path / folder.name for folder in pairs["qwen3"])
    for source, folder in zip(pairs["qwen3"], deep, strict=True):
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        values = json.loads((folder / "config.json").read_text())
        values |= {"num_hidden_layers": 8, "layer_types": ["full_attention"] * 8}
        (folder / "config.json").write_text(json.dumps(values))
    shape = FEW | {"training__batch_size": 2, "method__self_policy": "student"}
    config = config_of(deep, tmp_path, **HALF, **shape, **texts(tmp_path))
    extended = plan_run(config, processes=2, sharded=True)
    monkeypatch.setattr(depths, "SHALLOW", 8)
    for phase, run in zip(extended.phases, plan_run(config, processes=2, sharded=True).phases, strict=True):
        assert phase.total == pytest.approx(run.total, rel=0.01), (phase, run)
        assert phase.flops == pytest.approx(run.flops, rel=1e-6)


@pytest.mark.slow
def test_micro_batches_by_tokens_are_planned_as_the_rows_that_fill_them(pairs, tmp_path) -> None:
    by_rows = config_of(pairs["qwen3"], tmp_path, training__micro_batch_size=3, **texts(tmp_path))
    plan = plan_run(by_rows)
    tokens = plan.prompts["student", "plain"].tokens + 2 * 16 + 1  # two answers of 16 tokens share a prompt
    keys = f"micro_batch_size=0 tokens_per_micro_batch={tokens} packing=true".split()
    plain = override(by_rows.to_dict(), [f"training.{key}" for key in keys])
    planned = plan_run(build_config(plain, name="run"))
    assert planned.shape.micro_batch == plan.shape.micro_batch == 3
    assert planned.phases[3].memory == plan.phases[3].memory and planned.phases[3].name == "learn"
    assert len(report.describe_passes(planned)) == 2 and not report.describe_passes(plan)


def test_ramp_keeps_its_numbers_for_models_that_read_rates_from_it() -> None:
    with DryRun():
        assert [rate.item() for rate in torch.linspace(0.0, 0.5, 3)] == [0.0, 0.25, 0.5]


def test_shapes_that_are_known_are_those_that_torch_infers() -> None:
    aten, kept = torch.ops.aten, KnownShapes(mode := FakeTensorMode())
    with mode:
        matrix, row, ids = torch.ones(4, 6).t(), torch.ones(4, dtype=torch.bfloat16), torch.ones(5, dtype=torch.long)
        calls = [
            (aten.mul.Tensor, (matrix, row), {}),
            (aten.mul.Tensor, (matrix, 2.0), {}),
            (aten._to_copy.default, (matrix,), {"dtype": torch.bfloat16}),
            (aten.clone.default, (matrix,), {"memory_format": torch.contiguous_format}),
            (aten.cat.default, ([matrix, matrix], 1), {}),
            (aten.mm.default, (matrix, matrix.t()), {}),
            (aten.native_layer_norm.default, (matrix, [4], row.float(), None, 1e-5), {}),
            (aten.slice.Tensor, (matrix, 0, 1, 3), {}),
            (aten._unsafe_view.default, (matrix.contiguous(), [24]), {}),
            (aten.split_with_sizes.default, (matrix, [2, 4]), {}),
            (aten.add_.Tensor, (matrix, row.float()), {}),
            (aten.embedding.default, (matrix, ids), {}),
        ]
        inferred = [func(*args, **kwargs) for func, args, kwargs in calls]
    for (func, args, kwargs), expected in zip(calls, inferred, strict=True):
        kept.result(func, args, kwargs)
        kept.keep(func, args, kwargs, expected)
        result = kept.result(func, args, kwargs)
        assert result is not None, func
        owner = tree_leaves(args)[0]
        for value, other in zip(tree_leaves(result), tree_leaves(expected), strict=True):
            assert (value.shape, value.stride(), value.dtype) == (other.shape, other.stride(), other.dtype), func
            assert value.untyped_storage().nbytes() == other.untyped_storage().nbytes(), func
            shared = [each.untyped_storage()._cdata == owner.untyped_storage()._cdata for each in (value, other)]
            assert shared[0] == shared[1], func
    assert kept.result(aten.add.Tensor, (torch.ones(2), torch.ones(2)), {}) is None  # they have numbers


@pytest.mark.slow
def test_plan_that_does_not_fit_names_the_cheapest_key_that_mends_it(pairs, tmp_path) -> None:
    config = config_of(pairs["qwen3"], tmp_path, **FEW, **texts(tmp_path))
    needs = plan_run(config).largest.total
    trials = list(mend(config, needs - 1, processes=1, sharded=False))
    assert trials[-1].fits
    assert not any(trial.fits for trial in trials[:-1])
    assert trials[0].keys == ("models.teacher_dtype=bfloat16",)
    key = trials[-1].keys[0]
    assert (
        plan_run(build_config(override(config.to_dict(), [key]), name="run")).largest.total == trials[-1].needs < needs
    )


def test_remedies_that_exclude_each_other_are_not_tried_together(tmp_path) -> None:
    config = config_of((SIZES / "qwen3-vl-2b", SIZES / "qwen3-vl-8b"), tmp_path)
    listed = list(remedies(config, 8, sharded=False))
    for chosen in choices(listed):
        texts = {remedy.text for remedy in chosen}
        assert sum(text.startswith("models.teacher_dtype=") for text in texts) <= 1
        if len(texts) > 1 and "--sharded" in texts:
            assert not texts & {"models.offload_teachers=true", "training.optimizer=adamw_8bit"}
            assert not texts & {"models.teacher_dtype=int8", "models.teacher_dtype=nf4"}
        if len(texts) > 1 and "models.teacher_dtype=nf4" in texts:
            assert "models.offload_teachers=true" not in texts
        if SERVED_TEACHER in texts:
            assert not any(text.startswith(("models.teacher_dtype=", "models.offload_teachers=")) for text in texts)


SERVED = {"models__teacher": "http://127.0.0.1:8000"}


@pytest.mark.parametrize("sharded", [False, True])
def test_served_teacher_leaves_its_head_to_the_run(sharded, tmp_path) -> None:
    """Its head has 151,936 rows of 5,120 numbers; a student of 8.77 billion has weights, gradient and two moments."""
    pair = SIZES / "qwen3-vl-8b", SIZES / "qwen3-vl-32b"
    config = config_of(pair, tmp_path, method__self_policy="student", **SERVED)
    options = {"processes": 4, "sharded": sharded, "served_teacher": str(pair[1])}
    student = 16 * 8_767_123_696 // (4 if sharded else 1)
    assert least_bytes(config, **options) == pytest.approx(student + 2 * 151_936 * 5_120, rel=1e-4)


@pytest.mark.parametrize(("values", "options"), [(SERVED, {}), ({}, {"served_teacher": "anything"})])
def test_served_teacher_without_address_or_model_is_refused(values, options, tmp_path) -> None:
    config = config_of((SIZES / "qwen3-vl-2b", SIZES / "qwen3-vl-8b"), tmp_path, **values)
    with raises(ConfigError, "--served-teacher"):
        least_bytes(config, **options)


def test_vllm_in_the_process_takes_its_share_of_the_device(pairs, tmp_path) -> None:
    pair = pairs["qwen3"]
    share = {"sampling__backend": "vllm", "sampling__backend_memory": 0.25}
    plan = plan_run(config_of(pair, tmp_path, **FEW, **share, **texts(tmp_path), **HALF), processes=1)
    student = AutoModelForCausalLM.from_pretrained(pair[0]).num_parameters()
    assert plan.vllm_weights == 2 * student  # in bfloat16
    sample = plan.phases[1]
    assert sample.name == "sample" and not sample.memory[CACHE] and not sample.traffic  # its own, in the share
    least = max(4 * plan.vllm_weights, plan.largest.total * 4 // 3 + 4)
    assert plan.fits(least) and not plan.fits(least * 98 // 100)
    assert report.verdict(plan, least).startswith("fits: ")
    needed = report.verdict(plan, 4 * plan.vllm_weights - 4)
    assert needed.startswith("does not fit: vLLM needs") and "sampling.backend_memory=0.25" in needed
    (sentence,) = report.describe_vllm(plan, least)
    assert f"{report.gigabytes(plan.vllm_weights)} of them" in sentence and "bfloat16" in sentence


def test_server_larger_than_a_device_is_split_in_halves() -> None:
    phase = Phase("serve teacher", "pass", Counter({WEIGHTS: 146, ACTIVATIONS: 2}), 0, 0)
    assert [parallel_devices(phase, memory) for memory in (148, 80, 70, 39)] == [1, 2, 4, 4]
