"""Render docs/tokens.png, Answers over a run of four steps.

    python docs/screenshot.py
    python docs/screenshot.py runs/real-demo docs/real-model.png      # of a run that exists

The script relights built-in scenes, so that the objects look like wooden toys on a table. The small models know the
questions, and the page looks as it does for photographs.
"""

import json
import os
import shutil
import socket
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from PIL import Image, ImageFilter
from playwright.sync_api import sync_playwright

import workbench as wb
from workbench.app.server import serve
from workbench.data.scenes import make_examples
from workbench.types import Example

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT, MAX_BYTES = 1600, 1240, 300_000
SIZE = 576  # pixels of a relit scene
LIGHT = np.array([-0.5, -0.6, 0.62])  # direction of the lamp: left, above, toward the camera


def relight(image: Image.Image, *, cells: int, seed: int) -> Image.Image:
    """Relight a drawing of cells x cells objects, seen from above: heights from colors, shading, shadows."""
    rng = np.random.default_rng(seed)
    image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    drawing = np.asarray(image, dtype=np.float64) / 255
    colorful, dark = np.ptp(drawing, axis=2) > 0.2, drawing.max(axis=2) < 0.28
    x, y = np.meshgrid(*[cells * np.arange(SIZE) / SIZE % 1] * 2)
    plates = (x > 0.525) & (x < 0.975) & (y > 0.515) & (y < 0.985)  # where a cell has its card of paper, if it has one
    paper = plates & (_blur((drawing.min(axis=2) > 0.985).astype(float), 60 / cells) > 0.12)
    table = (_blur((np.abs(drawing - 0.877).max(axis=2) < 0.035).astype(float), 2) > 0.6) & ~plates
    toy = _blur(((colorful | dark) & ~plates).astype(float), 1.5)
    height = 9 * _blur(toy, 2.5) + 2.5 * _blur(np.where(table, 0, 1.0), 2) + 0.8 * _blur(paper.astype(float), 1)

    color = np.where(table[..., None], np.array([0.30, 0.22, 0.16]), drawing)
    board = ~table & ~paper & (toy < 0.3)
    color = np.where(board[..., None], np.array([0.86, 0.76, 0.62]), color)
    fibers = _grain(rng, SIZE)
    color = color * (1 + np.where(paper, 0.03, np.where(toy > 0.3, 0.12, 0.28))[..., None] * fibers[..., None])

    rows, columns = np.gradient(height)
    normal = np.dstack([-columns, -rows, np.full_like(height, 1.6)])
    normal /= np.linalg.norm(normal, axis=2, keepdims=True)
    lamp = LIGHT / np.linalg.norm(LIGHT)
    diffuse = np.clip(normal @ lamp, 0, None)
    half = lamp + np.array([0, 0, 1])
    gloss = np.clip(normal @ (half / np.linalg.norm(half)), 0, None) ** 40 * np.where(toy > 0.5, 0.35, 0.04)
    shadow = _blur(np.clip(np.roll(height, (12, 10), (0, 1)) - height, 0, 9) / 9, 4)
    contact = np.clip(_blur(height, 8) - height, 0, 6) / 12
    light = (0.30 + 1.05 * diffuse) * (1 - 0.55 * shadow) * (1 - contact)
    across, down = np.meshgrid(np.linspace(-1, 1, SIZE), np.linspace(-1, 1, SIZE))
    falloff = 1.08 - 0.22 * ((across + 0.35) ** 2 + (down + 0.4) ** 2) / 2
    photo = color * (light * falloff)[..., None] * np.array([1.06, 1.0, 0.90]) + gloss[..., None]
    photo += rng.normal(0, 0.012, photo.shape)
    photo = Image.fromarray((255 * np.clip(photo, 0, 1) ** 0.92).astype(np.uint8))
    return photo.filter(ImageFilter.GaussianBlur(0.6))


