"""Nothing imports from a layer below its own; the order is that of CONTRIBUTING.md."""

import ast
import gc
from pathlib import Path

MAX_FUNCTION_LINES = 60
MAX_METHOD_LINES = 120
PACKAGE = Path(__file__).parent.parent / "workbench"
ROOMS = (
    "errors",
    "types",
    "seeding",
    "distributed",  # files beside the rooms
    "files",
    "data",
    "policies",
    "distill",
    "methods",
    "traces",
    "config",
    "runs",
    "evals",
    "training",
    "render",
    "analysis",
    "studies",
    "app",
    "cli",
    "__main__",
    "__init__",
)
ENTRIES = {("training/run.py", "workbench.cli")}  # the module that torchrun starts is the command line
COMPUTING = {
    "__init__.py",  # the face comes last
    "methods/__init__.py",  # finds the files beside it
    "files/packages.py",  # looks for packages that an error names
    "policies/processors.py",  # imports classes of transformers that ask for packages of other parts
}
RANK = {name: rank for rank, name in enumerate(ROOMS)}


def parse(text: str) -> ast.Module:
    """Without garbage being collected meanwhile: what is freed then may make Python 3.11's parser fail (gh-106905)."""
    gc.disable()
    try:
        return ast.parse(text)
    finally:
        gc.enable()


def module_files() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    return {
        ".".join(("workbench", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): file
        for file in PACKAGE.rglob("*.py")
    }


def imported_names(tree: ast.Module) -> set[str]:
    """Dotted names that a file imports, and texts that look like it: arguments of importlib and `python -m`, tables."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return names


def imports() -> set[tuple[str, str]]:
    """(importing file, imported module) pairs between rooms of the package."""
    modules = module_files()
    pairs = {
        (file.relative_to(PACKAGE).as_posix(), name)
        for file in modules.values()
        for name in imported_names(parse(file.read_text())) & modules.keys() - {"workbench"}
    }
    return {(file, name) for file, name in pairs if room_of(file) != name.split(".")[1]}


def room_of(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def names_at_run_time(tree: ast.Module) -> bool:
    """Whether a file computes the name of a module that it imports."""
    return any(
        isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__", "find_spec", "run_module")
        and not isinstance(node.args[0], ast.Constant)
        for node in ast.walk(tree)
    )


def test_every_module_has_a_layer() -> None:
    modules = {
        path.name.removesuffix(".py")
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert modules == RANK.keys()


def test_imports_point_upwards_only() -> None:
    wrong = [
        f"{file} imports {name}"
        for file, name in imports() - ENTRIES
        if RANK[room_of(file)] <= RANK[name.split(".")[1]]
    ]
    assert not wrong


def test_exceptions_are_used() -> None:
    assert imports() >= ENTRIES


def test_computed_module_names_are_in_listed_files_only() -> None:
    computing = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        if names_at_run_time(parse(file.read_text()))
    }
    assert computing == COMPUTING


def test_imported_names_include_import_by_text() -> None:
    assert "workbench.cli" in imported_names(parse('importlib.import_module("workbench.cli")'))
    assert "workbench.cli" in imported_names(parse('command = [sys.executable, "-m", "workbench.cli"]'))
    assert names_at_run_time(parse("importlib.import_module(name)"))
    assert not names_at_run_time(parse('importlib.import_module("peft")'))


def heads(file: Path) -> set[str]:
    """Modules that are imported when a file is: its statements outside of functions, classes not looked into."""
    result = set()
    for node in parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            result |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            result |= {alias.name for alias in node.names}
    return result


def test_app_start_does_not_import_transformers() -> None:
    """They take seconds to import, and a page that shows runs needs them only to score or check something."""
    files = module_files()
    seen, todo = set(), ["workbench.app.layout", "workbench.studies.compare"]
    while todo:
        module = todo.pop()
        if module in files and module not in seen:
            seen.add(module)
            result = heads(files[module])
            heavy = [item for item in result if item.split(".")[0] in ("transformers", "peft", "accelerate")]
            assert not heavy, f"{module} imports {heavy[0]}: import it where it is used"
            todo += result
    assert len(seen) > 30


def test_functions_keep_to_their_budget() -> None:
    """Lines of a function with its signature and docstring; tests and scripts may be longer."""
    over = [
        f"{file.relative_to(PACKAGE)}: {node.name} has {length} lines, budget {MAX_FUNCTION_LINES}"
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(parse(file.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (length := node.end_lineno - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not over


def test_methods_keep_to_their_budget() -> None:
    over = [
        f"{file.name}: {lines} lines, budget {MAX_METHOD_LINES}"
        for file in (PACKAGE / "methods").glob("*.py")
        if file.name != "__init__.py" and (lines := len(file.read_text().splitlines())) > MAX_METHOD_LINES
    ]
    assert not over


def test_test_files_have_names_of_their_own() -> None:
    """pytest imports them by name alone: of two with one name, the second stops the whole suite."""
    names = [file.name for file in (PACKAGE.parent / "tests").rglob("test_*.py")]
    assert [name for name in set(names) if names.count(name) > 1] == []
