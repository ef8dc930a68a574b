"""Servers that are not those of this workbench, and answers that lack parts: each is a sentence at once."""

import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from failures import raises
from servers import free_port

from workbench.config.models import check_models
from workbench.config.schema import DataConfig, ModelsConfig, RunConfig
from workbench.errors import ConfigError, PolicyError, UnavailableError
from workbench.policies import Completion
from workbench.policies.serving import client as serving_client
from workbench.policies.serving.addresses import Patience, meant_addresses
from workbench.policies.serving.client import ServerClient
from workbench.policies.serving.served import check_pins, completions_of
from workbench.policies.serving.wire import PROTOCOL, Pin, encoding_digest, pin_facts
from workbench.types import Prompt

LONG = Patience(timeout=30.0, wait=600.0)  # a retry would exceed the test's time
INFO = {
    "service": "teacher",
    "protocol": PROTOCOL,
    "model": "models/a",
    "class": "Llama",
    "dtype": "float32",
    "engine": "transformers",
    "versions": {},
    "samples": True,
    "fingerprint": "f",
    "files": "0",
    "vocabulary": 9,
    "width": 8,
    "context_length": None,
    "stop_ids": [1],
    "has_head": True,
    "head": {},
    "differs": [],
}
SOURCE = SimpleNamespace(name="teacher", source="http://node:8000")


