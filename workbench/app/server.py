"""Serve the page: host, port, users and middleware.

1. Starting a run executes a program, so other machines need a password: a host other than this machine requires
   `--auth FILE` or `--read-only`.
2. Users and passwords come from a file, since every user of the machine can read a command line.
3. The page loads nothing from a network and sends nothing to one.
4. Other pages in the same browser can neither read this page nor act through it: see origins.py.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from workbench.app.api import api_routes
from workbench.app.context import MAX_UPLOAD_MB, AppContext
from workbench.app.gradio_private import NO_SELF_REQUEST, EarlyHead, slow_queue
from workbench.app.guide import guide_routes
from workbench.app.layout import build_app, early_head, page_style
from workbench.app.limits import MAX_SESSIONS, MAX_WAITING, LoginDelay, RequestLimits
from workbench.app.origins import OriginGuard, Origins, read_allowed, read_frames
from workbench.errors import ConfigError, RunError
from workbench.files.hosts import check_port, is_local
from workbench.files.shipped import RECIPES
from workbench.runs.run_queue import default_limit, set_limit


def serve(
    runs: str | Path = "runs",
    *,
    configs: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    read_only: bool = False,
    auth: str | Path | None = None,
    allow_hosts: Sequence[str] = (),
    allow_frames: Sequence[str] = (),
    allow_dirs: Sequence[str | Path] = (),
    max_runs: int | None = None,
) -> gr.Blocks:
    """Open the app and serve it in a thread; its block_thread() waits for an interrupt.

    configs       folder of recipes; None = configs/ if it exists, otherwise the built-in recipes
    auth          file with lines of user:password
    allow_hosts   further host names that the page answers to, such as a proxy's
    allow_frames  origins of sites that may show the page in a frame, such as a notebook's or https://huggingface.co
    allow_dirs    folders that images of data may be in, besides the data file's own
    max_runs      largest number of runs that train at a time, others are queued; None = as devices and memory allow

    Raises: ConfigError for an invalid host, port or file; RunError if the port is in use.
    """
    origins = Origins(host, read_allowed(allow_hosts), read_frames(allow_frames))
    if max_runs is not None and max_runs < 1:
        raise ConfigError(f"--max-runs must be at least 1, got {max_runs}.")
    users = read_users(auth) if auth is not None else None
    check_host(host, has_password=users is not None, read_only=read_only)
    check_port(host, port)
    runs = _runs_folder(runs)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    max_runs = default_limit() if max_runs is None else max_runs
    if not read_only:
        set_limit(runs, max_runs)
    context = AppContext(runs, _recipes(configs), read_only, read_folders(allow_dirs), max_runs)
    app, routes = build_app(context), [*api_routes(context), *guide_routes()]
    app.queue(default_concurrency_limit=8, max_size=MAX_WAITING)
    slow_queue(app)
    app.launch(
        server_name=host,
        server_port=port,
        auth=users,
        share=False,
        inbrowser=False,
        quiet=True,
        show_error=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        **NO_SELF_REQUEST,
        max_file_size=1 if read_only else f"{MAX_UPLOAD_MB}mb",
        prevent_thread_lock=True,
        state_session_capacity=MAX_SESSIONS,
        app_kwargs={"middleware": _middleware(app, origins, read_only=read_only), "routes": routes},
        **page_style(),
    )
    return app


def _runs_folder(path: str | Path) -> Path:
    runs = Path(path)
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"runs folder {runs} cannot be created ({error.strerror}). Choose another with --runs."
        ) from None
    return runs


def _middleware(app: gr.Blocks, origins: Origins, *, read_only: bool) -> list[Middleware]:
    """Middleware before Gradio, outermost first."""
    return [
        Middleware(OriginGuard, origins=origins),
        Middleware(RequestLimits, blocks=app, read_only=read_only),
        Middleware(LoginDelay),
        Middleware(EarlyHead, head=early_head()),
    ]


def _recipes(configs: str | Path | None) -> Path:
    if configs is not None:
        return Path(configs)
    return Path("configs") if Path("configs").is_dir() else RECIPES


def read_users(file: str | Path) -> list[tuple[str, str]]:
    """Users and passwords. Raises ConfigError naming the line that is wrong."""
    try:
        lines = Path(file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}). Write lines of user:password into it.") from None
    users = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        user, colon, password = line.strip().partition(":")
        if not (user and colon and password):
            # the message leaves the line out: it may hold a password
            raise ConfigError(f"{file}:{number} is not user:password. Correct the line.")
        users.append((user, password))
    if not users:
        raise ConfigError(f"{file} lists no users. Write lines of user:password into it.")
    return users


def read_folders(folders: Sequence[str | Path]) -> tuple[Path, ...]:
    """Folders given with --allow-dir. Raises ConfigError naming one that does not exist."""
    for folder in folders:
        if not Path(folder).is_dir():
            raise ConfigError(f'--allow-dir "{folder}" is not a folder. Give one that exists.')
    return tuple(Path(folder).resolve() for folder in folders)


def check_host(host: str, *, has_password: bool, read_only: bool) -> None:
    """Raises ConfigError if other machines could start programs here without a password."""
    if has_password or read_only or is_local(host):
        return
    raise ConfigError(
        f"--host {host} would let other machines start runs here. Add --auth FILE with lines of user:password, or "
        "--read-only."
    )
