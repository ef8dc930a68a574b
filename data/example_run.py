"""Makes data/example-run.zip: a short recorded run of the built-in pair, for a runs folder without runs.

    python data/example_run.py        # some two minutes; replaces data/example-run.zip

It is the demo with a self that follows the student, fewer questions and smaller steps, recorded at every tenth step.
What would take space (checkpoints) or names a machine (process, paths, versions of the system) is left out, and images
keep 256 of their some 300 colors.
"""

import json
import shutil
import tempfile
import zipfile
from pathlib import Path

from PIL import Image

from workbench.config.schema import load_config
from workbench.training.run import train

TARGET = Path(__file__).parent / "example-run.zip"
OVERRIDES = (
    "name=example",
    "method.self_policy=student@ema",  # with a frozen self, as in the demo, a probe's regimes stay
    "data.train=scenes:hard?count=96",
    "data.eval=scenes:hard?count=96&start=50000",
    "training.batch_size=6",
    "training.save_every=50",
    "trace.every=10",
    "trace.probes=12",
    "evaluation.max_examples=96",
)
LEFT_OUT = ("command", "pid", "process", "platform", "versions", "commit", "dirty")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run_dir = train(load_config("demo", [*OVERRIDES, f"output_dir={folder}"])).run_dir
        for checkpoint in run_dir.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        for name in (".claim", "train.log"):
            (run_dir / name).unlink(missing_ok=True)
        for file in run_dir.glob("traces/images/*.png"):
            with Image.open(file) as image:
                reduced = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
            reduced.save(file, optimize=True)
        for file in (run_dir / "run.json", run_dir / "config.yaml"):
            file.write_text(file.read_text().replace(folder, "runs"))
        facts = json.loads((run_dir / "run.json").read_text())
        facts = {key: value for key, value in facts.items() if key not in LEFT_OUT}
        (run_dir / "run.json").write_text(json.dumps(facts, indent=1) + "\n")
        with zipfile.ZipFile(TARGET, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for file in sorted(run_dir.rglob("*")):
                if file.is_file():
                    archive.write(file, file.relative_to(run_dir).as_posix())
    print(f"{TARGET}: {TARGET.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
