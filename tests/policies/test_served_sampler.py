"""A served sampler: a real server samples with the student's weights of each step; the run equals one without it."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from failures import raises
from families import save_llama
from servers import Server, free_port
from small import picture, run_config

from workbench.config.schema import RunConfig, SamplingConfig
from workbench.data.examples import load_examples
from workbench.data.mixture import order_of
from workbench.distill.rollouts import sample_rollouts
from workbench.errors import ConfigError, PolicyError, RunError
from workbench.policies import Completion, SamplingOptions
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.loading import load_policy
from workbench.policies.serving import door
from workbench.policies.serving.addresses import Patience
from workbench.policies.serving.engine import TransformersEngine, unique_weights
from workbench.policies.serving.sampler import ServedSampler, sample_together
from workbench.policies.serving.served import load_served
from workbench.policies.serving.service import SamplerService
from workbench.policies.serving.wire import unpack
from workbench.runs.folder import RunFolder, checkpoint_path
from workbench.traces.reader import open_traces
from workbench.training.check import OK, check_config
from workbench.training.learner import check_engine
from workbench.training.metrics import sampled_precision
from workbench.training.run import resume, train
from workbench.types import Prompt

QUICK = Patience(timeout=60.0, wait=0.0)
PROMPTS = [Prompt((picture(1),), "what is this?", key="a"), Prompt((), "red?", key="b")]
OPTIONS = SamplingOptions(max_completion_length=6)


@pytest.fixture(scope="module")
def server(models: dict, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A sampler that starts with the teacher's weights: those of the student must be sent."""
    started = Server(tmp_path_factory.mktemp("sampler"), models["teacher"], command="sampler")
    yield started
    assert started.stop() == -15


@pytest.fixture
def student(models: dict) -> AutoregressivePolicy:
    return load_policy(models["student"], "student")


def sampled(student: AutoregressivePolicy, seeds: list[list[int]]) -> list[list[Completion]]:
    """By the server, or by the student itself."""
    return sample_together([student], lambda: student.sample(PROMPTS[: len(seeds)], seeds, OPTIONS))


def attached(student: AutoregressivePolicy, server: Server, run: str) -> ServedSampler:
    student.sampler = ServedSampler(server.address, QUICK, run=run, image_options={})
    return student.sampler


def test_samples_equal_those_of_the_student_after_each_update(student: AutoregressivePolicy, server: Server) -> None:
    seeds, sampler = [[1, 2], [3]], attached(student, server, "run")
    for _ in range(3):
        student.sampler = None
        expected = sampled(student, seeds)
        student.sampler = sampler
        assert sampled(student, seeds) == expected
        with torch.no_grad():
            for weight in student.model.parameters():
                weight.mul_(1.1)  # in place, as an optimizer does
        sampler.weights_changed()


class Ending(TransformersEngine):
    """An engine whose server ends for a reason."""

    reason = ""

    def fault(self) -> str:
        return self.reason


