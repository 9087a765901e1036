"""A hash of the code that a run depends on: a result is stale when it differs.

It is taken of the files that the run's model, method, task and loop are made in, and of what those import. Files that only
list others (registries, `__init__.py`) and settings, whose values are compared themselves, don't count: a new method makes
no other method's results stale. Neither do comments, docstrings and layout.
"""

import ast
import hashlib
import inspect
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import peft
from model.registry import architecture_of
from peft.registry import Joined
from pipeline.job import Job

ROOT = Path(__file__).parents[2]
LOOP = ("train.py", "pipeline/build.py", "pipeline/stages.py", "training/references.py")
HERE = ("pipeline/comparison/runs.py",)  # what it imports doesn't count
LISTS = ("__init__.py", "registry.py", "config.py")


def code_sha256(job: Job) -> str:
    """Return a hash of the code that a job's run depends on."""
    method = peft.method_of(job.run)
    methods = method.methods if isinstance(method, Joined) else (method,)
    model_class = architecture_of(job.inputs.model_config).model
    kinds = [model_class, type(job.inputs.tokenizer), type(job.task), *map(type, methods)]
    files = [ROOT / "train.py", *(Path(inspect.getfile(kind)) for kind in kinds)]
    return hash_of(closure(files) | {ROOT / name for name in (*LOOP, *HERE)})


def closure(files: Iterable[Path]) -> set[Path]:
    """Return the files and all that they import, directly or not."""
    found, waiting = set(), [*files]
    while waiting:
        file = waiting.pop()
        if file not in found and file.name not in LISTS:
            found.add(file)
            waiting += imports_of(file)
    return found


@cache
def imports_of(file: Path) -> tuple[Path, ...]:
    """Return the files of this program that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{one.name}" for one in node.names)}
    paths = (ROOT / f"{name.replace('.', '/')}.py" for name in sorted(names))
    return tuple(path for path in paths if path.is_file())


def hash_of(files: Iterable[Path]) -> str:
    """Return a hash of what the files say to the interpreter."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(ROOT).as_posix()}\n{code_of(file)}\n".encode())
    return digest.hexdigest()


@cache
def code_of(file: Path) -> str:
    """Return the code of a file without comments, docstrings and layout."""
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and is_text(body[0]):
            body[:1] = [] if len(body) > 1 else [ast.Pass()]
    return ast.unparse(tree)


def is_text(node: ast.AST) -> bool:
    """Return whether a statement is a text alone, such as a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
