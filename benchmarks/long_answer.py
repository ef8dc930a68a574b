"""A long answer in Chromium: time until it is drawn, and the longest frame while it is scrolled.

    python -m benchmarks long_answer [--tokens 16000] [--repeats 9]

Targets: drawn within 300 ms, no frame over 50 ms. On a busy machine frames wait for the processor; the last column, the
browser's own work by its counters, does not wait.
"""

import argparse
import random
import statistics
import time

from playwright.sync_api import CDPSession

from benchmarks.app import chromium
from workbench.render import page_head, render_tokens
from workbench.render.view import RegimeNote, TokenCell, TokenView

REGIMES = {
    "LH": RegimeNote("low gap, both sure: teacher, light", "teacher", "reverse KL"),
    "LL": RegimeNote("low gap, unsure: privileged self, weak", "self", "reverse KL"),
    "HT": RegimeNote("high gap, teacher leads: teacher, strong", "teacher", "JSD"),
    "HS": RegimeNote("high gap, self leads: privileged self, light", "self", "reverse KL"),
}
WORDS = (" the", " tag", " is", " left", " of", " 图像", " 🙂", " return", ",", ".", "\n", " f(x)", "```")
DRAW = """html => new Promise(done => {
    document.querySelector("#host")?.remove();
    const start = performance.now();
    const host = document.createElement("div");
    host.id = "host";
    host.innerHTML = html;
    document.body.append(host);
    const drawn = () => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start)));
    const wait = () => document.querySelector(".wb-t") ? drawn() : setTimeout(wait, 0);
    wait();
})"""
SCROLL = """html => new Promise(async done => {
    document.querySelector("#host .wb-tokens").replaceWith(document.createRange().createContextualFragment(html));
    scrollTo(0, 0);
    await new Promise(settled => setTimeout(settled, 500)); // a fragment whose tokens were not drawn yet
    const frames = [];
    let before = performance.now();
    const next = now => {
        frames.push(now - before);
        before = now;
        if (frames.length > 120) return done(frames.slice(1));
        scrollBy(0, frames.length % 40 === 0 ? 20000 : 400);
        requestAnimationFrame(next);
    };
    requestAnimationFrame(next);
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=16_000)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    start, used = time.perf_counter(), time.process_time()
    html = render_tokens(make_answer(args.tokens), standalone=False)
    wall_ms, processor_ms = 1000 * (time.perf_counter() - start), 1000 * (time.process_time() - used)
    print(
        f"{args.tokens:,} tokens as HTML: {wall_ms:.0f} ms, processor {processor_ms:.0f} ms, {len(html) / 1e6:.1f} MB"
    )
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_content(f"<!DOCTYPE html><html><head>{page_head()}</head><body></body></html>")
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})  # processor time of the page's own thread
        for title, script, argument in (("drawn, ms", DRAW, html), ("longest frame of scrolling, ms", SCROLL, html)):
            walls, works = [], []
            for _ in range(args.repeats):
                before = worked_ms(session)
                result = page.evaluate(script, argument)
                works.append(worked_ms(session) - before)
                walls.append(max(result) if isinstance(result, list) else result)
            median, longest = statistics.median(walls), max(walls)
            times = f"median {median:7.0f}  longest {longest:7.0f}  the browser's work {statistics.median(works):7.0f}"
            print(f"  {title:32} {times}")


def worked_ms(session: CDPSession) -> float:
    """Milliseconds that the page's main thread has worked."""
    metrics = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
    return 1000 * metrics["TaskDuration"]


def make_answer(count: int) -> TokenView:
    """An answer with random numbers whose regimes come in stretches."""
    chooser, regime, cells = random.Random(0), "LH", []
    for idx in range(count):
        regime = chooser.choice(list(REGIMES)) if chooser.random() < 0.08 else regime
        scale = 0.02 if idx // 60 % 3 == 1 else 3
        student = -scale * chooser.random()
        evidence = student * chooser.random()
        logprobs = {"student": student, "self": evidence, "teacher": evidence * chooser.random() * 1.5}
        note = REGIMES[regime]
        cells.append(
            TokenCell(
                chooser.choice(WORDS),
                idx,
                regime,
                note.target,
                note.divergence,
                weight=1.0,
                effective=0.6,
                loss=chooser.random(),
                logprobs=logprobs,
                entropies={name: -value for name, value in logprobs.items()},
                sampled_logprob=student + chooser.gauss(0, 0.02),
            )
        )
    text = "".join(cell.text for cell in cells)
    return TokenView("read", "What does the tag say?", text, tuple(cells), regimes=REGIMES)


if __name__ == "__main__":
    main()
