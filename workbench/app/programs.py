"""Commands of the workbench that the page runs to their end, so that the app never loads a model."""

import subprocess
import sys
from collections.abc import Sequence

from workbench.app.context import AppContext
from workbench.data.picture_bounds import as_variable
from workbench.errors import ConfigError
from workbench.runs.commands import copyable
from workbench.runs.processes import child_environment


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
    """The last line that a command printed as its error."""
    errors = [line for line in done.stderr.splitlines() if line.strip()]
    error = errors[-1] if errors else f"the command ended with exit code {done.returncode} and no message."
    return ConfigError(error.partition(": ")[2] or error)
