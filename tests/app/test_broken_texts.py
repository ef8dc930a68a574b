"""A broken YAML file among recipes or in a run: the page opens, and names the error where it needs the file."""

import shutil
from pathlib import Path

import pytest

from workbench.app import form
from workbench.app.context import AppContext
from workbench.app.tabs import data
from workbench.errors import ConfigError
from workbench.runs.jobs import find_jobs

CONFIGS = Path(__file__).parents[2] / "configs"
BROKEN = {
    "date": "seed: 0\nname: !!timestamp 2024-13-45",
    "tag": "method: !!int x",
    "digits": "seed: " + 5000 * "9",
    "hex": "seed: 0x_",
    "key": "{[1, 2]: 3}",
    "deep": "method: " + 2000 * "[",
    "nul": 'name: "a\\0b"',
    "half": 'name: "\\ud83d"',
    "bytes": "name: \udcff",
    "bomb": "a: &a [1]\nb: [*a, *a]",
    "list": "[1, 2]",
    "kinds": "method: [1]\ntraining: {steps: [1]}\ndata: [1]\nmodels: 3",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=list(BROKEN))
def test_recipes_broken_yaml_raises_and_lists_others(tmp_path: Path, text: str) -> None:
    configs, run = tmp_path / "configs", tmp_path / "runs" / "opd"
    shutil.copytree(CONFIGS, configs)
    run.mkdir(parents=True)
    for file in (configs / "broken.yaml", run / "config.yaml"):
        file.write_bytes(text.encode(errors="surrogateescape"))
    (run / "run.json").write_text('{"status": "stopped"}')
    context = AppContext(run.parent, configs)
    assert ("recipe  demo.yaml", "recipe:demo.yaml") in form.recipes(context)
    for choice in ("recipe:broken.yaml", "run:opd"):
        with pytest.raises(ConfigError):
            form.form_values(context, choice)
    assert [(job.name, job.method, job.steps) for job in find_jobs(run.parent)] == [("opd", None, None)]
    assert data.sources_of(run) == []
    assert data.NO_SOURCE in data.draw(context, "opd", {}, None)[1]
