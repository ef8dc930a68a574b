"""The guides as pages: every tab has its section, links lead somewhere, and a password protects them."""

import re
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from workbench.app.guide import GUIDES, SECTIONS, anchor, guide_html, guide_routes
from workbench.app.layout import TABS

DOCS = Path(__file__).parents[2] / "docs"


def ids_of(name: str) -> list[str]:
    return re.findall(r'<h\d id="([^"]*)"', guide_html(name))


def test_guide_has_a_section_for_every_tab() -> None:
    assert set(SECTIONS) == set(TABS) and set(SECTIONS.values()) <= set(ids_of("reading-the-pictures"))
    assert anchor("Runs: New run") == "runs-new-run" and anchor("What all have in common") == "what-all-have-in-common"


@pytest.mark.parametrize("name", GUIDES)
def test_guide_links_lead_to_sections_that_are_there(name: str) -> None:
    html = guide_html(name)
    assert html.count("<h1") == 1 and "<script" not in html and "<img" not in html
    for target in re.findall(r'<a href="([^"]*)"', html):
        page, _, section = target.partition("#")
        assert page in ("", *GUIDES) or page.startswith("https://"), target
        if not page.startswith("https://") and section:
            assert section in ids_of(page or name), target


def test_guide_link_to_a_file_that_is_not_shipped_is_text() -> None:
    assert "](traces.md)" in (DOCS / "answers.md").read_text()
    assert "traces.md" not in "".join(re.findall(r'href="([^"]*)"', guide_html("answers")))
    assert "<span>traces.md</span>" in guide_html("answers")


def test_guide_route_needs_a_login_and_a_name() -> None:
    app = Starlette(routes=guide_routes())
    app.auth, app.auth_dependency = None, None
    client = TestClient(app)
    assert client.get("/guide/glossary").text == guide_html("glossary")
    refused = client.get("/guide/LOG")
    assert refused.status_code == 404 and "reading-the-pictures" in refused.text
    assert client.get("/guide/..%2FREADME").status_code == 404
    app.auth, app.cookie_id, app.tokens = {"ada": "x"}, "1", {}
    assert client.get("/guide/glossary").status_code == 401