@contextmanager
def listening(server: socketserver.BaseServer) -> Iterator[str]:
    """Host and port of a server, which answers meanwhile."""
    with server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def answering(status: int, body: bytes) -> ThreadingHTTPServer:
    """A server with one answer to everything."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Answer)


def files_of(folder: Path) -> ThreadingHTTPServer:
    """`python -m http.server` of a folder."""
    return ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))


class Greeting(socketserver.StreamRequestHandler):
    """A server of another protocol."""

    def handle(self) -> None:
        self.wfile.write(b"SSH-2.0-OpenSSH_9.9\r\n")
        self.rfile.readline()


def test_servers_of_others_are_refused_at_once_without_their_pages(tmp_path: Path) -> None:
    servers: list[Callable[[], socketserver.BaseServer]] = [
        partial(files_of, tmp_path),
        lambda: socketserver.TCPServer(("127.0.0.1", 0), Greeting),
        *(partial(answering, status, b"<html>page</html>") for status in (200, 301, 401, 403, 404, 500)),
        partial(answering, 403, b'{"error": "of another program"}'),
    ]
    for start in servers:
        with listening(start()) as address, pytest.raises(PolicyError) as caught:
            ServerClient((f"http://{address}",), "teacher", LONG).info()
        assert str(caught.value) == (
            f"teacher: http://{address} answers, but is not a teacher. Start it with `workbench teacher`, or correct "
            "the address."
        )


def test_refused_token_keeps_its_sentence() -> None:
    server = answering(401, b'{"error": "this server needs a token. Set WORKBENCH_TOKEN."}')
    with listening(server) as address, raises(PolicyError, "401", "Set WORKBENCH_TOKEN", address):
        ServerClient((f"http://{address}",), "teacher", LONG).info()


def test_https_for_a_server_without_tls_is_refused_at_once() -> None:
    begun = time.monotonic()
    with (
        listening(answering(200, b"")) as address,
        raises(PolicyError, f"https://{address}", f"http://{address}", "TLS"),
    ):
        ServerClient((f"https://{address}",), "teacher", LONG).info()
    assert time.monotonic() - begun < 60


def test_refused_connection_is_tried_shortly_at_the_start_and_says_until_when(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serving_client, "START_S", 0.3)
    address = f"http://127.0.0.1:{free_port()}"
    client = ServerClient((address,), "teacher", LONG)
    with caplog.at_level("WARNING", "workbench"), raises(UnavailableError, address, "refused", "workbench teacher"):
        client.info()
    first, *others = [record.getMessage() for record in caplog.records]
    assert "up to 0.3 s. Start it with `workbench teacher`" in first and address in first
    assert others and all("follows" in message for message in others)


def test_server_that_answered_has_the_whole_wait_to_come_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serving_client, "START_S", 0.0)
    patience = Patience(timeout=5.0, wait=0.3)
    with listening(answering(503, b"")) as address:
        client = ServerClient((f"http://{address}",), "teacher", patience)
        with raises(UnavailableError, "503"):
            client.info()
    assert client.retries >= 2
    with caplog.at_level("WARNING", "workbench"), raises(UnavailableError, "refused"):
        client.fetch("/head")
    assert client.retries >= 4 and "up to 0.3 s" in caplog.text


@pytest.mark.parametrize("key", ["fingerprint", "stop_ids", "width"])
def test_facts_without_a_key_or_of_another_type_are_refused(key: str) -> None:
    for info in ({name: value for name, value in INFO.items() if name != key}, INFO | {key: None}):
        with listening(answering(200, json.dumps(info).encode())) as address, raises(PolicyError, f"lacks {key}"):
            ServerClient((f"http://{address}",), "teacher", LONG).info()
    with listening(answering(200, json.dumps(INFO).encode())) as address:
        assert ServerClient((f"http://{address}",), "teacher", LONG).info() == INFO


def test_servers_that_encode_otherwise_are_refused_by_address() -> None:
    bodies = [json.dumps(INFO | {"files": digest}).encode() for digest in ("0", "1")]
    with listening(answering(200, bodies[0])) as first, listening(answering(200, bodies[1])) as other:
        client = ServerClient((f"http://{first}", f"http://{first}"), "teacher", LONG)
        assert client.info()["files"] == "0"
        client = ServerClient((f"http://{first}", f"http://{other}"), "teacher", LONG)
        with raises(PolicyError, f"http://{other} (models/a) encodes prompts otherwise than http://{first}"):
            client.info()


def test_digest_of_files_counts_what_encodes_prompts() -> None:
    settings = {"size": {"longest_edge": 96}, "image_processor": {"image_processor_type": "Fast", "do_resize": True}}
    files = {
        "config.json": b"{}",
        "chat_template.jinja": b"{{ x }}",
        "processor_config.json": json.dumps(settings).encode(),
        "tokenizer_config.json": b'{"is_local": true, "bos_token": "<s>"}',
    }
    digest = encoding_digest(files)
    nested = settings | {"image_processor": {"do_resize": True, "image_processor_type": "Slow"}}
    for name, data in (
        ("config.json", b'{"dtype": "bfloat16"}'),
        ("processor_config.json", json.dumps(nested).encode()),
        ("tokenizer_config.json", b'{"bos_token": "<s>", "is_local": false}'),
    ):
        assert encoding_digest(files | {name: data}) == digest
    for name, data in (
        ("chat_template.jinja", b"{{ y }}"),
        ("processor_config.json", json.dumps(settings | {"size": {"longest_edge": 48}}).encode()),
        ("tokenizer_config.json", b'{"bos_token": "<x>"}'),
        ("tokenizer.json", b"{}"),
    ):
        assert encoding_digest(files | {name: data}) != digest


def test_answers_without_pins_or_with_others_are_sentences() -> None:
    prompts, mine = [Prompt((), "a", key="a"), Prompt((), "b", key="b")], [Pin("0", 1, "0"), Pin("1", 2, "0")]
    facts = pin_facts(mine)
    check_pins(SOURCE, prompts, mine, {"pins": facts})
    wrong: list[Any] = [None, [], facts[:1], [*facts, facts[0]], [facts[0], {"length": 2}], [facts[0], "text"], 5]
    for pins in wrong:
        with raises(PolicyError, "http://node:8000 gave an incomplete answer"):
            check_pins(SOURCE, prompts, mine, {"pins": pins})
    with raises(PolicyError, "incomplete answer", "pins"):
        check_pins(SOURCE, prompts, mine, {})


def test_answers_without_completions_or_with_others_are_sentences() -> None:
    good = {"ids": [1, 2], "logprobs": [-1.0, -2.0], "finished": True, "denoising": None, "entropies": None}
    assert completions_of(SOURCE, {"completions": [[good], []]}, [[7], []]) == [
        [Completion((1, 2), (-1.0, -2.0), True)],
        [],
    ]
    short = {name: value for name, value in good.items() if name != "ids"}
    wrong: list[Any] = [
        *(None, [], [[good]], [[], []], [[good, good], []], [[short], []], [[good | {"more": 1}], []], 5),
        [[good | {"logprobs": [-1.0]}], []],
        [[good | {"entropies": [1.0]}], []],
        [[good | {"ids": ["1", "2"]}], []],
    ]
    for completions in wrong:
        with raises(PolicyError, "http://node:8000 gave an incomplete answer", "for each seed"):
            completions_of(SOURCE, {"completions": completions}, [[7], []])
    with raises(PolicyError, "incomplete answer", "completions"):
        completions_of(SOURCE, {}, [[7], []])


def test_address_without_scheme_is_answered_with_one() -> None:
    for model, address in (
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("node2:8000/", "http://node2:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("a:1, http://b:2", "http://a:1,http://b:2"),
    ):
        for teachers in ({"teacher": model}, {"teacher": "x/y", "teachers": {"ocr": model}}):
            config = RunConfig(
                models=ModelsConfig(student="owner/name", **teachers),
                data=DataConfig(train="rows.jsonl"),
                name="run",
                method={"name": "dopd"},
            )
            with raises(ConfigError, f'"{model}"', f"Did you mean {address}?", "models.teacher"):
                check_models(config)
    for model in ("owner/name", "name", "./a:1", "C:models", "http://a:1", "", "a:b"):
        assert not meant_addresses(model) or model.startswith("http")
