"""Cost of the app: the first page and every tab over a large run, drawing in the browser, and watching a run.

    python -m benchmarks app page [--runs FOLDER]     first page, tabs, selections in Chromium; memory of the server
    python -m benchmarks app draw                     an answer of 512 tokens, three top tokens per view, in Chromium
    python -m benchmarks app monitor [--pairs 12]       training with the page open on it against training without

`page` needs a folder with a run called "big", which `python benchmarks/big_run.py --folder runs/big` creates; without
--runs it creates one. It uses the system's Chromium, headless.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks import big_run
from workbench.config.schema import load_config
from workbench.render import page_head, render_tokens
from workbench.render.view import RegimeNote, TokenCell, TokenView
from workbench.runs.jobs import read_job, start_run, stop_run

ROOT = Path(__file__).parent.parent
DRAWN = {  # what a tab has when it is drawn
    "training": "#training-charts .main-svg",
    "answers": "#answers-answer .wb-detail .wb-views",
    "movement": "#movement-shares .main-svg",
    "leakage": "#leakage-worst tbody tr",
    "report": "#report-about h2",
    "new-run": "#new-run-start",
}
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("page", "draw", "monitor"))
    parser.add_argument("--runs", type=Path, help='folder with the run "big"')
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--pairs", type=int, default=12, help="of monitor: how often the page is opened and closed")
    parser.add_argument("--seconds", type=float, default=15, help="of monitor: length of each turn")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started ends too
    with tempfile.TemporaryDirectory() as temporary, chromium() as browser:
        if args.what == "draw":
            draw(browser, args.repeats)
        elif args.what == "page":
            page(browser, args.runs or Path(temporary), args.repeats)
        else:
            watch(browser, Path(temporary), args.pairs, args.seconds)


# ---- the first page, tabs and selections ----------------------------------------------------------------------------


def page(browser: Browser, runs: Path, repeats: int) -> None:
    """Measure times from the request to the visible result. The server is a separate process, as in normal use."""
    if not (runs / "big" / "traces").is_dir():
        big_run.make_run(runs / "big", 10_000_000, 64, 160)
    print("wall: longer on a busy machine. processor: of server and browser, on an idle machine no less than wall")
    with serving(runs) as (address, server):
        print_costs(
            "first page: the run's state (2 s)",
            [seen(browser, server.pid, f"{address}/", "#app-first h2, #training-status h2") for _ in range(repeats)],
        )
        print_costs(
            "first page: it can be used",
            [seen(browser, server.pid, f"{address}/", "#training-status h2") for _ in range(repeats)],
        )
        print_costs(
            "first page: all its curves",
            [seen(browser, server.pid, f"{address}/", DRAWN["training"]) for _ in range(repeats)],
        )
        print_costs(
            "a link to Tokens: the answer",
            [seen(browser, server.pid, f"{address}/?run=big&tab=answers", DRAWN["answers"]) for _ in range(repeats)],
        )
        opened = browser.new_page(viewport={"width": 1280, "height": 1000})
        opened.goto(f"{address}/?run=big&tab=answers")
        opened.locator(DRAWN["answers"]).first.wait_for()
        opened.wait_for_timeout(2000)
        print_costs(
            "another answer, click to drawn", [choose(opened, server.pid, idx) for idx in range(1, 2 * repeats)]
        )
        opened.close()
        for name in ("movement", "leakage", "training", "new-run"):
            link = f"{address}/?run=big&tab={name}"
            print_costs(f"a link to the tab {name}", [seen(browser, server.pid, link, DRAWN[name])])
        print(f"{'largest memory of the server (1.5 GiB)':40}{peak_memory(server) / 2**30:7.2f} GiB")


def seen(browser: Browser, server: int, address: str, selector: str) -> "Cost":
    """Measure the time until the element is visible, with an empty browser cache and an idle server."""
    rest(server)
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    opened = context.new_page()
    with Meter(server) as meter:
        opened.goto(address, wait_until="commit")
        opened.locator(selector).first.wait_for()
    context.close()
    return meter.cost


def rest(pid: int) -> None:
    """Wait until a process has been idle for half a second."""
    before, now = -1.0, processor_s(pid)
    while now - before > 0.05:
        time.sleep(0.5)
        before, now = now, processor_s(pid)


def choose(opened: Page, server: int, row_idx: int) -> "Cost":
    """Measure the time from the click on a row to its answer on the page."""
    row = opened.locator("#answers-list tr[data-key]").nth(row_idx % 20)
    key = json.loads(row.get_attribute("data-key"))
    with Meter(server) as meter:
        opened.evaluate(
            """async ([place, wanted]) => {
                const row = document.querySelectorAll('#answers-list tr[data-key]')[place];
                const parts = () => [...document.querySelector('#answers-answer .wb-meta').children];
                const is_there = () => parts().some(one => one.textContent.replace(/\\s+/g, ' ').trim() === wanted);
                row.click();
                while (!is_there()) await new Promise(requestAnimationFrame);
            }""",
            [row_idx % 20, f"rollout {key['rollout']}"],
        )
    return meter.cost


# ---- drawing one answer ---------------------------------------------------------------------------------------------


def draw(browser: Browser, repeats: int) -> None:
    """Measure rendering to HTML in Python, and drawing in the browser up to the first frame."""
    view = answer(512)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        html = render_tokens(view, standalone=False)
        times.append(Cost(time.perf_counter() - start))
    print_costs("512 tokens: HTML, in Python", times)
    opened = browser.new_page(viewport={"width": 1280, "height": 1000})
    opened.set_content(f"<!doctype html><head>{page_head()}</head><body><div id=place></div></body>")
    session = opened.context.new_cdp_session(opened)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})  # processor time of the page's own thread

    def worked_s() -> float:
        metrics = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
        return metrics["TaskDuration"]

    drawn = []
    for _ in range(repeats):
        opened.evaluate("document.getElementById('place').innerHTML = ''")
        before = worked_s()
        took = opened.evaluate(
            """async html => {
                const frame = () => new Promise(resolve => requestAnimationFrame(() => setTimeout(resolve)));
                const place = document.getElementById('place');
                await frame(); await frame();
                const start = performance.now();
                place.innerHTML = html; place.getBoundingClientRect(); await frame();
                return (performance.now() - start) / 1000;
            }""",
            html,
        )
        drawn.append(Cost(took, None, worked_s() - before))
    print_costs("512 tokens: drawn by Chromium (200 ms)", drawn[1:])
    print(f"{'size of the HTML':40}{len(html.encode()) / 1024:8.0f} KiB, {opened.locator('.wb-t').count()} tokens")


def answer(num_tokens: int) -> TokenView:
    """Make an answer with all fields, and three top tokens under each of three views."""
    chooser = random.Random(0)
    views, regimes = ("student", "self", "teacher"), list(big_run.REGIMES)
    cells = []
    for idx in range(num_tokens):
        logprobs = {name: -4 * chooser.random() ** 3 for name in views}
        tops = {name: [(f" w{chooser.randrange(5000)}", -chooser.random()) for _ in range(3)] for name in views}
        cells.append(
            TokenCell(
                text=f" w{chooser.randrange(5000)}",
                token_id=idx,
                regime=chooser.choice(regimes),
                target=chooser.choice(("teacher", "self")),
                divergence="reverse_kl",
                weight=1.0,
                loss=chooser.random(),
                token_type="template",
                visibility=chooser.choice(("visible", "privileged")),
                logprobs=logprobs,
                entropies={name: chooser.random() for name in views},
                ranks=dict.fromkeys(views, 1),
                top_k=tops,
                sampled_logprob=logprobs["student"],
            )
        )
    notes = {name: RegimeNote(spec.meaning, spec.losses[0].target) for name, spec in big_run.REGIMES.items()}
    return TokenView(
        "long", "What is seen?", "", tuple(cells), regimes=notes, thresholds={"gap": 0.4, "probability_sum": 1.2}
    )


# ---- watching a run -------------------------------------------------------------------------------------------------


def watch(browser: Browser, folder: Path, pairs: int, seconds: float) -> None:
    """Compare steps of one run with and without an open page, in turns, by step time and processor time."""
    more = [
        "name=watched",
        f"output_dir={folder}",
        "data.eval=null",
        "training.steps=100000",
        "training.learning_rate=1e-7",
        "training.save_every=0",
    ]
    state = start_run(load_config(ROOT / "configs/demo.yaml", more), folder)
    try:
        with serving(folder) as (address, server):
            lines = Lines(state.run_dir / "metrics.jsonl")
            lines.wait(5)
            pid = read_job(state.run_dir).pid
            turns: dict[str, list[Turn]] = {"closed": [], "open": []}
            for _ in range(pairs):
                turns["closed"].append(turn(lines, pid, server.pid, seconds))
                context = browser.new_context(viewport={"width": 1280, "height": 1000})
                opened = context.new_page()
                opened.goto(f"{address}/?run=watched&tab=training")
                opened.locator(DRAWN["training"]).first.wait_for()
                opened.wait_for_timeout(3000)  # `page` measures what opening costs
                turns["open"].append(turn(lines, pid, server.pid, seconds))
                context.close()
    finally:
        stop_run(state.run_dir, at_once=True)
    report(turns)


class Lines:
    """The lines of a run's metrics, as they are added."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def read(self) -> list[dict]:
        text = self.file.read_text() if self.file.exists() else ""
        return [line for line in map(json.loads, text.split("\n")[:-1]) if line["kind"] == "train"]

    def wait(self, num_lines: int) -> list[dict]:
        while len(lines := self.read()) < num_lines:
            time.sleep(0.01)
        return lines


