"""Commands of the workbench that the page runs to their end, so that the app never loads a model."""

import re
import subprocess
import sys
from collections.abc import Sequence

from workbench.app.context import AppContext
from workbench.data.picture_bounds import as_variable
from workbench.errors import ConfigError
from workbench.runs.commands import copyable
from workbench.runs.processes import child_environment

_ERROR = re.compile(r"[A-Z]\w+: |file of weights: ")  # how the command line begins an error


def run_program(context: AppContext, command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a command such as ["workbench", "check", ...]. Raises ConfigError if it takes longer than `seconds`."""
    try:
        return subprocess.run(
            [sys.executable, "-m", *command],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env=child_environment() | as_variable(context.folders),
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"the command was stopped after {seconds:g} s. Run it in a terminal: {copyable(command)}"
        ) from None


def error_of(done: subprocess.CompletedProcess[str]) -> ConfigError:
    """The error that a command printed last, of one line or several: `DataError: 2 of 3 rows ...`."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    start = max((idx for idx, line in enumerate(lines) if _ERROR.match(line)), default=len(lines) - 1)
    error = "\n".join(lines[start:]) if lines else f"the command ended with exit code {done.returncode} and no message."
    return ConfigError(_ERROR.sub("", error))
