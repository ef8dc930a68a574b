"""`workbench app`: its options, and opening the app with them."""

import argparse
from typing import TYPE_CHECKING

from workbench.files.packages import importing

if TYPE_CHECKING:
    from gradio import Blocks


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `workbench app`."""
    parser.add_argument("--runs", default="runs", help="folder of all runs")
    parser.add_argument(
        "--configs", help="folder of recipes to start from; default: configs/, else the built-in recipes"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; other machines need --auth or --read-only"
    )
    parser.add_argument("--port", type=int, default=7860, help="port to listen on; default: 7860")
    parser.add_argument("--read-only", action="store_true", help="show runs, but neither start nor stop them")
    parser.add_argument("--auth", metavar="FILE", help="file with accounts, one user:password per line")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="further host name of the page, e.g. of a proxy; may be repeated",
    )
    parser.add_argument(
        "--allow-frame",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="site that may embed the page, e.g. http://localhost:8888 for a notebook; may be repeated",
    )
    parser.add_argument(
        "--allow-dir",
        action="append",
        default=[],
        metavar="FOLDER",
        help="further folder from which images may be read, besides that of the data file; may be repeated",
    )
    parser.add_argument(
        "--max-runs",
        type=int,
        metavar="N",
        help="limit of active runs, others wait; default: one per accelerator, else by cores and memory",
    )


def open_app(options: argparse.Namespace) -> "Blocks":
    """Serve the page in a thread. Raises ConfigError if gradio cannot be imported."""
    with importing("this command needs", "app"):
        from workbench.app.server import serve  # noqa: PLC0415  (gradio: seconds, and an extra)
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
