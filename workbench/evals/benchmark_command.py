"""Commands that evaluate an exported student with lmms-eval or VLMEvalKit, to be run where these are installed."""

import json
import shlex
from pathlib import Path

from workbench.errors import ConfigError, unknown
from workbench.files.parsing import Malformed, read_object

TOOLS = ("lmms-eval", "vlmevalkit")
LMMS_EVAL = "0.7.3"  # the version whose options and files are meant
_LMMS_MODELS = {  # its model by model_type; others by AutoModelForImageTextToText
    "gemma3": "gemma3",
    "idefics2": "idefics2",
    "internvl": "internvl_hf",
    "llava": "llava_hf",
    "llava_next": "llava_hf",
    "llava_onevision": "llava_hf",
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "qwen3_5": "qwen3_5",
}
_KIT_CLASSES = {  # class of vlmeval.vlm by model_type; all take model_path
    "gemma3": "Gemma3",
    "idefics2": "IDEFICS2",
    "idefics3": "IDEFICS2",
    "llava_next": "LLaVA_Next",
    "llava_onevision": "LLaVA_OneVision_HF",
    "qwen2_vl": "Qwen2VLChat",
    "qwen2_5_vl": "Qwen2VLChat",
    "qwen3_vl": "Qwen3VLChat",
    "smolvlm": "SmolVLM",
}


def benchmark_command(folder: str | Path, tool: str, tasks: list[str]) -> str:
    """Shell commands that evaluate a model folder on some benchmarks.

    Raises: ConfigError for a folder without config.json, an unknown tool, or a family that the tool has no class for.
    """
    if tool not in TOOLS:
        raise ConfigError(unknown("tool", tool, TOOLS))
    folder = Path(folder).resolve()
    try:
        family = str(read_object(folder / "config.json").get("model_type"))
    except (OSError, Malformed) as error:
        raise ConfigError(
            f"{folder} has no config.json that can be read ({error}). Give a folder written by workbench export."
        ) from None
    if tool == "lmms-eval":
        return _lmms_eval(folder, family, tasks)
    return _vlmevalkit(folder, family, tasks)


def _lmms_eval(folder: Path, family: str, tasks: list[str]) -> str:
    if "," in str(folder) or "=" in str(folder):
        raise ConfigError(f"{folder}: lmms-eval separates model arguments at , and =. Export to a path without them.")
    name = _LMMS_MODELS.get(family, "huggingface")
    words = ["python", "-m", "lmms_eval", "--model", name, "--model_args", f"pretrained={folder}"]
    words += ["--tasks", ",".join(tasks), "--batch_size", "1", "--log_samples", "--output_path", "lmms-eval-results"]
    return f"pip install lmms-eval=={LMMS_EVAL}\n{shlex.join(words)}\nworkbench import-eval lmms-eval-results RUN"


def _vlmevalkit(folder: Path, family: str, tasks: list[str]) -> str:
    if family not in _KIT_CLASSES:
        raise ConfigError(
            f"{folder}: for model_type {family} no class of VLMEvalKit is known here. Known: "
            f"{', '.join(_KIT_CLASSES)}. Use --tool lmms-eval."
        )
    # run.py takes models from a table of names, to which the student is added; its benchmarks are by name too
    script = (
        "import sys\nfrom functools import partial\n"
        'sys.path.insert(0, "VLMEvalKit")\n'
        "import vlmeval.config, vlmeval.vlm, run\n"
        f"student = partial(vlmeval.vlm.{_KIT_CLASSES[family]}, model_path={json.dumps(str(folder))})\n"
        f"vlmeval.config.supported_VLM[{json.dumps(folder.name)}] = student\n"
        f'sys.argv[1:] = ["--model", {json.dumps(folder.name)}, "--work-dir", "vlmevalkit-results", "--data", '
        f"{', '.join(map(json.dumps, tasks))}]\n"
        "run.load_env()\nrun.main()"
    )
    return (
        "git clone https://github.com/open-compass/VLMEvalKit && pip install -e VLMEvalKit\n"
        f"python - <<'END'\n{script}\nEND\n"
        "workbench import-eval vlmevalkit-results RUN"
    )
