"""`workbench app`: its options, and opening the app with them."""

import argparse
from typing import TYPE_CHECKING

from workbench.errors import ConfigError

if TYPE_CHECKING:
    from gradio import Blocks


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `workbench app`."""
    parser.add_argument("--runs", default="runs", help="folder of all runs")
    parser.add_argument(
        "--configs", help="folder of recipes to start from; default: configs/, else the built-in recipes"
    )
    parser.add_argument("--host", default="127.0.0.1", help="another one than this machine needs --auth or --read-only")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--read-only", action="store_true", help="look, but neither start nor stop")
    parser.add_argument("--auth", metavar="FILE", help="who may look: lines of user:password")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name that the page answers to, as that of a proxy; may be repeated",
    )
    parser.add_argument(
        "--allow-frame",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="a site that may show the page in a frame, as http://localhost:8888 for a notebook; may be repeated",
    )
    parser.add_argument(
        "--allow-dir",
        action="append",
        default=[],
        metavar="FOLDER",
        help="where pictures of data may lie besides the data file's own folder; may be repeated",
    )
    parser.add_argument(
        "--max-runs",
        type=int,
        metavar="N",
        help="runs at work at once, further ones wait; default: one for each accelerator, else what cores and memory hold",
    )


def open_app(options: argparse.Namespace) -> "Blocks":
    """Serve the page in a thread. Raises ConfigError if gradio is not installed."""
    try:
        from workbench.app.server import serve  # noqa: PLC0415  (gradio: seconds, and an extra)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"this command needs {error.name}: pip install 'vlm-distillation-workbench[app]', or [app] added to the "
            "installation from a clone: pip install -e '.[app]'."
        ) from None
    return serve(
        options.runs,
        configs=options.configs,
        host=options.host,
        port=options.port,
        read_only=options.read_only,
        auth=options.auth,
        allow_hosts=options.allow_host,
        allow_frames=options.allow_frame,
        allow_dirs=options.allow_dir,
        max_runs=options.max_runs,
    )