def test_weights_cross_in_the_data_types_in_which_the_server_keeps_them(
    student: AutoregressivePolicy, models: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Ending.start(models["teacher"], dtype="bfloat16", device="cpu")
    for module in engine.policy.model.modules():
        if "Norm" in type(module).__name__:
            module.float()
    kept, port, bodies = unique_weights(engine.policy.model), free_port(), []
    monkeypatch.setattr(door, "_terminable", nullcontext)  # signals are for the main thread
    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(door.serve, lambda: SamplerService(engine), "MODEL", "127.0.0.1", port)
        try:
            patience = Patience(timeout=60.0, wait=60.0)
            sampler = ServedSampler(f"http://127.0.0.1:{port}", patience, run="run", image_options={})
            send = sampler.client.send
            monkeypatch.setattr(sampler.client, "send", lambda body, path: bodies.append(body) or send(body, path))
            sampler.send_weights(student)
            student.sampler = sampler
            assert sampled_precision(student, "float32") == "bfloat16"  # by which a run judges sampler_logprob_gap
        finally:
            engine.reason = "the test is over."
        with raises(RunError, engine.reason):
            serving.result()
    for name, weight in unique_weights(student.model).items():
        assert kept[name].dtype == (torch.float32 if "norm" in name else torch.bfloat16), name
        assert torch.equal(kept[name], weight.to(kept[name].dtype)), name
    tensors = {name: value for body in bodies for name, value in unpack(body)[0].items()}
    sizes = [sum(value.nbytes for value in weights.values()) for weights in (tensors, kept)]
    assert sizes[0] == sizes[1] and not torch.equal(tensors["lm_head.weight"].float(), student.head.linear.weight)


def test_runs_that_share_a_sampler_send_their_weights_again(models: dict, server: Server) -> None:
    pair = [load_policy(models[name], "student") for name in ("student", "teacher")]
    expected = [sampled(policy, [[1], [2]]) for policy in pair]
    for idx, policy in enumerate(pair):
        attached(policy, server, f"shared {idx}")
    for _ in range(2):
        assert [sampled(policy, [[1], [2]]) for policy in pair] == expected
    assert expected[0] != expected[1]


def test_run_with_served_sampler_equals_local_run_and_resumes(
    server: Server, models: dict, trained: Path, tmp_path: Path
) -> None:
    first = Server(tmp_path / "first", models["student"], command="sampler")
    values = {"sampling__max_completion_length": 8, "evaluation__every": 2, "trace__probes": 3}
    config = run_config(
        models, tmp_path, name="run", sampling__server=first.address, sampling__server_wait=0.0, **values
    )
    with raises(RunError, "step 3", first.address, "workbench sampler", "workbench resume"):
        train(config, on_step=lambda step, _: first.kill() if step == 2 else None)
    resume(config.run_dir, [f"sampling.server={server.address}"])
    lines = [RunFolder.open(path).metrics("train") for path in (config.run_dir, trained / "dopd")]
    for pair in zip(*lines, strict=True):
        names = [name for name in pair[1] if "second" not in name and "padding" not in name]
        assert [pair[0][name] for name in names] == [pair[1][name] for name in names]


@pytest.mark.parametrize("ahead", [0, 1])
def test_stale_weights_stop_run(
    ahead: int, server: Server, models: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ServedSampler, "weights_changed", lambda self: None)
    values = {"sampling__server": server.address, "sampling__ahead": ahead, "training__learning_rate": 0.1}
    with raises(RunError, "step 2", "sampler_logprob_gap", "float32", "checkpoint-000001"):
        train(run_config(models, tmp_path, **values))


def traced(run_dir: Path) -> list[dict]:
    """Each answer by step, example and sample: its tokens, and the update whose weights sampled it."""
    query = """SELECT step, example_id, sample_idx, sampler_step, list(token_id ORDER BY position) AS ids
        FROM rollouts JOIN tokens USING (step, process_rank, rollout_idx) GROUP BY ALL ORDER BY ALL"""
    return open_traces(run_dir).sql(query).to_pylist()


@pytest.fixture(scope="module")
def ahead(server: Server, models: dict, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run whose answers were sampled a step ahead."""
    values = {"sampling__server": server.address, "sampling__ahead": 1, "training__learning_rate": 0.1}
    config = run_config(models, tmp_path_factory.mktemp("ahead"), **values)
    train(config)
    return config


def test_answers_sampled_ahead_are_those_of_the_weights_before(ahead: RunConfig, student: AutoregressivePolicy) -> None:
    rows = traced(ahead.run_dir)
    assert {row["step"]: row["sampler_step"] for row in rows} == {1: 0, 2: 0, 3: 1, 4: 2}
    examples = load_examples(ahead.data.train)
    order = order_of(examples, ahead.data.train_sources, ahead.seed, shuffle=True)
    for weights_of, step in ((0, 2), (2, 4)):
        policy = load_policy(checkpoint_path(ahead.run_dir, 2) / "student", "student") if weights_of else student
        chosen = [examples[idx] for idx in order.batch(step, ahead.training.batch_size)]
        options = {"sampling": ahead.sampling.options, "num_generations": 2, "seed": (ahead.seed, step)}
        expected = sample_rollouts(policy, chosen, context="plain", **options)
        sampled = {(row["example_id"], row["sample_idx"]): tuple(row["ids"]) for row in rows if row["step"] == step}
        assert sampled == {(rollout.example.id, rollout.sample_idx): rollout.ids for rollout in expected}
    lines = RunFolder.open(ahead.run_dir).metrics("train")
    assert [line.get("sampler_lag", 0.0) for line in lines] == [0.0, 1.0, 1.0, 1.0]
    assert all(line["sampler_logprob_gap"] < 5e-4 for line in lines[:3]) and "sampler_logprob_gap" not in lines[3]
    assert all(abs(line["ratio/mean"] - 1) > 0.01 for line in lines[1:])  # an update lies between


def test_run_sampled_ahead_resumes_with_the_answers_of_its_checkpoint(
    ahead: RunConfig, server: Server, models: dict, tmp_path: Path
) -> None:
    first = Server(tmp_path / "first", models["teacher"], command="sampler")
    values = {"sampling__server": first.address, "sampling__server_wait": 0.0, "sampling__ahead": 1}
    config = run_config(models, tmp_path, training__learning_rate=0.1, **values)
    with raises(RunError, "step 2", first.address, "checkpoint-000001"):
        train(config, on_step=lambda step, _: first.kill() if step == 1 else None)
    resume(config.run_dir, [f"sampling.server={server.address}"])
    assert traced(config.run_dir) == traced(ahead.run_dir)
    lines = [RunFolder.open(path.run_dir).metrics("train") for path in (config, ahead)]
    for pair in zip(*lines, strict=True):
        values = [{name: line[name] for name in line if "second" not in name} for line in pair]
        assert values[0] == values[1]


def test_sampler_in_place_of_teacher_and_another_model_are_refused(
    student: AutoregressivePolicy, server: Server, models: dict, tmp_path: Path
) -> None:
    with raises(PolicyError, server.address, "workbench teacher"):
        load_served(server.address, "teacher", device="cpu", patience=QUICK)
    other = Server(tmp_path, save_llama(tmp_path / "llama"), command="sampler")
    with raises(PolicyError, other.address, "LlamaForCausalLM", "Idefics3ForConditionalGeneration"):
        ServedSampler(other.address, QUICK, run="", image_options={}).require_fits(student, SamplingOptions(2))
    with raises(PolicyError, "400", "weight"):
        attached(student, other, "run").send_weights(student)
    other.kill()


def test_sampler_that_reads_other_ids_raises(server: Server, models: dict, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models["student"], tmp_path / "swapped"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["red"], vocabulary["green"] = vocabulary["green"], vocabulary["red"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    swapped = load_policy(folder, "student")
    attached(swapped, server, "swapped")
    assert len(sampled(swapped, [[1]])[0]) == 1  # the first prompt has neither word
    with raises(PolicyError, server.address, 'prompt "b"', "other token ids"):
        sampled(swapped, [[1], [2]])


def test_check_samples_on_the_server(server: Server, models: dict, tmp_path: Path) -> None:
    config = run_config(models, tmp_path, sampling__server=server.address, method={"name": "opd"})
    (check,) = [check for check in check_config(config) if check.name.startswith("sampler = student")]
    assert check.status == OK


def test_unsupported_settings_raise(models: dict, tmp_path: Path) -> None:
    address = "http://127.0.0.1:8001"
    with raises(ConfigError, "sampling.server", "sampling.backend=vllm"):
        SamplingConfig(server=address, backend="vllm")
    with raises(ConfigError, "sampling.ahead=1", "sampling.server"):
        SamplingConfig(ahead=1)
    with raises(ConfigError, "sampling.server", "spd"):
        config = run_config(models, tmp_path, sampling__server=address, method={"name": "spd"})
        check_engine(config, config.load_method())
    with raises(ConfigError, "sampling.server", "2 servers"):
        ServedSampler(f"{address},http://127.0.0.1:8002", QUICK, run="", image_options={})
