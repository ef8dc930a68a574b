"""Faults between a run and its teacher's server: each is a sentence within a stated time, none a wrong number."""

import http.client
import importlib.util
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from failures import raises
from servers import Server, free_port
from small import picture

from workbench.cli import main
from workbench.config.schema import ModelsConfig
from workbench.errors import ConfigError, PolicyError, RunError, UnavailableError
from workbench.files.hosts import listen
from workbench.policies.loading import load_policies, load_policy
from workbench.policies.serving import door
from workbench.policies.serving.addresses import TOKEN, Patience, split_addresses
from workbench.policies.serving.client import ServerClient
from workbench.policies.serving.engine import DeadEngineError, TransformersEngine
from workbench.policies.serving.served import ServedPolicy
from workbench.policies.serving.service import TeacherService
from workbench.policies.serving.wire import ReadRequest, WireError, pack, unpack
from workbench.types import Prompt

PROMPTS = [Prompt((picture(1),), "what is this?", key="a"), Prompt((), "red?", key="b")]
ANSWERS = [(40, 41, 42), (43, 44)]
QUICK = Patience(timeout=60.0, wait=0.0)


@pytest.fixture(scope="module")
def server(models: dict, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("server"), models["teacher"])
    yield started
    started.kill()


class Between(BaseHTTPRequestHandler):
    """Passes requests on to a server, and changes answers on their way."""

    target: int
    change: Callable[[str, int, bytes], tuple[int, bytes, int]]  # path, status, body -> status, body, stated length

    def do_GET(self) -> None:
        self._pass(None)

    def do_POST(self) -> None:
        self._pass(self.rfile.read(int(self.headers["Content-Length"])))

    def _pass(self, body: bytes | None) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.target, timeout=60)
        headers = {"Content-Type": "application/octet-stream"} if body is not None else {}
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        status, answer, length = type(self).change(self.path, response.status, response.read())
        connection.close()
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def between(server: Server, change: Callable[[str, int, bytes], tuple[int, bytes, int]]) -> Iterator[str]:
    """Address of a server that changes what the teacher's answers."""
    handler = type("Changing", (Between,), {"target": server.port, "change": staticmethod(change)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def reads(change: Callable[[dict, dict], None]) -> Callable[[str, int, bytes], tuple[int, bytes, int]]:
    """Change tensors and facts of reads alone."""

    def apply(path: str, status: int, body: bytes) -> tuple[int, bytes, int]:
        if path == "/read":
            tensors, facts = unpack(body)
            change(tensors, facts)
            body = pack(tensors, facts)
        return status, body, len(body)

    return apply


def connected(address: str, patience: Patience = QUICK) -> ServedPolicy:
    return load_policy(address, "teacher", patience=patience, device="cpu")


CHANGES = {
    "expanded twice": (lambda tensors, facts: facts["pins"][0].update(length=99, ids="0"), ('"a"', "99")),
    "picture missing": (lambda tensors, facts: facts["pins"][0].update(pictures="0"), ('"a"', "pictures")),
    "late row": (lambda tensors, facts: tensors.update(hidden=tensors["hidden"][1:]), ("shape [4,", "[5,")),
    "another width": (lambda tensors, facts: tensors.update(hidden=tensors["hidden"][:, 1:]), ("shape",)),
    "no number": (lambda tensors, facts: tensors["hidden"][0].fill_(torch.nan), ("NaN",)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_read_of_something_else_raises(name: str, server: Server) -> None:
    change, names = CHANGES[name]
    with between(server, reads(change)) as address, raises(PolicyError, "teacher", address, *names):
        connected(address).forward(PROMPTS, ANSWERS)


def test_other_pixels_warn_once(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    def change(tensors: dict, facts: dict) -> None:
        for entry in facts["pins"]:
            entry["pixels"] = entry["pixels"] and "0"

    with between(server, reads(change)) as address:
        policy = connected(address)
        with caplog.at_level("WARNING", "workbench"):
            policy.forward(PROMPTS[:1], ANSWERS[:1])
            policy.forward(PROMPTS[:1], ANSWERS[:1])
    assert caplog.text.count("torchvision and") == 1


def test_torn_body_is_requested_again_and_counted(server: Server) -> None:
    torn = []

    def change(path: str, status: int, body: bytes) -> tuple[int, bytes, int]:
        if path == "/read" and not torn:
            torn.append(path)
            return status, body[:-8], len(body)
        return status, body, len(body)

    with between(server, change) as address:
        policy = connected(address, Patience(timeout=5.0, wait=60.0))
        hidden = policy.forward(PROMPTS, ANSWERS).hidden
    assert torn and policy.retries == 1
    assert torch.equal(hidden, connected(server.address).forward(PROMPTS, ANSWERS).hidden)


def test_truncated_message_raises() -> None:
    body = pack({"hidden": torch.ones(2, 3)}, {"fact": 1})
    assert unpack(body)[1] == {"fact": 1}
    for part in (body[:-1], body[:4], b"", b"<html>no</html>"):
        with pytest.raises(WireError):
            unpack(part)


def test_busy_server_is_asked_again_until_patience_ends(server: Server) -> None:
    def change(path: str, status: int, body: bytes) -> tuple[int, bytes, int]:
        return (503, b"", 0) if path == "/read" else (status, body, len(body))

    with between(server, change) as address:
        policy = connected(address, Patience(timeout=5.0, wait=0.5))
        with raises(UnavailableError, "503", address, "workbench teacher"):
            policy.forward(PROMPTS, ANSWERS)
    assert policy.retries >= 2


def test_server_of_somebody_else_raises(server: Server) -> None:
    for answer in (b"<html>hello</html>", b'{"status": "ok"}', b"[]"):

        def change(path: str, status: int, body: bytes, answer: bytes = answer) -> tuple[int, bytes, int]:
            return 200, answer, len(answer)

        with between(server, change) as address, raises(PolicyError, address, "workbench teacher"):
            connected(address)
    with (
        between(server, lambda path, status, body: (404, b"nothing", 7)) as address,
        raises(PolicyError, address, "answers, but is not a teacher", "correct the address"),
    ):
        connected(address)


def test_other_protocol_raises(server: Server) -> None:
    def change(path: str, status: int, body: bytes) -> tuple[int, bytes, int]:
        body = json.dumps(json.loads(body) | {"protocol": 99}).encode()
        return status, body, len(body)

    with between(server, change) as address, raises(PolicyError, address, "99"):
        connected(address)


def test_no_server_raises_after_waiting() -> None:
    address, begun = f"http://127.0.0.1:{free_port()}", time.monotonic()
    with raises(UnavailableError, address, "refused", "workbench teacher"):
        connected(address, Patience(timeout=5.0, wait=0.8))
    assert 0.8 <= time.monotonic() - begun < 1.4  # pauses of 0.2, 0.5 and 1 s; the third is cut short


def test_several_servers_take_turns_and_stand_in_for_each_other(server: Server) -> None:
    client = ServerClient((server.address, f"http://127.0.0.1:{free_port()}"), "teacher", Patience(60.0, 60.0))
    client._fingerprint = ServerClient((server.address,), "teacher", QUICK).info()["fingerprint"]
    served = connected(server.address)
    served.client = client
    expected = connected(server.address).forward(PROMPTS, ANSWERS).hidden
    assert all(torch.equal(served.forward(PROMPTS, ANSWERS).hidden, expected) for _ in range(4))
    assert client.retries == 2  # every other request began at the address where nothing listens


def test_servers_of_two_models_raise(server: Server, models: dict, tmp_path: Path) -> None:
    other = Server(tmp_path, models["student"])
    with raises(PolicyError, server.address, other.address):
        connected(f"{server.address},{other.address}")
    other.kill()


def test_hung_server_raises_after_timeout_and_restarted_one_answers_all_that_wait(models: dict, tmp_path: Path) -> None:
    server = Server(tmp_path, models["teacher"])
    policy = connected(server.address)
    policy.client.patience = Patience(timeout=1.0, wait=60.0)
    server.signal(signal.SIGSTOP)
    begun = time.monotonic()
    with raises(UnavailableError, f"{server.address} hangs", "within 1 s", "End its process", "models.teacher_timeout"):
        policy.forward(PROMPTS, ANSWERS)
    assert policy.retries == 0 and time.monotonic() - begun < 30  # it is not asked again
    server.signal(signal.SIGCONT)
    policy.client.patience = QUICK
    expected = policy.forward(PROMPTS, ANSWERS).hidden
    pair = [policy, connected(server.address)]
    server.kill()
    with raises(UnavailableError, server.address, "refused"):
        policy.forward(PROMPTS, ANSWERS)
    for waiting in pair:
        waiting.client.patience = Patience(timeout=60.0, wait=120.0)
        waiting.prefetch(PROMPTS, ANSWERS)
    again = Server(tmp_path / "again", models["teacher"], server.port)
    assert all(torch.equal(waiting.forward(PROMPTS, ANSWERS).hidden, expected) for waiting in pair)
    assert all(waiting.retries for waiting in pair)
    again.kill()


def test_token_is_needed(models: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(tmp_path, models["teacher"], **{TOKEN: "secret"})
    with raises(PolicyError, "401", TOKEN) as caught:
        connected(server.address)
    assert type(caught.value).__name__ == "RefusedError"  # as the command line prints it
    monkeypatch.setenv(TOKEN, "secret")
    assert connected(server.address).forward(PROMPTS, ANSWERS).hidden.shape[0] == 5
    server.kill()


def test_too_long_prompt_and_unknown_ids_are_refused(server: Server) -> None:
    policy = connected(server.address)
    with raises(PolicyError, "400", "999999", policy.info["model"]):
        policy.forward(PROMPTS, [(40,), (999999,)])
    with raises(PolicyError, "400", '"b"', "512"):
        policy.forward(PROMPTS[1:], [(40,) * 600])


def test_teacher_of_another_vocabulary_raises(models: dict, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models["teacher"], tmp_path / "swapped"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["red"], vocabulary["green"] = vocabulary["green"], vocabulary["red"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    server = Server(tmp_path / "server", folder)
    with raises(PolicyError, "teacher", "vocabulary", '"red"'):
        options = {"teacher": server.address, "teacher_options": {"patience": QUICK}}
        load_policies(["teacher"], student=models["student"], **options)
    server.kill()


def test_teacher_command_refuses_open_host_used_port_and_options(
    models: dict, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    for arguments, names in (
        (["--host", "0.0.0.0"], ("--host", TOKEN)),
        (["--port", str(server.port)], ("port", str(server.port))),
        (["--dtype", "int8"], ("--dtype", "bfloat16")),
        (["--engine", "sglang"], ("--engine", "vllm")),
        (["--tensor-parallel", "2"], ("--tensor-parallel 2", "--engine vllm")),
        (["--memory", "0.5"], ("--memory 0.5", "transformers")),
        (["--compare"], ("--compare does", "transformers")),
        (["--engine", "vllm", "--device", "cpu"], ("--device", "CUDA_VISIBLE_DEVICES")),
        (["--engine", "vllm", "--tensor-parallel", "0"], ("--tensor-parallel 0",)),
        (["--engine", "vllm", "--memory", "2"], ("--memory 2",)),
    ):
        assert main(["teacher", str(models["teacher"]), *arguments]) == 2
        message = capsys.readouterr().err
        assert not [name for name in names if name not in message], message


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed")
def test_vllm_that_is_missing_raises(models: dict, capsys: pytest.CaptureFixture) -> None:
    for command in ("teacher", "sampler"):
        assert main([command, str(models["teacher"]), "--engine", "vllm", "--port", str(free_port())]) == 2
        assert "[vllm]" in capsys.readouterr().err


def test_addresses_are_split_and_checked() -> None:
    assert split_addresses(" http://a:1/, https://b:2 ,http://a:1", "models.teacher") == ("http://a:1", "https://b:2")
    for text in ("http://", "http://a:port", "http://a:1/path", "http://a:1,b:2", "http://user@a:1"):
        with raises(ConfigError, "models.teacher", "http://HOST:PORT"):
            split_addresses(text, "models.teacher")


def test_options_of_local_teachers_are_refused() -> None:
    address = "http://127.0.0.1:8000"
    with raises(ConfigError, "models.teacher_dtype=bfloat16", "--dtype"):
        ModelsConfig(teacher=address, teacher_dtype="bfloat16")
    with raises(ConfigError, "models.offload_teachers", "models.teachers.ocr"):
        ModelsConfig(teachers={"ocr": address}, offload_teachers=True)
    with raises(ConfigError, "models.student", address):
        ModelsConfig(student=address)


class Dying(TransformersEngine):
    """An engine that dies in its first read, or before any."""

    reason, closed = "", False

    def hidden_states(self, request: ReadRequest) -> list:
        raise DeadEngineError("worker 1 has ended.")

    def fault(self) -> str:
        return self.reason

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def dying(models: dict) -> Dying:
    return Dying.start(models["teacher"], dtype="float32", device="cpu")


def serve(load: Callable[[], TeacherService], port: int) -> None:
    """Serve in a thread of its own: Playwright's loop may be running in this one. Signals are for the main thread."""
    with ThreadPoolExecutor(1) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(door, "_terminable", nullcontext)
        server.submit(door.serve, load, "MODEL", "127.0.0.1", port).result()


def refusal_of(engine: Dying, reason: str, before: Callable[[], None] = lambda: None) -> str:
    """How a run reads from a server of this engine, which ends for a reason. before: done while it is served."""
    port, caught = free_port(), []

    def ask() -> None:
        try:
            policy = connected(f"http://127.0.0.1:{port}", Patience(60.0, 5.0))
            policy.client.patience = QUICK
            policy.forward(PROMPTS, ANSWERS)
        except UnavailableError as error:
            caught.append(str(error))

    threads = [threading.Thread(target=work) for work in (ask, before)]
    for thread in threads:
        thread.start()
    with raises(RunError, reason, "again"):
        serve(lambda: TeacherService(engine), port)
    for thread in threads:
        thread.join()
    assert engine.closed
    return caught[0]


def test_server_of_dead_engine_answers_503_and_ends(dying: Dying) -> None:
    assert "503" in refusal_of(dying, "worker 1")


def test_server_of_engine_that_dies_idle_ends(dying: Dying) -> None:
    dying.reason = "a worker was killed."
    with raises(RunError, "a worker was killed"):
        serve(lambda: TeacherService(dying), free_port())
    assert dying.closed


def test_request_that_a_stopping_server_leaves_can_be_sent_again(dying: Dying, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "GRACE_S", 1)
    begun = threading.Event()
    dying.hidden_states = lambda request: begun.set() or time.sleep(3.0) or []

    def die() -> None:
        begun.wait()
        dying.reason = "it hangs."

    assert "503" in refusal_of(dying, "it hangs", die)


def test_run_waits_for_a_server_that_is_loading(dying: Dying, caplog: pytest.LogCaptureFixture) -> None:
    loaded, port = threading.Event(), free_port()
    address = f"http://127.0.0.1:{port}"

    def load() -> TeacherService:
        assert loaded.wait(60.0)
        return TeacherService(dying)

    with ThreadPoolExecutor(2) as pool:
        serving = pool.submit(serve, load, port)
        try:
            with raises(UnavailableError, address, "MODEL is loading since", "models.teacher_wait"):
                ServerClient((address,), "teacher", Patience(timeout=5.0, wait=1.5)).info()
            with raises(RunError, f"port {port}", "--port"):  # taken before anything is loaded
                listen("127.0.0.1", port)
            caplog.clear()
            waiting = ServerClient((address,), "teacher", Patience(timeout=60.0, wait=60.0))
            info = pool.submit(waiting.info)
            while waiting.retries < 2 and not info.done():
                time.sleep(0.05)
            loaded.set()
            assert info.result()["service"] == "teacher"
            assert sum("is loading since" in record.message for record in caplog.records) == 1
        finally:
            loaded.set()
            dying.reason = "a worker was killed."
        with raises(RunError, "a worker was killed"):
            serving.result()


def test_server_of_no_model_ends_and_frees_its_port(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    port = free_port()
    assert main(["teacher", str(tmp_path / "nowhere"), "--port", str(port)]) == 2
    assert "nowhere" in capsys.readouterr().err
    listen("127.0.0.1", port).close()
