"""The requests that the page answers, by host, port and headers. test_browser_origins.py has the browser's own."""

import pytest
from failures import raises

from workbench.app.origins import Origins, read_allowed, read_authority, read_frames, refusal
from workbench.errors import ConfigError

PROXIED = Origins("127.0.0.1", read_allowed(["wb.example.org", "other.example.org:8443"]))


def requested(
    host: str | None,
    origins: Origins = PROXIED,
    *,
    at: str = "127.0.0.1",
    method: str = "POST",
    path: str = "/gradio_api/queue/join",
    kind: str = "http",
    **headers: str,
) -> str | None:
    pairs = ([] if host is None else [("host", host)]) + [
        (name.replace("_", "-"), text) for name, text in headers.items()
    ]
    raw = [(name.encode(), text.encode()) for name, text in pairs]
    return refusal(origins, {"type": kind, "method": method, "path": path, "server": (at, 7860), "headers": raw})


@pytest.mark.parametrize(
    ("host", "at"),
    [
        ("localhost:7860", "127.0.0.1"),
        ("LOCALHOST.:7860", "127.0.0.1"),
        ("127.0.0.1:8888", "127.0.0.1"),  # through a tunnel
        ("[::1]:7860", "::1"),
        ("127.0.0.1", "::ffff:127.0.0.1"),
        ("wb.example.org", "127.0.0.1"),
        ("other.example.org:8443", "127.0.0.1"),
        ("192.168.1.7:7860", "192.168.1.7"),
        ("[fd00::7]:7860", "fd00::7%eth0"),
    ],
)
def test_refusal_served_or_allowed_host_answers(host: str, at: str) -> None:
    assert requested(host, at=at) is None


@pytest.mark.parametrize(
    ("host", "at"),
    [
        ("evil.example:7860", "127.0.0.1"),
        ("localhost.evil.example", "127.0.0.1"),
        ("127.0.0.1.evil.example:7860", "127.0.0.1"),
        ("other.example.org:80", "127.0.0.1"),
        ("192.168.1.8:7860", "192.168.1.7"),
        ("localhost:7860", "192.168.1.7"),
        ("", "127.0.0.1"),
        (None, "127.0.0.1"),
        ("user@127.0.0.1:7860", "127.0.0.1"),
        ("127.0.0.1:port", "127.0.0.1"),
        ("127.0.0.1/x", "127.0.0.1"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_refusal_other_host_any_method_names_option(host: str | None, at: str, method: str) -> None:
    for path in ("/", "/config", "/gradio_api/upload"):
        assert "--allow-host NAME" in requested(host, at=at, method=method, path=path)


def test_refusal_two_host_headers_refuses() -> None:
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "server": ("127.0.0.1", 1),
        "headers": [(b"host", b"localhost")] * 2,
    }
    assert refusal(PROXIED, scope) is not None


def test_refusal_wildcard_answers_connection_and_machine_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Box.lan")
    everywhere = Origins("0.0.0.0")
    for host in ("10.0.0.4:7860", "box.lan:7860", "box:7860", "0.0.0.0:7860"):
        assert requested(host, everywhere, at="10.0.0.4") is None, host
    assert requested("localhost:7860", everywhere) is None
    assert requested("10.0.0.5:7860", everywhere, at="10.0.0.4") is not None


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "http://localhost:7860"},  # the same server under another name is another page
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "file://"},
        {"origin": "chrome-extension://abc"},
        {"origin": "http://127.0.0.1:7860.evil.example"},
        {"origin": "http://[bad"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"},
        {"referer": "http://127.0.0.1:9999/page"},
        {"referer": "http://evil.example/"},
    ],
)
def test_refusal_other_page_headers_refuses(method: str, headers: dict[str, str]) -> None:
    assert "Expected the page itself" in requested("127.0.0.1:7860", method=method, **headers)
    assert requested("127.0.0.1:7860", kind="websocket", **headers) is not None


@pytest.mark.parametrize(
    ("host", "headers"),
    [
        ("127.0.0.1:7860", {"origin": "http://127.0.0.1:7860"}),
        ("[::1]:7860", {"origin": "http://[::1]:7860"}),
        ("127.0.0.1:7860", {"sec_fetch_site": "same-origin"}),
        ("127.0.0.1:7860", {"sec_fetch_site": "none"}),
        ("127.0.0.1:7860", {"referer": "http://127.0.0.1:7860/?run=a"}),
        ("127.0.0.1:7860", {}),  # no browser
        ("wb.example.org", {"origin": "https://wb.example.org"}),  # a proxy that ends TLS
        ("wb.example.org", {"origin": "https://wb.example.org:443"}),
        ("127.0.0.1:7860", {"origin": "https://wb.example.org"}),  # a proxy that writes its own Host
        ("127.0.0.1:7860", {"origin": "https://other.example.org:8443"}),
    ],
)
def test_refusal_own_page_or_program_answers(host: str, headers: dict[str, str]) -> None:
    assert requested(host, at="::1" if "::" in host else "127.0.0.1", **headers) is None


def test_refusal_foreign_link_opens_and_frame_needs_permission() -> None:
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    frame = {**link, "sec_fetch_dest": "iframe"}
    framed = Origins(frames=read_frames(["https://huggingface.co"]))
    assert requested("localhost:7860", method="GET", path="/", **link) is None
    assert requested("localhost:7860", method="GET", path="/", **frame) is not None
    assert requested("localhost:7860", framed, method="GET", path="/", **frame) is None
    for path in ("/logout", "/config", "/gradio_api/deep_link", "/gradio_api/file=/x"):
        assert requested("localhost:7860", framed, method="GET", path=path, **link) is not None, path
    picture = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors", "sec_fetch_dest": "image"}
    assert requested("localhost:7860", method="GET", path="/", **picture) is not None


def test_read_allowed_invalid_names_and_frames_raise() -> None:
    for name in ("http://a", "a/b", "*", "*.a", "", "a:b", "u@a"):
        with raises(ConfigError, "--allow-host"):
            read_allowed([name])
    for site in ("huggingface.co", "*", "https://a/b", "https://a; script-src *", "ftp://a", ""):
        with raises(ConfigError, "--allow-frame"):
            read_frames([site])
    assert read_allowed(["[::1]:80", "A.org"]) == (("::1", 80), ("a.org", None))
    assert read_authority("localhost:99999") is None
