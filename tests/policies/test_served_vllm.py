"""Servers by vLLM: hidden states, samples and a run equal those of transformers to rounding, pictures included.

Run where vllm is installed: `pytest tests/policies/test_served_vllm.py`. On a CPU its own builds do (docs/devices.md).
"""

import contextlib
import http.client
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import families
import gloo_transfer
import pytest
import torch
import video_families
from failures import raises
from processes import launch
from servers import READY_S, Server, free_port
from small import picture, run_config

from workbench.errors import ConfigError, PolicyError, RunError
from workbench.policies import SamplingOptions
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.loading import load_policy
from workbench.policies.serving import sampler as sampler_module
from workbench.policies.serving import weight_transfer
from workbench.policies.serving.addresses import Patience
from workbench.policies.serving.sampler import ServedSampler, sample_together
from workbench.policies.serving.vllm_serve import connect_sampler
from workbench.runs.folder import RunFolder
from workbench.training.run import resume, train
from workbench.types import Prompt, Turn

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vllm is not installed: its engine cannot be run here", allow_module_level=True)

PATIENCE = Patience(timeout=300.0, wait=0.0)
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "0|1"}  # GiB; cores of two processes
AS_SAMPLER = ("--enable-scale-out", "--limit-mm-per-prompt", '{"image": 3}')
DEVELOPER = {"VLLM_SERVER_DEV_MODE": "1"}
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
SAVE = {
    "qwen3_vl": video_families.save_qwen3_vl,
    "idefics3": families.save_idefics3,
    "smolvlm": video_families.save_smolvlm,
}


@pytest.fixture(autouse=True)
def as_vllm_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its attention lacks heads as small as the suite's. Four layers: a server loads two of them by transformers."""
    for name, value in {"hidden_size": 128, "head_dim": 32, "num_hidden_layers": 4}.items():
        monkeypatch.setitem(families.TEXT, name, value)
    monkeypatch.setitem(families.VISION, "hidden_size", 64)
    monkeypatch.setattr(video_families, "MROPE", [8, 4, 4])


class PlainServer:
    """`vllm serve` of a model behind a port of this machine, which ends with all its processes."""

    def __init__(self, folder: Path, model: Path, *options: str, port: int = 0, **environment: str) -> None:
        self.port = port or free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model), "--port", str(self.port)]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--dtype", "float32", "--enforce-eager", *options],
                stdout=log,
                stderr=log,
                env={**os.environ, **ENVIRONMENT, "VLLM_CPU_OMP_THREADS_BIND": "0", **environment},
                start_new_session=True,
            )
        deadline = time.monotonic() + READY_S
        while not self._serves():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError((folder / "log").read_text(errors="replace")[-3000:])
            time.sleep(0.2)

    def _serves(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=READY_S)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except ConnectionError:
            return False
        finally:
            connection.close()

    def kill(self) -> None:
        """End all its processes at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def serve_plain(tmp_path: Path) -> Iterator[Callable[..., PlainServer]]:
    """Starts `vllm serve` of a model, as a sampler for runs."""
    servers = []

    def start(model: Path, *options: str, **environment: str) -> PlainServer:
        servers.append(PlainServer(tmp_path / f"plain{len(servers)}", model, *options, **environment))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server of a model by vLLM; it ends by SIGTERM, as its processes do."""
    servers = []

    def start(model: Path, *options: str, command: str = "teacher", port: int = 0) -> Server:
        engine = ("--engine", "vllm", "--memory", "0.1")
        folder = tmp_path / f"server{len(servers)}"
        servers.append(Server(folder, model, port, command=command, options=[*engine, *options], **ENVIRONMENT))
        return servers[-1]

    yield start
    for server in servers:
        assert not server.program.process.is_alive() or server.stop() == -15


