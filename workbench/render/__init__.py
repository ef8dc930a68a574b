"""Render an answer token by token beside its image evidence, for the app, notebooks, reports and the terminal.

    a recorded answer (workbench.traces) -> token_view -> TokenView
    TokenView -> render_tokens   -> one HTML fragment      (render_page joins fragments to a document)
              -> render_terminal -> colored or plain text
    render_movement: the regimes of one answer over training, as a heatmap

A host page that replaces its content, as Gradio does, puts `page_head()` into its head once and uses fragments with
standalone=False. assets/tokens.js makes fragments interactive.
"""

from workbench.render.colors import QUANTITIES
from workbench.render.from_trace import token_view
from workbench.render.heatmap import render_movement
from workbench.render.html import THEMES, page_head, render_tokens
from workbench.render.page import render_page
from workbench.render.terminal import render_terminal
from workbench.render.text import consequence, explain
from workbench.render.view import RegimeNote, TokenCell, TokenView, ViewImage

__all__ = [
    "QUANTITIES",
    "THEMES",
    "RegimeNote",
    "TokenCell",
    "TokenView",
    "ViewImage",
    "consequence",
    "explain",
    "page_head",
    "render_movement",
    "render_page",
    "render_terminal",
    "render_tokens",
    "token_view",
]
