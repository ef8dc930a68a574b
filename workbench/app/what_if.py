"""What if? The listed example's answer scored again with the evidence taken away or swapped, or a token edited."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from workbench.app.change_strips import change_html
from workbench.app.components import remount
from workbench.app.context import AppContext
from workbench.app.scoring import SCORER, Change
from workbench.errors import DataError
from workbench.traces.reader import TracedRollout
from workbench.types import Example

AWAY, SWAP, EDIT = "away", "swap", "edit"
KINDS = (("take the evidence away", AWAY), ("another example's evidence", SWAP), ("edit a token", EDIT))


@dataclass(frozen=True)
class WhatIfForm:
    """Components of the form; `inputs` in the order of `what_if`'s last arguments."""

    inputs: list[gr.components.Component]
    button: gr.Button


def what_if_form(is_open: bool) -> WhatIfForm:
    """Lay out the form, in one row."""
    with gr.Row(elem_classes="wbu-bar", elem_id="data-what-if"):
        kind = gr.Radio(KINDS, value=AWAY, label="what if", elem_id="data-change", interactive=is_open, scale=3)
        other = gr.Textbox(
            label="evidence of example",
            placeholder="id; empty: any that contradicts",
            max_lines=1,
            elem_id="data-other",
            interactive=is_open,
            visible=False,
        )
        token = gr.Number(
            1, label="token, from 1", precision=0, minimum=1, elem_id="data-token", interactive=is_open, visible=False
        )
        text = gr.Textbox(
            label="becomes", placeholder="empty: deleted", elem_id="data-becomes", interactive=is_open, visible=False
        )
        button = gr.Button("Compare", elem_id="data-compare", scale=0, min_width=120, interactive=is_open)

    def show(chosen: str) -> tuple:
        is_edit = chosen == EDIT
        return gr.update(visible=chosen == SWAP), gr.update(visible=is_edit), gr.update(visible=is_edit)

    kind.change(show, kind, [other, token, text], show_progress="hidden", api_visibility="private", queue=False)
    return WhatIfForm([kind, other, token, text], button)


def what_if(
    context: AppContext,
    run: str | None,
    example: Example,
    examples: list[Example],
    given: str | None,
    kind: str,
    other: str | None,
    token: float | None,
    text: str | None,
) -> str:
    """The answer before and after a change, as HTML.

    given, other, token, text  answer, or None for one that the student samples; id of the example whose evidence is
                               shown, or None; number of the edited token from 1, and its new text

    Raises: DataError or TraceError if the change is not possible.
    """
    context.check_writable()
    change, title = _change(kind, examples, other, token, text or "")
    before, after = SCORER.compare(context.run_dir(run), example, (given or "").strip() or None, (change,))
    return remount(change_html(before, after, title=f"{title}: {before.answer}"))


def _change(
    kind: str, examples: list[Example], other: str | None, token: float | None, text: str
) -> tuple[Change, str]:
    """The change, and its title."""
    if kind == EDIT:
        if token is None or token < 1:
            raise DataError("the number of the token is missing. Enter one from 1.")
        return partial(_edited, position=int(token) - 1, text=text), f"token {int(token)} becomes “{text}”"
    if kind == SWAP:
        label = f"evidence of {other}" if other else "evidence of another example"
        return partial(_swapped, examples=examples, other=other or ""), label
    return _taken_away, "without the evidence"


# transformers takes seconds to import, so these functions import what scores
def _taken_away(scorer: Any, example: Example, before: TracedRollout) -> TracedRollout:
    from workbench.training.counterfactual import without_evidence  # noqa: PLC0415

    return without_evidence(scorer, example, before)


def _swapped(
    scorer: Any, example: Example, before: TracedRollout, *, examples: list[Example], other: str
) -> TracedRollout:
    from workbench.training.counterfactual import others_of, with_evidence_of  # noqa: PLC0415

    others = others_of(example, examples, scorer.method)
    if other:
        others = [item for item in examples if item.id == other]
        if not others:
            raise DataError(f'the list has no example "{other}". Enter the id of one, or leave the field empty.')
    if not others:
        raise DataError(
            "no other example of this source has the evidence that the run's views see. Choose another source."
        )
    return with_evidence_of(scorer, example, others[0], before)


def _edited(scorer: Any, example: Example, before: TracedRollout, *, position: int, text: str) -> TracedRollout:
    from workbench.training.counterfactual import with_token  # noqa: PLC0415

    if position >= len(before.tokens):  # the page counts from 1
        raise DataError(f"the answer has no token {position + 1}. Enter a number from 1 to {len(before.tokens)}.")
    return with_token(scorer, example, before, position, text)
