"""Nothing imports from a layer below its own; the order is that of docs/design.md."""

import ast
import gc
from pathlib import Path

MAX_FUNCTION_LINES = 80
MAX_METHOD_LINES = 135
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
RANK = {name: rank for rank, name in enumerate(ROOMS)}


def parse(text: str) -> ast.Module:
    """Without garbage being collected meanwhile: what is freed then may make Python 3.11's parser fail (gh-106905)."""
    gc.disable()
    try:
        return ast.parse(text)
    finally:
        gc.enable()


def imports() -> list[tuple[str, str]]:
    """(importing, imported) pairs of top-level modules of the package."""
    found = []
    for file in PACKAGE.rglob("*.py"):
        own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(parse(file.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("workbench"):
                names = (
                    [node.module] if node.module != "workbench" else [f"workbench.{alias.name}" for alias in node.names]
                )
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.startswith("workbench.")]
            found += [(own, name.split(".")[1]) for name in names]
    return [(own, other) for own, other in found if own != other]


def test_every_module_has_a_layer() -> None:
    modules = {
        path.name.removesuffix(".py")
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert modules == RANK.keys()


def test_imports_point_upwards_only() -> None:
    wrong = [f"{own} imports {other}" for own, other in imports() if RANK[own] <= RANK[other]]
    assert not wrong


def heads(file: Path) -> set[str]:
    """Modules that are imported when a file is: its statements outside of functions, classes not looked into."""
    found = set()
    for node in parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_the_page_opens_without_transformers() -> None:
    """They take seconds to import, and a page that shows runs has no use for them until it scores or checks something."""
    files = {
        ".".join(("workbench", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): file
        for file in PACKAGE.rglob("*.py")
    }
    seen, todo = set(), ["workbench.app.layout", "workbench.studies.compare"]
    while todo:
        module = todo.pop()
        if module in files and module not in seen:
            seen.add(module)
            found = heads(files[module])
            heavy = [one for one in found if one.split(".")[0] in ("transformers", "peft", "accelerate")]
            assert not heavy, f"{module} imports {heavy[0]}: import it where it is used"
            todo += found
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


def test_a_method_keeps_to_its_budget() -> None:
    over = [
        f"{file.name}: {lines} lines, budget {MAX_METHOD_LINES}"
        for file in (PACKAGE / "methods").glob("*.py")
        if file.name != "__init__.py" and (lines := len(file.read_text().splitlines())) > MAX_METHOD_LINES
    ]
    assert not over
