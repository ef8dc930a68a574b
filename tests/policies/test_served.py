"""A served teacher: hidden states of a real server equal those of the same model in this process, bit for bit."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from failures import raises
from servers import Server
from small import picture, run_config

from workbench.errors import RunError
from workbench.policies import SamplingOptions
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.loading import load_policy
from workbench.policies.serving.addresses import Patience
from workbench.policies.serving.served import ServedPolicy
from workbench.runs.folder import RunFolder
from workbench.training.check import NOTE, check_config, is_good
from workbench.training.run import resume, train
from workbench.types import Prompt, Turn

QUICK = Patience(timeout=60.0, wait=0.0)


@pytest.fixture(scope="module")
def server(models: dict, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The tiny teacher behind a port."""
    started = Server(tmp_path_factory.mktemp("server"), models["teacher"])
    yield started
    assert started.stop() == -15


@pytest.fixture(scope="module")
def local(models: dict) -> AutoregressivePolicy:
    return load_policy(models["teacher"], "teacher")


@pytest.fixture
def served(server: Server) -> ServedPolicy:
    return load_policy(server.address, "teacher", patience=QUICK, device="cpu")


def rows() -> tuple[list[Prompt], list[tuple[int, ...]]]:
    """Answers to prompts with no, one and two pictures and with earlier turns; two to one prompt, and an empty one."""
    history = (Turn("user", "and this?", (picture(4),)), Turn("assistant", "red"))
    prompts = [
        Prompt((), "what is red?", key="none"),
        Prompt((picture(1),), "what is this?", key="one picture"),
        Prompt((picture(2), picture(3, (30, 60))), "which is larger?", key="two"),
        Prompt((), "which of the two?", history, key="turns"),
    ]
    completions = [(40, 41, 42), (43, 44), (40,), (42, 43, 44, 45), (45, 46, 47), ()]  # ordinary tokens
    return [*prompts, prompts[1], prompts[2]], completions


def test_served_hidden_states_and_logits_equal_local_ones(served: ServedPolicy, local: AutoregressivePolicy) -> None:
    prompts, completions = rows()
    outputs = [policy.forward(prompts, completions) for policy in (served, local)]
    assert torch.equal(outputs[0].hidden, outputs[1].hidden)
    index = torch.arange(sum(map(len, completions)))
    assert torch.equal(outputs[0].logits(index), outputs[1].logits(index))


def test_served_facts_equal_local_ones(served: ServedPolicy, local: AutoregressivePolicy) -> None:
    assert served.vocabulary == local.vocabulary and served.head_width == local.head_width
    assert served.stop_ids == local.stop_ids and served.context_length == local.context_length
    assert served.encoder.encodes_as(load_policy(local.source, "teacher").encoder)
    assert served.retries == 0


def test_served_completions_equal_local_ones(served: ServedPolicy, local: AutoregressivePolicy) -> None:
    prompts, _ = rows()
    options = SamplingOptions(max_completion_length=5, evaluates=True, stop_strings=("zz",))
    sampled = [policy.sample(prompts[:4], [[1], [2, 3], [4], []], options) for policy in (served, local)]
    assert sampled[0] == sampled[1]


def test_prefetched_micro_batches_equal_passes_of_the_same_rows(
    served: ServedPolicy, local: AutoregressivePolicy
) -> None:
    prompts, completions = rows()
    passes = [[3, 0], [1, 4, 5], [2]]
    served.prefetch(prompts, completions, passes)
    assert len(served._sent) == 1
    for part in passes:
        given = [prompts[row] for row in part], [completions[row] for row in part]
        assert torch.equal(served.forward(*given).hidden, local.forward(*given).hidden)
    assert not served._sent  # so each row was computed once


def test_image_processor_and_template_are_those_of_the_run(server: Server, models: dict) -> None:
    options = {"image_processor": {"do_image_splitting": False}, "max_pixels": 900}
    pair = [load_policy(model, "teacher", device="cpu", **options) for model in (server.address, models["teacher"])]
    prompts, completions = rows()
    hidden = [policy.forward(prompts, completions).hidden for policy in pair]
    assert torch.equal(*hidden)