class Turn(dict):
    """One turn. processor: seconds per step; step: median step in seconds; server, browser: share of a core."""


def turn(lines: Lines, pid: int, server: int, seconds: float) -> Turn:
    """Measure whole steps for about `seconds`."""
    first = len(lines.wait(len(lines.read()) + 1))
    start, used = time.perf_counter(), processor_s(pid)
    with Meter(server, pid) as meter:
        time.sleep(seconds)
    steps_done = lines.wait(len(lines.read()) + 1)
    took, steps = time.perf_counter() - start, len(steps_done) - first
    step_seconds = [line["seconds/step"] for line in steps_done[first:]]
    return Turn(
        processor=(processor_s(pid) - used) / steps,
        step=statistics.median(step_seconds),
        wall=took / steps,
        steps=steps,
        server=meter.cost.server / meter.cost.wall,
        browser=meter.cost.browser / meter.cost.wall,
    )


def report(turns: dict[str, list[Turn]]) -> None:
    steps = {name: sum(line["steps"] for line in of) for name, of in turns.items()}
    print(f"{len(turns['open'])} pairs of turns, {steps['closed']} steps unwatched, {steps['open']} watched")
    for name, text in (
        ("processor", "processor time a step"),
        ("step", "median step"),
        ("wall", "wall time a step, pauses included"),
    ):
        ratios = [watched[name] / alone[name] for alone, watched in zip(turns["closed"], turns["open"], strict=True)]
        low, high = statistics.quantiles(ratios, n=4)[::2] if len(ratios) > 1 else (ratios[0], ratios[0])
        alone = 1000 * statistics.median(line[name] for line in turns["closed"])
        print(
            f"{text:36}{alone:9.1f} ms  watched / unwatched {statistics.median(ratios):6.3f}  (quartiles {low:.3f} .. "
            f"{high:.3f})"
        )
    for name, of in turns.items():
        for part in ("server", "browser"):
            share = 100 * statistics.median(line[part] for line in of)
            print(f"{f'{part}, page {name}':36}{share:9.2f} % of a core")


