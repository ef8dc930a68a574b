"""The JSON beside the page: what it answers, what it refuses, and who may ask."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from page_checks import free_port

from workbench.analysis.query import open_answers
from workbench.app.server import serve


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=60) as client:
        yield client


def test_api_lists_runs_with_states_and_addresses(client: httpx.Client, address: str) -> None:
    listed = {run["name"]: run for run in client.get("/api/runs").json()}
    assert {"dopd", "opd", "begun"} <= listed.keys()
    assert (listed["dopd"]["status"], listed["dopd"]["step"]) == ("finished", 4)
    assert listed["dopd"]["address"] == f"{address}/?run=dopd&tab=training"
    endpoints = client.get("/api").json()["get"]
    assert len(endpoints) == 6 and all(client.get(url.split("?")[0]).status_code in (200, 422) for url in endpoints)


def test_api_answers_equal_python_query(client: httpx.Client, runs: Path, address: str) -> None:
    answers = open_answers(runs / "dopd", runs_dir=runs, base=address)
    page = client.get("/api/answers", params={"run": "dopd", "filter": "step=2", "limit": 4, "offset": 1}).json()
    assert page["total"] == 6 and page["answers"] == answers.select("step=2", limit=4, offset=1)
    key = {"step": 2, "rollout": 3, "token": 0}
    assert client.get("/api/answer", params={"run": "dopd", **key}).json() == answers.get(**key)
    evaluated = {"run": "dopd", "step": 2, "rollout": 7, "evaluation": 1}
    assert client.get("/api/answer", params=evaluated).json() == answers.evaluated(2, 7)
    (listed,) = client.get("/api/answers", params={"run": "dopd", "filter": "in:evaluation step=2 rollout=7"}).json()[
        "answers"
    ]
    assert listed == answers.evaluated(2, 7) and "tokens" not in listed
    assert client.get("/api/quote", params=evaluated).status_code == 422
    assert client.get("/api/quote", params={"run": "dopd", **key}).json()["markdown"] == answers.quote(**key)


def test_api_verdicts_have_four_numbers(client: httpx.Client) -> None:
    verdicts = client.get("/api/verdicts", params={"run": "dopd"}).json()
    assert [verdict["name"] for verdict in verdicts] == ["evidence", "gain", "over-confidence", "loss"]
    assert all(verdict["sentence"].endswith(".") for verdict in verdicts)


@pytest.mark.parametrize(
    ("path", "status", "named"),
    [
        ("/api/answers?run=gone", 404, "gone"),
        ("/api/answers?run=../dopd", 404, "'..'"),
        ("/api/answers?run=begun", 404, "No tokens are recorded"),
        ("/api/answers", 422, "/api/runs"),
        ("/api/answers?run=dopd&where=x", 422, '"where" is unknown'),
        ("/api/answers?run=dopd&limit=9999", 422, "9999"),
        ("/api/answers?run=dopd&limit=-1", 422, "'-1'"),
        ("/api/answers?run=dopd&filter=nofield>2", 422, "nofield"),
        ("/api/answer?run=dopd&step=99&rollout=0", 404, "1, 2, 3, 4"),
        ("/api/answer?run=dopd&step=4&rollout=0&token=99", 404, "token 99"),
        ("/api/answer?run=dopd&step=x&rollout=0", 422, "'x'"),
        ("/api/quote?run=dopd&step=4&rollout=0&last=2", 422, "token"),
    ],
)
def test_api_wrong_request_is_one_sentence(client: httpx.Client, path: str, status: int, named: str) -> None:
    response = client.get(path)
    assert response.status_code == status and named in response.json()["error"]


def test_api_is_read_only_and_guarded(client: httpx.Client) -> None:
    assert client.post("/api/runs").status_code == 405
    assert client.get("/api/runs", headers={"Origin": "https://elsewhere.example"}).status_code == 403
    assert client.get("/api/runs", headers={"Host": "elsewhere.example"}).status_code == 403


def test_api_run_damaged_or_deleted_is_an_error(client: httpx.Client, runs: Path) -> None:
    copy = shutil.copytree(runs / "dopd", runs / "doomed")
    try:
        assert client.get("/api/answers?run=doomed").status_code == 200
        for file in (copy / "traces" / "rollouts").iterdir():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        damaged = client.get("/api/answers?run=doomed")
        assert damaged.status_code == 422 and "rollouts" in damaged.json()["error"]
        (copy / "evals" / "step-000000.jsonl").write_text('{"step": 0')
        verdicts = client.get("/api/verdicts?run=doomed")
        assert verdicts.status_code == 404 and "step-000000.jsonl" in verdicts.json()["error"]
    finally:
        shutil.rmtree(copy)
    gone = client.get("/api/answers?run=doomed")
    assert gone.status_code == 404 and "does not exist" in gone.json()["error"]


def test_api_needs_login_where_page_does(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "users").write_text("ada:secret\n")
    port = free_port()
    app = serve(trained, configs=tmp_path, port=port, auth=tmp_path / "users")
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as visitor:
            refused = visitor.get("/api/runs")
            assert refused.status_code == 401 and "/login" in refused.json()["error"]
            assert visitor.get("/api/runs", cookies={"access-token": "x"}).status_code == 401
            visitor.post("/login", data={"username": "ada", "password": "secret"})
            assert {run["name"] for run in visitor.get("/api/runs").json()} == {"dopd", "opd"}
    finally:
        app.close()