def test_check_names_server_and_finds_its_pictures(server: Server, models: dict, tmp_path: Path) -> None:
    checks = check_config(run_config({**models, "teacher": server.address}, tmp_path))
    assert is_good(checks), checks
    findings = {check.name: check.finding for check in checks}
    assert str(models["teacher"]) in findings["served teacher"]
    assert any(name.startswith("pictures reach teacher") for name in findings)
    references = {check.name: check for check in checks}["reference answers in view teacher"]
    assert references.status == NOTE and "uniform guess: -3.00" in references.finding  # random weights; ln(401) / 2
    student, head = (load_policy(models[name], name).model for name in ("student", "teacher"))
    # four float32 numbers for each weight of the student, one for each of the teacher's head and none for its others
    expected = 4 * (4 * student.num_parameters() + head.get_output_embeddings().weight.numel()) / 1e9
    assert float(findings["memory"].split()[2]) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("method", ["dopd", "opd"])
def test_run_with_served_teacher_equals_local_run(
    method: str, server: Server, models: dict, trained: Path, tmp_path: Path
) -> None:
    values = {"sampling__max_completion_length": 8, "evaluation__every": 2, "trace__probes": 3}
    values |= {} if method == "dopd" else {"method": {"name": method}}
    train(run_config({**models, "teacher": server.address}, tmp_path, name="served", **values))
    pairs = []
    for kind in ("train", "probe", "eval"):
        lines = [RunFolder.open(folder).metrics(kind) for folder in (tmp_path / "served", trained / method)]
        assert lines[0] and len(lines[0]) == len(lines[1])
        pairs += zip(*lines, strict=True)
    assert all(pair[0].pop("teacher_retries", 0) == 0 for pair in pairs)
    left_out = ("second", "padding")  # of this machine; a served teacher's padding is its server's
    for pair in pairs:
        values = [
            {key: value for key, value in line.items() if not any(part in key for part in left_out)} for line in pair
        ]
        assert values[0] == values[1]
    assert RunFolder.open(tmp_path / "served").status["served_teachers"]["teacher"]["dtype"] == "float32"


def test_killed_server_stops_run_with_checkpoint_and_resume_equals_undisturbed_run(
    models: dict, trained: Path, tmp_path: Path
) -> None:
    server = Server(tmp_path / "first", models["teacher"])
    values = {"sampling__max_completion_length": 8, "evaluation__every": 2, "trace__probes": 3}
    config = run_config(
        {**models, "teacher": server.address}, tmp_path, name="served", models__teacher_wait=0.0, **values
    )
    with raises(RunError, "step 2", server.address, "workbench resume", "checkpoint-000001"):
        train(config, on_step=lambda step, _: server.kill() if step == 1 else None)
    folder = RunFolder.open(tmp_path / "served")
    assert folder.status["status"] == "failed" and server.address in folder.status["error"]
    again = Server(tmp_path / "second", models["teacher"], server.port)
    resume(folder.path)
    assert again.stop() == -15
    losses = [
        [line["loss"] for line in RunFolder.open(path).metrics("train")] for path in (folder.path, trained / "dopd")
    ]
    assert losses[0] == losses[1]


def test_other_model_after_restart_stops_run_and_resume(models: dict, tmp_path: Path) -> None:
    servers = [Server(tmp_path / "first", models["teacher"])]
    address, port = servers[0].address, servers[0].port
    config = run_config({**models, "teacher": address}, tmp_path, models__teacher_wait=0.0)

    def replace(step: int, _: dict) -> None:
        if step == 1:
            servers[0].kill()
            servers.append(Server(tmp_path / "second", models["student"], port))

    with raises(RunError, "another model", address):
        train(config, on_step=replace)
    with raises(RunError, "has changed", str(models["student"])):
        resume(config.run_dir)
    assert servers[1].stop() == -15