# ---- processes ------------------------------------------------------------------------------------------------------


@contextmanager
def chromium() -> Iterator[Browser]:
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    executable = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@contextmanager
def serving(runs: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """Start `workbench app` over a folder. Yields its address and process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "workbench", "app", "--runs", str(runs), "--configs", str(ROOT / "configs")]
    start = time.perf_counter()
    server = subprocess.Popen([*command, "--port", str(port)], cwd=ROOT, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        while server.poll() is None:
            try:
                urllib.request.urlopen(address, timeout=20).close()
                break
            except OSError:
                time.sleep(0.05)
        print_costs("the app answers after", [Cost(time.perf_counter() - start, processor_s(server.pid))])
        yield address, server
    finally:
        server.terminate()
        server.wait()


def processor_s(pid: int) -> float:
    """Return the processor time of a process in seconds; 0 if it has exited."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak_memory(process: subprocess.Popen) -> int:
    """Return the peak memory of a process in bytes."""
    (line,) = (
        candidate
        for candidate in Path(f"/proc/{process.pid}/status").read_text().splitlines()
        if candidate.startswith("VmHWM")
    )
    return 1024 * int(line.split()[1])


class Cost(NamedTuple):
    """Seconds of wall time, of the server's processor time and of the browser's."""

    wall: float
    server: float | None = None
    browser: float | None = None


class Meter:
    """Context manager that measures its block as `cost`."""

    def __init__(self, server: int, *others: int) -> None:
        self.server = server
        self.others = others  # other child processes besides the browser

    def __enter__(self) -> "Meter":
        self._start = self._now()
        return self

    def __exit__(self, *exception: object) -> None:
        self.cost = Cost(*(now - before for now, before in zip(self._now(), self._start, strict=True)))

    def _now(self) -> tuple[float, float, float]:
        apart = (self.server, *self.others)
        browser_pids = set(descendants(os.getpid())).difference(apart, *map(descendants, apart))
        return time.perf_counter(), processor_s(self.server), sum(processor_s(pid) for pid in browser_pids)


def descendants(pid: int) -> list[int]:
    """List all descendants of a process."""
    children = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            children += [int(text) for text in file.read_text().split()]
    return children + [descendant for child in children for descendant in descendants(child)]


def print_costs(title: str, costs: list[Cost]) -> None:
    """Print median and p95 of wall times, and medians of processor times."""
    walls = sorted(cost.wall for cost in costs)
    p95 = walls[math.ceil(0.95 * len(walls)) - 1]
    line = f"{title:40}{1000 * statistics.median(walls):7.0f} ms" + (
        f"  p95 {1000 * p95:6.0f} ms" if len(costs) > 1 else " " * 15
    )
    for name in ("server", "browser"):
        used = [getattr(cost, name) for cost in costs]
        line += "" if None in used else f"  {name} {1000 * statistics.median(used):6.0f} ms"
    print(line, flush=True)


if __name__ == "__main__":
    main()
