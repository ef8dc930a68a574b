"""On-policy distillation of vision-language models with privileged inputs, with a trace of every token's supervision.

    import workbench as wb

    config = wb.load_config("configs/demo.yaml", ["training.steps=20"])
    result = wb.train(config)
    traces = wb.open_traces(result.run_dir)
    traces.sql("SELECT regime, avg(information_gap) FROM tokens GROUP BY regime").to_pandas()

The names in `__all__` are the public interface; everything else may change without notice. A name is imported on first
use, so that reading traces does not wait for torch.
"""

import gc
import importlib
import sys
from types import ModuleType
from typing import Any

from workbench.runs.threads import sleep_while_waiting

sleep_while_waiting()  # must run before torch is imported

_HOME = {
    "Box": "types",
    "ConfigError": "errors",
    "DataError": "errors",
    "Evidence": "types",
    "Example": "types",
    "LAYOUTS": "data.layouts",
    "Mark": "types",
    "PolicyError": "errors",
    "RunConfig": "config.schema",
    "RunError": "errors",
    "TraceError": "errors",
    "WorkbenchError": "errors",
    "build_config": "config.schema",
    "check_config": "training.check",
    "evaluate_model": "training.scorer",
    "evaluate_run": "training.scorer",
    "export_student": "training.export",
    "export_traces": "training.export",
    "import_dataset": "data.importing",
    "list_methods": "methods",
    "list_runs": "runs.folder",
    "load_config": "config.schema",
    "load_examples": "data.examples",
    "load_method": "methods",
    "open_answers": "analysis.query",
    "open_scorer": "training.scorer",
    "open_traces": "traces.reader",
    "pretrain": "training.pretraining.train",
    "preview_dataset": "render.preview",
    "render_page": "render",
    "render_terminal": "render",
    "render_tokens": "render",
    "resume": "training.run",
    "score_rollouts": "training.scored.score",
    "scoring_config": "training.scored.score",
    "summarize_run": "analysis.summary",
    "token_view": "render",
    "train": "training.run",
}
__all__ = sorted(_HOME)


class _MovedModules:
    """Finder that comes last and finds nothing: it names the module that torchrun and accelerate start today."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "workbench.train":
            raise ModuleNotFoundError("workbench.train is now called workbench.training.run", name=name)


sys.meta_path.append(_MovedModules)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module workbench has no public name {name!r}")
    return getattr(_imported(f"workbench.{_HOME[name]}"), name)


def _imported(module: str) -> ModuleType:
    """Import a module with garbage collection disabled.

    torch and transformers create a million permanent objects; scanning them takes an eighth of the import time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        if collects:
            gc.enable()


def __dir__() -> list[str]:
    return __all__