def _blur(values: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian of a standard deviation in pixels; edges wrap around."""
    kernels = [np.exp(-2 * (np.pi * radius * np.fft.fftfreq(size)) ** 2) for size in values.shape]
    return np.fft.ifft2(np.fft.fft2(values) * np.outer(*kernels)).real


def _grain(rng: np.random.Generator, size: int) -> np.ndarray:
    """Wood fibers along the rows, from -1 to 1."""
    noise = sum(
        np.asarray(Image.fromarray(rng.random((rows, columns)).astype(np.float32)).resize((size, size))) - 0.5
        for rows, columns in ((60, 2), (200, 4), (SIZE, 10))
    )
    return noise / np.abs(noise).max()


def write_rows(folder: Path) -> Path:
    """Write questions about relit scenes, with a close-up of the object as evidence."""
    rows = []
    for idx, example in enumerate(make_examples("hard", count=16, families=("tag", "compare"))):
        relight(example.images[0], cells=3, seed=idx).save(folder / f"{idx}.png")
        relight(example.evidence.crops[0], cells=1, seed=idx).save(folder / f"{idx}-crop.png")
        rows.append(_row(example, idx))
    file = folder / "relit-scenes.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def _row(example: Example, idx: int) -> dict:
    scale = SIZE / example.images[0].width
    boxes = [
        {side: scale * getattr(box, side) for side in ("x0", "y0", "x1", "y1")} | {"label": box.label}
        for box in example.evidence.boxes
    ]
    return {
        "id": f"scene-{idx}",
        "question": example.question,
        "answer": example.answer,
        "images": [f"{idx}.png"],
        "crop": f"{idx}-crop.png",
        "boxes": boxes,
    }


def make_run(folder: Path) -> Path:
    """Run four steps of DOPD on the relit scenes."""
    overrides = {
        "name": "relit-scenes",
        "output_dir": folder / "runs",
        "data.train": write_rows(folder),
        "data.eval": None,
        "training.steps": 4,
        "trace.probes": 0,
        "trace.top_k_rollouts": 32,  # of every answer of a step
    }
    texts = [f"{key}={'null' if value is None else value}" for key, value in overrides.items()]
    return wb.train(wb.load_config(ROOT / "configs/demo.yaml", texts)).run_dir


def choose_token(run: Path) -> dict:
    """The token of most loss in an answer on the first page: of the last step, with top-k, of the most regimes."""
    return (
        wb.open_traces(run)
        .sql(
            "SELECT step, rollout_idx AS rollout, arg_max(position, loss) AS token FROM tokens "
            "WHERE step = (SELECT max(step) FROM tokens) AND rollout_idx < 8 AND len(top_k_student) > 0 GROUP BY ALL "
            "ORDER BY count(DISTINCT regime) DESC, max(loss) DESC LIMIT 1"
        )
        .to_pylist()[0]
    )


def save_screenshot(run: Path, file: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = serve(run.parent, port=port, read_only=True)
    query = "&".join(f"{key}={value}" for key, value in choose_token(run).items())
    with sync_playwright() as playwright:
        path = os.environ.get("CHROMIUM") or shutil.which("chromium-headless-shell") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(f"http://127.0.0.1:{port}/?run={run.name}&tab=answers&{query}&__theme=light")
        page.locator("#answers-answer .wb-detail .wb-views").first.wait_for()
        page.wait_for_timeout(1000)  # pictures and fonts
        page.mouse.move(WIDTH - 2, 2)
        page.screenshot(path=str(file))
        browser.close()
    app.close()


def main(run: Path | None = None, file: Path = ROOT / "docs/tokens.png") -> None:
    with TemporaryDirectory() as folder:
        picture = Path(folder, "page.png")
        save_screenshot(run or make_run(Path(folder)), picture)
        palette = Image.open(picture).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        palette.save(file, optimize=True)
    if file.stat().st_size > MAX_BYTES:
        raise SystemExit(f"{file} has {file.stat().st_size:,} bytes. Expected at most {MAX_BYTES:,}. Lower HEIGHT.")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
