"""The guides of docs/ as pages of the app, /guide/NAME, so that a link beside a figure leads to its section."""

import functools
import itertools
import re
from html import escape

from markdown_it import MarkdownIt
from markdown_it.token import Token
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from workbench.app.gradio_private import is_logged_in
from workbench.files.shipped import BUILT_IN

GUIDES = {  # file of docs/ -> title
    "reading-the-pictures": "App guide",
    "glossary": "Glossary",
    "answers": "Answers by address",
    "rollouts": "Rollouts of other trainers",
    "data": "Data",
    "evaluation": "Benchmarks",
    "commands": "Commands",
    "app": "Access to the app",
}
SECTIONS = {  # tab -> its section of the app guide
    "runs": "runs-all-runs",
    "new-run": "runs-new-run",
    "score": "runs-score-rollouts",
    "studies": "studies",
    "training": "training-charts",
    "movement": "training-movement",
    "geometry": "geometry",
    "answers": "answers-browse",
    "compare": "compare",
    "leakage": "leakage",
    "data": "data",
}
_STYLE = """
:root { color-scheme: light dark; }
body {
  margin: 0 auto; max-width: 880px; padding: 24px 20px 80px; font: 15px/1.6 system-ui, sans-serif;
  color: light-dark(#12161b, #e9ecef); background: light-dark(#f7f8f9, #101316);
}
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 14px; margin-bottom: 24px; }
a { color: light-dark(#0072b2, #4aa9e6); }
h1 { font-size: 26px; } h2 { font-size: 19px; margin-top: 40px; } h3 { font-size: 16px; }
:target { background: light-dark(#d3e6f4, #24485f); }
pre, code { font: 13px/1.5 ui-monospace, monospace; background: light-dark(#eceef0, #1f242a); border-radius: 4px; }
code { padding: 1px 4px; } pre { padding: 10px 12px; overflow-x: auto; } pre code { padding: 0; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 14px; }
th, td { text-align: left; vertical-align: top; padding: 6px 12px 6px 0; }
th, td { border-bottom: 1px solid light-dark(#dfe2e6, #333940); }
"""


def guide_routes() -> list[Route]:
    """Routes of the guides, for the app's server."""
    return [Route("/guide/{name}", _guide, methods=["GET"])]


async def _guide(request: Request) -> Response:
    if not is_logged_in(request):
        return PlainTextResponse("Log in to the app first.", 401)
    name = request.path_params["name"]
    if name not in GUIDES:
        return PlainTextResponse(f"There is a guide for each of: {', '.join(GUIDES)}.", 404)
    return HTMLResponse(guide_html(name))


@functools.cache
def guide_html(name: str) -> str:
    """A guide as a page. Links to other guides lead to their pages; links to other files of the repository are text."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse((BUILT_IN / "docs" / f"{name}.md").read_text(encoding="utf-8"))
    for token, text in itertools.pairwise(tokens):
        if token.type == "heading_open":
            token.attrSet("id", anchor(text.content))
    for token in tokens:
        _point_links(token.children or [])
    body = markdown.renderer.render(tokens, markdown.options, {})
    links = "".join(f'<a href="{other}">{escape(title)}</a>' for other, title in GUIDES.items())
    title = escape(f"{GUIDES[name]} · Distillation workbench")
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><nav>{links}</nav><main>{body}</main></body></html>"
    )


def anchor(heading: str) -> str:
    """The anchor of a heading, as code hosts make it of Markdown: "Runs: New run" -> "runs-new-run"."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _point_links(tokens: list[Token]) -> None:
    """Change the links of a line in place."""
    opened: list[Token] = []
    for token in tokens:
        if token.type == "link_open":
            opened.append(token)
            target = str(token.attrGet("href"))
            guide = re.fullmatch(r"([\w-]+)\.md(#.*)?", target)
            if guide and guide[1] in GUIDES:
                token.attrSet("href", f"{guide[1]}{guide[2] or ''}")
            elif not target.startswith(("#", "https://")):
                token.tag = "span"
                token.attrs = {}
        elif token.type == "link_close":
            token.tag = opened.pop().tag
