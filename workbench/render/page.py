"""A self-contained HTML document around fragments. Its content security policy forbids loading anything."""

from collections.abc import Sequence
from html import escape

from workbench.errors import require_one_of
from workbench.render.html import THEMES, page_head

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_LAYOUT = """
body{margin:0;padding:20px clamp(12px,2vw,36px) 48px;
background:light-dark(#f5f6f7,#101316);color:light-dark(#12161b,#e9ecef);
font:15px/1.5 Inter,ui-sans-serif,system-ui,-apple-system,"Segoe UI","Liberation Sans",Arial,sans-serif}
h1{font-size:20px;margin:0 0 16px}h2{font-size:16px;margin:32px 0 10px}.wb-section{max-width:1880px;margin:0 0 28px}
.wb-section>.wb-root{background:none}
"""


def render_page(sections: Sequence[str | tuple[str, str]], title: str, *, theme: str = "auto") -> str:
    """Make an HTML document of sections, each a fragment or (heading, fragment), standalone or not.

    Raises: ConfigError for an unknown theme.
    """
    require_one_of("theme", theme, THEMES)
    scheme = "light dark" if theme == "auto" else theme
    parts = []
    for section in sections:
        heading, fragment = ("", section) if isinstance(section, str) else section
        parts.append(
            f'<section class="wb-section">{f"<h2>{escape(heading)}</h2>" if heading else ""}{fragment}</section>'
        )
    return (
        f'<!DOCTYPE html>\n<html lang="en" style="color-scheme:{scheme}"{" class=dark" if theme == "dark" else ""}>'
        f'<head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><title>{escape(title)}</title>'
        f"<style>{_LAYOUT}</style>{page_head()}</head><body><h1>{escape(title)}</h1>{''.join(parts)}</body></html>"
    )
