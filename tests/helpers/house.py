"""Check the order of the source: who imports whom, what lies where, and how long it is.

The files are parsed and never imported. An import inside a function counts like any other: it only runs later.
"""

import ast
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

# From the bottom up. A layer imports those before it and itself; names in one layer don't import each other.
LAYERS = (
    {"utils"},
    {"config"},
    {"model"},
    {"peft", "data"},
    {"training"},
    {"train"},
    {"published"},
    {"pipeline"},
    {"experiments"},
    {"benchmarks"},
    {"tools"},
)
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}
ONLY = {"published": {"config", "utils"}}  # rows are data: nothing else, however low it lies
TOP_FILES = {"experiments.py", "config.py", "train.py"}


class Import(NamedTuple):
    """One module that another one names, and the line where it does."""

    importer: str  # "model.gpt2"
    imported: str
    line: int


def find_modules(root: Path) -> dict[str, Path]:
    """Return the path of every module of the layers by its dotted name."""
    files = [path for name in HEIGHT for path in (root / f"{name}.py", *sorted((root / name).rglob("*.py")))]
    modules = {}
    for path in files:
        parts = path.relative_to(root).with_suffix("").parts
        if path.is_file():
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def find_tests(root: Path) -> dict[str, Path]:
    """Return the path of every file of tests/ by its dotted name."""
    files = sorted((root / "tests").rglob("*.py"))
    return {".".join(path.relative_to(root).with_suffix("").parts): path for path in files}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def find_imports(modules: dict[str, Path]) -> list[Import]:
    """Return what each module imports of the others. `from model import hub` names the module model.hub, not model."""
    found = []
    for importer, path in modules.items():
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = absolute(importer, path, node)
                inner = [f"{base}.{alias.name}" for alias in node.names]
                names = [name if name in modules else base for name in inner]
            else:
                continue
            found += [Import(importer, name, node.lineno) for name in dict.fromkeys(names) if name in modules]
    return found


def absolute(importer: str, path: Path, node: ast.ImportFrom) -> str:
    """Return the module that `from ... import` names, with its dots in front resolved."""
    if not node.level:
        return node.module or ""
    package = importer.split(".") if path.name == "__init__.py" else importer.split(".")[:-1]
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])


def folder(module: str) -> str:
    """Return the part of the house that a module belongs to: a folder, or a file at the top."""
    return module.partition(".")[0]


def upward_imports(imports: Iterable[Import]) -> list[str]:
    """Return a line for each import of something that doesn't lie below the importer."""
    wrong = []
    for importer, imported, line in imports:
        above, below = folder(importer), folder(imported)
        allowed = below in ONLY[above] if above in ONLY else HEIGHT[below] < HEIGHT[above]
        if above != below and not allowed:
            wrong.append(f"{importer}:{line} imports {imported}")
    return wrong


def imports_of_tests(tests: dict[str, Path]) -> list[str]:
    """Return a line for each import of a test, or of a conftest: what tests share lies in tests/helpers."""
    wrong = [one for one in find_imports(tests) if not one.imported.startswith("tests.helpers.")]
    return [f"{importer}:{line} imports {imported}" for importer, imported, line in wrong]


def circles(imports: Iterable[Import]) -> list[str]:
    """Return one circle of imports, if there is any."""
    graph: dict[str, set[str]] = {}
    for importer, imported, _ in imports:
        graph.setdefault(importer, set()).add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" <- ".join(error.args[1])]
    return []


def late_imports(modules: dict[str, Path]) -> list[str]:
    """Return a line for each import below the first function or class of a file."""
    wrong = []
    for module, path in modules.items():
        defined = False
        for node in parse(path).body:
            if defined and isinstance(node, ast.Import | ast.ImportFrom):
                wrong.append(f"{module}:{node.lineno} imports below a definition")
            defined = defined or isinstance(node, ast.FunctionDef | ast.ClassDef)
    return wrong


def strangers(root: Path) -> list[str]:
    """Return the Python files at the top, and the folders of such files, that have no place in the house."""
    files = [path.name for path in sorted(root.glob("*.py")) if path.name not in TOP_FILES]
    folders = {path.parent.name for path in root.glob("[!.]*/*.py")} - HEIGHT.keys() - {"tests"}
    return files + [f"{name}/" for name in sorted(folders)]


def long_files(root: Path, modules: dict[str, Path], limit: int) -> dict[str, str]:
    """Return what to say of each file with more than `limit` lines, by its path."""
    lines = {str(path.relative_to(root)): path.read_text(encoding="utf-8").count("\n") for path in modules.values()}
    return {name: f"{name} has {n} lines" for name, n in lines.items() if n > limit}


def long_functions(root: Path, modules: dict[str, Path], limit: int) -> dict[str, str]:
    """Return what to say of each function with more than `limit` lines, by its path and name."""
    wrong = {}
    for path in modules.values():
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name, n = f"{path.relative_to(root)}:{node.name}", (node.end_lineno or 0) - node.lineno + 1
                if n > limit:
                    wrong[name] = f"{name} has {n} lines"
    return wrong
