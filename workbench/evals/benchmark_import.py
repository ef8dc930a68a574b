"""Import results of lmms-eval and VLMEvalKit into a run."""

from pathlib import Path

from workbench.evals import lmms_eval, vlmevalkit
from workbench.evals.benchmarks import BenchmarkResult, import_benchmarks

READERS = {lmms_eval.PATTERN: lmms_eval.read_lmms_eval, vlmevalkit.PATTERN: vlmevalkit.read_vlmevalkit}


def import_eval(
    source: str | Path, run_dir: str | Path, *, any_model: bool = False
) -> tuple[list[BenchmarkResult], list[str]]:
    """Read the results of a file or folder into a run; return them, and notes on values that were left out.

    any_model  also results of a model that is not an exported student of the run, marked as such

    Raises: DataError for files that cannot be read, or of another model; RunError for an unknown run.
    """
    return import_benchmarks(source, run_dir, READERS, any_model=any_model)
