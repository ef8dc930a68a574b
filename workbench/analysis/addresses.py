"""The address of an answer or a token: what the page writes into the browser, and what links to it mean.

    http://127.0.0.1:7860/?run=demo&tab=answers&step=30&rollout=4&token=17

The same parameters name an answer on the command line, in Python, in JSON (`/api/answer?...`) and in quotes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

from workbench.errors import RunError, TraceError, show

DEFAULT_BASE = "http://127.0.0.1:7860"
TAB = "answers"
_NUMBERS = ("step", "rollout", "process", "token")


@dataclass(frozen=True)
class AnswerAddress:
    """Where an answer is recorded.

    run    name in the runs folder; STUDY/RUN for a run of a study
    probe  whether it is a probe, not a training answer
    evaluation  whether it is an answer of an evaluation; `rollout` is its index among those of the step
    token  index of a token in it, from 0; None = the whole answer
    """

    run: str
    step: int
    rollout: int
    process: int = 0
    probe: bool = False
    token: int | None = None
    evaluation: bool = False

    @property
    def params(self) -> dict[str, str]:
        """Parameters of the address without run and tab; defaults are left out."""
        values = {
            "step": self.step,
            "rollout": self.rollout,
            "process": self.process or None,
            "probe": 1 if self.probe else None,
            "evaluation": 1 if self.evaluation else None,
            "token": self.token,
        }
        return {name: str(value) for name, value in values.items() if value is not None}

    def url(self, base: str = DEFAULT_BASE) -> str:
        """The page's address of the answer. base: address of the app, with the path of a proxy if there is one."""
        query = urlencode({"run": self.run, "tab": TAB, **self.params}, safe="/")
        return f"{base.rstrip('/')}/?{query}"

    def at(self, token: int | None) -> "AnswerAddress":
        """The address of one of the answer's tokens."""
        return replace(self, token=token)

    def __str__(self) -> str:
        kind = "probe" if self.probe else "evaluation answer" if self.evaluation else "rollout"
        process = f", process {self.process}" if self.process else ""
        token = "" if self.token is None else f", token {self.token}"
        return f"{self.run}, step {self.step}, {kind} {self.rollout}{process}{token}"


def parse_address(text: str) -> AnswerAddress:
    """Parse an address of the page, or its query alone. Raises TraceError naming the parameter that is wrong."""
    query = urlsplit(text).query or text.lstrip("?")
    return read_params({key: values[-1] for key, values in parse_qs(query).items()}, where=text)


def read_params(params: Mapping[str, str], *, where: str = "the address") -> AnswerAddress:
    """Read an answer's address from parameters. Raises TraceError naming the parameter that is missing or wrong.

    where  what the parameters are from, for the message
    """
    numbers: dict[str, int] = {}
    for name in _NUMBERS:
        value = params.get(name) or ""
        if value and not (value.isascii() and value.isdecimal() and len(value) <= 9):
            raise TraceError(f"{name}={show(value)} in {where} is not a whole number. Correct it.")
        if value:
            numbers[name] = int(value)
    for name, present in (("run", params.get("run")), ("step", "step" in numbers), ("rollout", "rollout" in numbers)):
        if present in (None, "", False):
            raise TraceError(
                f"{name} is missing in {where}. Expected run=NAME&step=N&rollout=N, and token=N for a token."
            )
    probe, evaluation = (params.get(name) in ("1", "true") for name in ("probe", "evaluation"))
    return AnswerAddress(params["run"], probe=probe, evaluation=evaluation, **numbers)


def is_answer_address(text: str) -> bool:
    """Whether a link leads to an answer of the page; links elsewhere, or to other tabs, do not."""
    try:
        params = parse_qs(urlsplit(text).query)
    except ValueError:
        return False
    return params.get("tab") == [TAB] and "step" in params


def name_in(run_dir: str | Path, runs_dir: str | Path) -> tuple[str, Path]:
    """The page's name of a run, and the folder of runs that the page must show.

    A run outside of `runs_dir` is named in its own parent folder. Raises RunError if `run_dir` does not exist.
    """
    folder = Path(run_dir).resolve()
    if not folder.is_dir():
        raise RunError(f"{run_dir} does not exist. Give the folder of a run, as in runs/my-run.")
    root = Path(runs_dir).resolve()
    parts = folder.relative_to(root).parts if folder.is_relative_to(root) else ()
    return ("/".join(parts), root) if len(parts) in (1, 2) else (folder.name, folder.parent)
