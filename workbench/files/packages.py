"""Name the package that an import misses, or that is installed and broken, and the command that installs it."""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

from workbench.errors import ConfigError, WorkbenchError, cut

_REQUIRES = re.compile(
    r"requires the (?:following packages?[^:]*: )?([\w-]+) library|not found in your environment: ([\w-]+)",
    re.IGNORECASE,
)
_OPTIONAL = re.compile(r"Missing optional dependencies: ([\w-]+)")  # of a ValueError of AutoImageProcessor
_NAMES = {"pil": "pillow", "sklearn": "scikit-learn", "cv2": "opencv-python"}  # where import and package differ
_BESIDE_TORCH = {"torchvision", "torchaudio", "timm"}  # compiled against one version of torch
_OURS = {"workbench", "importlib", "__main__"}


@dataclass(frozen=True)
class Fault:
    """Packages that an import needs, by their names for pip; `reason` is empty if the first is not installed."""

    names: tuple[str, ...]
    reason: str = ""

    def sentence(self, command: str = "", other: str = "") -> str:
        """Text after "needs": the package, its state, `command` or else one that installs it, and another way out."""
        names = " ".join(self.names)
        if self.reason:
            state = f"which is installed but cannot be imported ({self.reason})"
            command = f"pip install --upgrade --force-reinstall {names}"
        else:
            state, command = "which is not installed", command or f"pip install {names}"
        note = " (the build for the installed torch)" if _BESIDE_TORCH & set(self.names) else ""
        return f"the package {self.names[0]}, {state}. Run {command}{note}{other}"


def find_fault(error: BaseException) -> Fault | None:
    """Return the package that an error is about, or None for an error that is not of an import.

    transformers raises its errors of imports without a name, and names the package in the text or in a cause.
    """
    chain = [error]
    while cause := chain[-1].__cause__ or (None if chain[-1].__suppress_context__ else chain[-1].__context__):
        chain.append(cause)
    for link in chain:
        match = (_REQUIRES if isinstance(link, ImportError) else _OPTIONAL).search(str(link))
        if match:
            return _fault([match[1] or match[2]], link)
    for link in reversed(chain):
        importer = _importer(link)
        module = link.name if isinstance(link, ImportError) else None
        names = [name for name in (importer, (module or "").partition(".")[0]) if name and name not in _OURS]
        if names:
            missing = isinstance(link, ModuleNotFoundError) and importlib.util.find_spec(names[-1]) is None
            return _fault(names[-1:] if missing else [*dict.fromkeys(names)], link)
    return None


def _fault(names: list[str], error: BaseException) -> Fault:
    """Fault of packages, given by their names in import statements."""
    if importlib.util.find_spec(names[0]) is None:
        return Fault((_NAMES.get(names[0].lower(), names[0].lower()),))
    installed = importlib.metadata.packages_distributions()
    line = next(iter(str(error).strip().splitlines()), "")
    return Fault(tuple(installed.get(name, [name])[0] for name in names), f"{type(error).__name__}: {cut(line, 200)}")


def _importer(error: BaseException) -> str | None:
    """Top-level package whose module raised the error while it was imported, or None."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "<module>"]
    names = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame in frames]
    return next((name for name in reversed(names) if name not in _OURS), None)


@contextlib.contextmanager
def importing(need: str, extra: str | None = None, other: str = "") -> Iterator[None]:
    """Import inside: a package that is missing or broken raises ConfigError.

    need   begins the sentence and ends in "needs"
    extra  of this package that brings it, as in pyproject.toml
    other  way out beside installing it, ends the sentence
    """
    try:
        yield
    except WorkbenchError:
        raise
    except Exception as error:  # a broken package raises errors of any kind
        fault = find_fault(error)
        if fault is None:
            raise
        command = "" if extra is None else command_of(extra)
        raise ConfigError(f"{need} {fault.sentence(command, other)}.") from error


def command_of(extra: str) -> str:
    """Command that installs this package with an extra."""
    return f"pip install 'vlm-distillation-workbench[{extra}]', or in a clone pip install -e '.[{extra}]'"


def missing_package(error: BaseException) -> str | None:
    """Say which package an error of an import misses and how to install it; None for another error."""
    fault = find_fault(error)
    return None if fault is None else f"it needs {fault.sentence()}"


def require_bitsandbytes(need: str, other: str) -> None:
    """Raise ConfigError unless bitsandbytes can be imported; `need` begins the sentence, `other` ends it."""
    with importing(need, "quantized", f", or {other}"):
        importlib.import_module("bitsandbytes")
