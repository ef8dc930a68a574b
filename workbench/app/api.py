"""The runs and answers of the page as JSON, read-only, for scripts and agents.

    GET /api                                       this list
    GET /api/runs                                  runs with their states
    GET /api/answers?run=demo&filter=grade=incorrect&limit=20&offset=0
    GET /api/answer?run=demo&step=30&rollout=4     an answer with its tokens; the parameters of the page's address
    GET /api/quote?run=demo&step=30&rollout=4&token=17&last=19
    GET /api/verdicts?run=demo                     the four numbers of Leakage

The same guard of origins and the same login as for the page apply. An error is {"error": sentence}, with status 401
without a login, 404 for what is not recorded, and 422 for a wrong parameter.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from workbench.analysis.addresses import read_params
from workbench.analysis.leakage import verdicts
from workbench.analysis.query import MAX_LISTED, Answers, plain_values
from workbench.app.components import TRACES
from workbench.app.context import AppContext
from workbench.app.gradio_private import is_logged_in
from workbench.errors import RunError, TraceError, WorkbenchError, show, unknown
from workbench.runs.jobs import JobState, find_jobs
from workbench.traces.reader import NoTraces

NO_LOGIN = "Log in first: POST username and password to /login, and send the cookie that it sets."
_ANSWER = ("run", "step", "rollout", "process", "probe", "evaluation", "token", "tab")
_STATE = ("name", "status", "method", "step", "steps", "started", "updated", "error")

Read = Callable[[AppContext, Mapping[str, str], str], Any]  # context, parameters, address of the app


class _NotRecorded(WorkbenchError):
    """An answer or a run that does not exist."""


def api_routes(context: AppContext) -> list[Route]:
    """Routes of the JSON interface, for the app's server."""
    return [
        Route(f"/api{path}", _endpoint(context, read, allowed), methods=["GET"])
        for path, (read, allowed) in ENDPOINTS.items()
    ]


def _endpoint(context: AppContext, read: Read, allowed: tuple[str, ...]) -> Callable:
    async def endpoint(request: Request) -> Response:
        if not is_logged_in(request):
            return JSONResponse({"error": NO_LOGIN}, 401)
        params = dict(request.query_params)
        try:
            for name in params:
                if name not in allowed:
                    raise TraceError(unknown("parameter", name, allowed))
            values = await run_in_threadpool(read, context, params, str(request.base_url))
        except (_NotRecorded, RunError, NoTraces) as error:
            return JSONResponse({"error": str(error)}, 404)
        except WorkbenchError as error:
            return JSONResponse({"error": str(error)}, 422)
        except OSError as error:
            sentence = f"{error.filename or 'a file'} cannot be read ({error.strerror or error}). Try again."
            return JSONResponse({"error": sentence}, 404)
        return JSONResponse(values)

    return endpoint


def _index(context: AppContext, params: Mapping[str, str], base: str) -> dict:
    lines = [line.strip().split(maxsplit=2) for line in (__doc__ or "").splitlines() if line.startswith("    GET")]
    return {"get": [f"{base.rstrip('/')}{path}" for _, path, *_ in lines], "filters": "docs/answers.md"}


def _runs(context: AppContext, params: Mapping[str, str], base: str) -> list[dict]:
    return [_state(state, base) for state in find_jobs(context.runs_dir)]


def _state(state: JobState, base: str) -> dict:
    query = urlencode({"run": state.name, "tab": "training"}, safe="/")
    values = {name: getattr(state, name) for name in _STATE}
    return plain_values({**values, "warnings": state.warnings, "address": f"{base.rstrip('/')}/?{query}"})


def _answers(context: AppContext, params: Mapping[str, str], base: str) -> dict:
    answers = _open(context, params.get("run"), base)
    limit, offset = (_number(params, name, default) for name, default in (("limit", 20), ("offset", 0)))
    text = params.get("filter", "")
    listed = answers.select(text, limit=limit, offset=offset)
    total = answers.count(text)
    return {"run": answers.run, "filter": text, "total": total, "offset": offset, "answers": listed}


def _answer(context: AppContext, params: Mapping[str, str], base: str) -> dict:
    address = read_params(params, where="the request")
    return _recorded(lambda: _open(context, address.run, base).at(address))


def _quote(context: AppContext, params: Mapping[str, str], base: str) -> dict:
    address = read_params(params, where="the request")
    last = _number(params, "last", None)
    if last is not None and address.token is None:
        raise TraceError("last needs token. Add token=N, or remove last.")
    if address.evaluation:
        raise TraceError("an evaluation records no tokens to check a quote with. Quote a training answer or a probe.")
    key = {name: getattr(address, name) for name in ("step", "rollout", "process", "probe", "token")}
    answers = _open(context, address.run, base)
    return {"markdown": _recorded(lambda: answers.quote(**key, last=last))}


def _recorded(read: Callable[[], Any]) -> Any:
    """`read` of an answer. Raises _NotRecorded in place of TraceError."""
    try:
        return read()
    except TraceError as error:
        raise _NotRecorded(str(error)) from None


def _verdicts(context: AppContext, params: Mapping[str, str], base: str) -> list[dict]:
    run_dir = context.run_dir(_name(params.get("run")))
    return plain_values([asdict(verdict) for verdict in verdicts(run_dir, TRACES.of(run_dir))])


def _open(context: AppContext, name: str | None, base: str) -> Answers:
    """The answers of a run. Raises RunError if it does not exist."""
    run_dir = context.run_dir(_name(name))
    return Answers(run_dir, TRACES.of(run_dir), name or "", base)


def _name(name: str | None) -> str:
    if not name:
        raise TraceError("the parameter run is missing. Add run=NAME; /api/runs lists the names.")
    return name


def _number(params: Mapping[str, str], name: str, default: int | None) -> Any:
    """A parameter that is a whole number. Raises TraceError."""
    text = params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise TraceError(f"{name}={show(text)} is not a whole number. Correct it; limit is at most {MAX_LISTED}.")
    return int(text)


ENDPOINTS: dict[str, tuple[Read, tuple[str, ...]]] = {
    "": (_index, ()),
    "/runs": (_runs, ()),
    "/answers": (_answers, ("run", "filter", "limit", "offset")),
    "/answer": (_answer, _ANSWER),
    "/quote": (_quote, (*_ANSWER, "last")),
    "/verdicts": (_verdicts, ("run",)),
}
