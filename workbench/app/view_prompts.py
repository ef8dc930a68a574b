"""The prompts of an example as each view's model reads them, with the tokens that they and their images cost.

Only processors are loaded, no weights. Those of the run used last stay in memory.
"""

import threading
from html import escape
from pathlib import Path
from typing import Any

from workbench.analysis.table import table
from workbench.app.components import Column, remount, rows_html
from workbench.config.models import refuse_remote_code
from workbench.config.schema import load_config
from workbench.types import Example

COLUMNS = (
    Column("view", kind="short"),
    Column("model", kind="short"),
    Column("context", kind="short"),
    Column("tokens", kind="number"),
    Column("of images", kind="number"),
    Column("images", kind="number"),
)


class EncoderCache:
    """The processors of the run used last. One thread uses them at a time."""

    def __init__(self) -> None:
        self._key: tuple | None = None
        self._encoders: Any = None  # workbench.training.prompts.Encoders
        self._lock = threading.Lock()

    def render(self, run_dir: Path, example: Example) -> list[Any]:
        """The prompts of an example under the views of the run's method, a ViewPrompt each."""
        from workbench.training.prompts import Encoders  # noqa: PLC0415  (transformers takes seconds to import)

        file = run_dir / "config.yaml"
        with self._lock:
            config = load_config(file)
            refuse_remote_code(config, f"workbench prompts {file}")
            key = (file, file.stat().st_mtime_ns)
            if key != self._key:
                self._encoders, self._key = Encoders(config), key
            return self._encoders.render(example)


ENCODERS = EncoderCache()


def prompts_html(run_dir: Path, example: Example) -> str:
    """A table of the views with their prompts' tokens, and each prompt's text to unfold.

    Raises: WorkbenchError if a processor or a prompt cannot be read.
    """
    prompts = ENCODERS.render(run_dir, example)
    rows = [
        {
            "view": prompt.view,
            "model": prompt.policy,
            "context": f"{prompt.context}: {prompt.why}" if prompt.why else prompt.context,
            "tokens": None if prompt.why else prompt.length,
            "of images": None if prompt.why else prompt.image_tokens,
            "images": None if prompt.why else prompt.images,
        }
        for prompt in prompts
    ]
    costs = table(rows, [column.name for column in COLUMNS], run=example.id, empty="This method has no views.")
    drawn = rows_html(costs, COLUMNS, label="prompts by view", title="Prompts, as each view's model reads them")
    texts = "".join(
        f"<details><summary>{escape(prompt.view)}</summary><pre>{escape(prompt.text)}</pre></details>"
        for prompt in prompts
        if not prompt.why
    )
    return remount(f'<div class="wbu-prompts">{drawn}{texts}</div>')
