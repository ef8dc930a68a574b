"""Callbacks of the page whose errors become a message beside their outputs."""

from collections.abc import Callable, Iterator
from functools import wraps

import gradio as gr

from workbench.app.context import note, sentence
from workbench.errors import WorkbenchError


def with_message(callback: Callable, num_outputs: int, otherwise: Callable[[], object] = gr.skip) -> Callable:
    """The callback with a message before its outputs: "", or the error in the form. Also for generators.

    otherwise  makes each output's value after an error; default: the outputs stay as they are
    """

    def failed(error: Exception) -> tuple:
        return (note(sentence(error), "error"), *[otherwise()] * num_outputs)

    @wraps(callback, updated=())
    def safe(*values: object) -> Iterator[tuple]:
        try:
            result = callback(*values)
            for outputs in result if isinstance(result, Iterator) else [result]:
                yield ("", *outputs)
        except (WorkbenchError, OSError) as error:
            yield failed(error)

    return safe