def rows() -> tuple[list[Prompt], list[tuple[int, ...]]]:
    history = (Turn("user", "and this?", (picture(4),)), Turn("assistant", "red"))
    prompts = [
        Prompt((), "what is red?", key="none"),
        Prompt((picture(1),), "what is this?", key="one picture"),
        Prompt((picture(2), picture(3, (30, 60))), "which is larger?", key="two"),
        Prompt((), "which of the two?", history, key="turns"),
    ]
    answers = [(40, 41, 42), (43, 44), (40,), (42, 43, 44, 45), (45, 46, 47), ()]
    return [*prompts, prompts[1], prompts[2]], answers


def logprobs(policy: AutoregressivePolicy, prompts: list[Prompt], answers: list[tuple[int, ...]]) -> torch.Tensor:
    output = policy.forward(prompts, answers)
    return output.logits(torch.arange(len(output.hidden))).log_softmax(-1)


def largest_gap(
    student: AutoregressivePolicy, sampler: ServedSampler, prompts: list[Prompt], options: SamplingOptions
) -> float:
    """Largest distance of a token's log-probs under the sampler that drew it and under the student, in nats."""
    student.sampler = sampler
    sampled = sample_together([student], lambda: student.sample(prompts, [[1, 2], [3], [4]], options))
    pairs = [(prompt, answer) for prompt, answers in zip(prompts, sampled, strict=True) for answer in answers]
    with torch.no_grad():
        expected = logprobs(student, [prompt for prompt, _ in pairs], [answer.ids for _, answer in pairs])
    tokens = torch.tensor([token for _, answer in pairs for token in answer.ids])
    drawn = torch.tensor([logprob for _, answer in pairs for logprob in answer.logprobs])
    return float((expected.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - drawn).abs().max())


def check_each_update(
    student: AutoregressivePolicy, samplers: list[ServedSampler], prompts: list[Prompt], options: SamplingOptions
) -> None:
    """Assert that two runs, the first again without an update, then with one, sample by the student's weights."""
    for sampler, is_updated in zip((*samplers, samplers[0], samplers[0]), (False, False, False, True), strict=True):
        if is_updated:
            with torch.no_grad():
                for parameter in student.model.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
            sampler.weights_changed()
        assert largest_gap(student, sampler, prompts, options) < 1e-3


@pytest.mark.parametrize(
    "family, options", [("qwen3_vl", ["--tensor-parallel", "2"]), ("idefics3", []), ("smolvlm", [])]
)
def test_hidden_states_equal_those_of_transformers(
    family: str, options: list[str], serve: Callable[..., Server], tmp_path: Path
) -> None:
    local = load_policy(SAVE[family](tmp_path / "model"), "teacher")
    served = load_policy(serve(tmp_path / "model", *options).address, "teacher", patience=PATIENCE, device="cpu")
    prompts, answers = rows()
    pair = [logprobs(policy, prompts, answers) for policy in (served, local)]
    assert float((pair[0] - pair[1]).abs().max()) < 1e-3
    assert served.info["engine"] == "vllm" and served.facts["fingerprint"]
    with raises(PolicyError, "only scores", "evaluation.teacher=false"):
        served.sample(prompts[:1], [[1]], SamplingOptions(2))
    with raises(PolicyError, "400", '"none"', "512"):
        served.forward(prompts[:1], [(40,) * 600])


@pytest.mark.parametrize("family", ["qwen3_vl", "idefics3"])
def test_samples_have_logprobs_of_the_student_after_each_update(
    family: str, serve: Callable[..., Server], tmp_path: Path
) -> None:
    student = load_policy(SAVE[family](tmp_path / "student"), "student")
    server = serve(SAVE[family](tmp_path / "start", 1), command="sampler")
    student.sampler = ServedSampler(server.address, PATIENCE, run="run", image_options={})
    student.sampler.require_fits(student, SamplingOptions(8))
    prompts, options = rows()[0][:3], SamplingOptions(8)
    for _ in range(2):
        sampled = sample_together([student], lambda: student.sample(prompts, [[1, 2], [3], [4]], options))
        pairs = [(prompt, answer) for prompt, answers in zip(prompts, sampled, strict=True) for answer in answers]
        with torch.no_grad():
            expected = logprobs(student, [prompt for prompt, _ in pairs], [answer.ids for _, answer in pairs])
            for parameter in student.model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        tokens = torch.tensor([token for _, answer in pairs for token in answer.ids])
        drawn = torch.tensor([logprob for _, answer in pairs for logprob in answer.logprobs])
        assert float((expected.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - drawn).abs().max()) < 1e-3
        student.sampler.weights_changed()


def test_run_with_both_servers_equals_local_losses(serve: Callable[..., Server], tmp_path: Path) -> None:
    models = {name: families.save_idefics3(tmp_path / name, seed) for seed, name in enumerate(("student", "teacher"))}
    values = {"sampling__max_completion_length": 8, "trace__probes": 0, "evaluation__teacher": False}
    teacher = serve(models["teacher"])
    losses = []
    for name, address in (("local", models["teacher"]), ("served", teacher.address)):
        config = run_config(models | {"teacher": address}, tmp_path, name=name, **values)
        train(config)
        losses.append([line["loss"] for line in RunFolder.open(config.run_dir).metrics("train")])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    sampler = serve(models["student"], command="sampler")
    config = run_config(
        models | {"teacher": teacher.address}, tmp_path, name="both", sampling__server=sampler.address, **values
    )
    train(config)
    gaps = [line["sampler_logprob_gap"] for line in RunFolder.open(config.run_dir).metrics("train")]
    assert len(gaps) == len(losses[0]) and max(gaps) < 1e-4


def test_sharded_run_samples_ahead_with_weights_in_the_servers_precision(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    models = {name: families.save_idefics3(tmp_path / name, seed) for seed, name in enumerate(("student", "teacher"))}
    sampler = serve(models["student"], "--dtype", "bfloat16", command="sampler")
    values = {"sampling__max_completion_length": 8, "sampling__ahead": 1, "training__learning_rate": 0.1}
    config = run_config(models, tmp_path, sampling__server=sampler.address, trace__probes=0, **values)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    code = "import sys; from workbench.training.run import main; sys.exit(main(sys.argv[1:]))"
    ended = launch(tmp_path / "ranks", code, str(tmp_path / "config.yaml"), environment=SHARDED)
    assert not any(item.returncode for item in ended), [item.stderr[-2000:] for item in ended]
    assert "sampler_logprob_gap" not in ended[0].stderr  # no warning of what is rounding in bfloat16
    lines = RunFolder.open(config.run_dir).metrics("train")
    assert [line.get("sampler_lag", 0.0) for line in lines] == [0.0, 1.0, 1.0, 1.0]
    assert all(1e-4 < line["sampler_logprob_gap"] < 0.1 for line in lines[:3])
    assert all(abs(line["ratio/mean"] - 1) > 0.01 for line in lines[1:])  # other weights would give such a gap
    served = ServedSampler(sampler.address, PATIENCE, run="", image_options={})
    assert served.precision == "bfloat16"
    assert {name.rpartition(".")[2] for name in served.info["precisions"]} == {"bias"}  # in float32 on a CPU


def test_run_whose_server_was_killed_resumes_to_the_same_losses(serve: Callable[..., Server], tmp_path: Path) -> None:
    models = {name: families.save_idefics3(tmp_path / name, seed) for seed, name in enumerate(("student", "teacher"))}
    values = {"sampling__max_completion_length": 8, "trace__probes": 0, "evaluation__teacher": False}
    server = serve(models["teacher"])
    config = run_config(
        models | {"teacher": server.address}, tmp_path, name="killed", models__teacher_wait=0.0, **values
    )
    with raises(RunError, "step 2", server.address, "workbench resume"):
        train(config, on_step=lambda step, _: server.kill() if step == 1 else None)
    again = serve(models["teacher"], port=server.port)
    resume(config.run_dir)
    undisturbed = run_config(models | {"teacher": again.address}, tmp_path, name="undisturbed", **values)
    train(undisturbed)
    losses = [[line["loss"] for line in RunFolder.open(run.run_dir).metrics("train")] for run in (config, undisturbed)]
    assert losses[0] == losses[1]
    with raises(PolicyError, "only scores", "evaluation.teacher"):
        train(run_config(models | {"teacher": again.address}, tmp_path, name="evaluated", evaluation__teacher=True))


def test_plain_vllm_samples_with_the_weights_of_each_update(
    serve_plain: Callable[..., PlainServer], tmp_path: Path
) -> None:
    student = load_policy(SAVE["qwen3_vl"](tmp_path / "student"), "student")
    server = serve_plain(SAVE["qwen3_vl"](tmp_path / "start", 1), *AS_SAMPLER, **DEVELOPER)
    prompts, options = rows()[0][:3], SamplingOptions(8)
    connect = partial(connect_sampler, server.address, PATIENCE, image_options={}, folder=tmp_path / "shared")
    samplers = [connect(run=name) for name in ("run", "other")]
    student.sampler = samplers[0]
    student.sampler.require_fits(student, options)
    with raises(PolicyError, "--mm-processor-kwargs"):
        connect_sampler(
            server.address, PATIENCE, run="", image_options={"do_resize": False}, folder=tmp_path
        ).require_fits(student, options)
    with raises(ConfigError, "stop strings"):
        student.sampler.require_fits(student, SamplingOptions(8, stop_strings=("a",)))
    check_each_update(student, samplers, prompts, options)
    assert not list((tmp_path / "shared").iterdir())  # weights lie there only while they cross
    other = load_policy(SAVE["idefics3"](tmp_path / "other"), "student")
    with raises(PolicyError, server.address, "401 tokens"):
        samplers[0].require_fits(other, options)


@pytest.fixture
def serve_by_transfer(
    serve_plain: Callable[..., PlainServer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[Path], PlainServer]:
    """Starts `vllm serve` whose weights come by its transfer, over gloo in place of NCCL."""
    path = gloo_transfer.install(tmp_path / "plugin")
    monkeypatch.setitem(weight_transfer.JOIN, gloo_transfer.NAME, gloo_transfer.join_gloo)
    monkeypatch.setattr(weight_transfer, "PACKED_BYTES", 2**17)  # several chunks
    option = "--weight-transfer-config", json.dumps({"backend": gloo_transfer.NAME})
    return lambda model: serve_plain(model, *AS_SAMPLER, *option, **DEVELOPER, PYTHONPATH=path)


def test_transfer_sends_the_weights_of_each_update(
    serve_by_transfer: Callable[[Path], PlainServer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sampler_module, "PART_BYTES", 2**19)  # several bundles
    student = load_policy(SAVE["qwen3_vl"](tmp_path / "student"), "student")
    server = serve_by_transfer(SAVE["qwen3_vl"](tmp_path / "start", 1))
    prompts, options = rows()[0][:3], SamplingOptions(8)
    connect = partial(connect_sampler, server.address, PATIENCE, image_options={}, folder=tmp_path / "shared")
    samplers = [connect(run=name) for name in ("run", "other")]
    for sampler in samplers:
        sampler.require_fits(student, options)
    check_each_update(student, samplers, prompts, options)
    assert not (tmp_path / "shared").exists()
    other = load_policy(SAVE["idefics3"](tmp_path / "other"), "student")
    samplers[0].weights_changed()
    with raises(PolicyError, server.address, "update_weights"):
        samplers[0].send_weights(other)


def test_sharded_run_with_transfer_resumes_after_the_server_was_killed(
    serve_by_transfer: Callable[[Path], PlainServer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    models = {name: families.save_idefics3(tmp_path / name, seed) for seed, name in enumerate(("student", "teacher"))}
    server = serve_by_transfer(models["student"])
    values = {"sampling__max_completion_length": 8, "trace__probes": 0, "evaluation__every": 0}
    values |= {"sampling__server": server.address, "sampling__server_wait": 0.0, "method": {"name": "opd"}}
    values |= {"training__optimizer": "sgd", "training__learning_rate": 0.1}
    whole, killed, sharded = (run_config(models, tmp_path, name=name, **values) for name in ("a", "b", "c"))
    train(whole)
    (tmp_path / "config.yaml").write_text(sharded.to_yaml())
    code = "import sys, gloo_transfer; from workbench.policies.serving import weight_transfer; "
    code += "weight_transfer.JOIN['gloo'] = gloo_transfer.join_gloo; "
    code += "from workbench.training.run import main; sys.exit(main(sys.argv[1:]))"
    ended = launch(tmp_path / "ranks", code, str(tmp_path / "config.yaml"), environment=SHARDED)
    assert not any(item.returncode for item in ended), [item.stderr[-2000:] for item in ended]
    assert "by vLLM's transfer (gloo)" in ended[0].stderr
    broadcast = gloo_transfer.Group.broadcast
    step_done = 0

    def dies_in_transfer(group: gloo_transfer.Group, tensor: torch.Tensor, src: int) -> None:
        if step_done == 2:
            server.kill()
        broadcast(group, tensor, src)

    def count(step: int, _: dict) -> None:
        nonlocal step_done
        step_done = step

    with monkeypatch.context() as patch, raises(RunError, "step 3", server.address, "vllm serve", "workbench resume"):
        patch.setattr(gloo_transfer.Group, "broadcast", dies_in_transfer)
        train(killed, on_step=count)
    server = serve_by_transfer(models["student"])
    resume(killed.run_dir, [f"sampling.server={server.address}"])
    lines = [RunFolder.open(path.run_dir).metrics("train") for path in (whole, killed, sharded)]
    losses = [[line["loss"] for line in some] for some in lines]
    assert losses[0] == losses[1] and losses[2] == pytest.approx(losses[0], abs=1e-5)
    assert max(line["sampler_logprob_gap"] for some in lines for line in some) < 1e-4
    assert not list(Path(whole.output_dir).glob("sampler-weights*"))


def test_run_with_plain_vllm_resumes_after_it_was_killed(
    serve_plain: Callable[..., PlainServer], tmp_path: Path
) -> None:
    models = {name: families.save_idefics3(tmp_path / name, seed) for seed, name in enumerate(("student", "teacher"))}
    server = serve_plain(models["student"], *AS_SAMPLER, **DEVELOPER)
    values = {"sampling__max_completion_length": 8, "trace__probes": 0, "evaluation__every": 0}
    values |= {"sampling__server": server.address, "sampling__server_wait": 0.0, "method": {"name": "opd"}}
    whole = run_config(models, tmp_path, name="whole", training__learning_rate=0.01, **values)
    train(whole)
    config = run_config(models, tmp_path, name="killed", training__learning_rate=0.01, **values)
    with raises(RunError, "step 3", server.address, "vllm serve", "workbench resume"):
        train(config, on_step=lambda step, _: server.kill() if step == 2 else None)
    other = serve_plain(models["student"])
    with raises(PolicyError, other.address, "VLLM_SERVER_DEV_MODE=1"):
        resume(config.run_dir, [f"sampling.server={other.address}"])
    other.kill()
    server = serve_plain(models["student"], *AS_SAMPLER, **DEVELOPER)
    resume(config.run_dir, [f"sampling.server={server.address}"])
    lines = [RunFolder.open(path.run_dir).metrics("train") for path in (whole, config)]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]
    assert max(line["sampler_logprob_gap"] for line in lines[1]) < 1e-4
