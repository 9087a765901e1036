"""Hold README.md, CONTRIBUTING.md and docs/ to the program: commands, links, paths and code."""

import importlib.util
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import run as benchmarks
from config import Run, explicit
from pipeline.comparison.jobs import comparisons_of
from pipeline.comparison.table import chosen_entries
from pipeline.flags import METHODS_TABLE, SAMPLING, TRAINED, find_row, parse, parse_rows, parse_shard
from pipeline.unused import refuse_unused_in_rows
from published import get_table
from tests.helpers.paths import ROOT
from utils.errors import UserError

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "benchmarks/README.md",
        *(ROOT / "docs").rglob("*.md"),
    )
}


def found(pattern: str, without: str = "") -> list[str]:
    """Return what the pattern finds in any of the pages but one, each once."""
    texts = [text for page, text in PAGES.items() if page != without]
    return sorted({match.strip() for text in texts for match in re.findall(pattern, text)})


COMMAND = r"(?:python|torchrun \S+) experiments\.py[^\n`|&]*"


ANY_RUN = (*TRAINED, *SAMPLING)  # flags of a trained model, whose other flags its own check takes


@pytest.mark.parametrize("command", found(COMMAND, without="docs/extending.md"))  # test_extending.py runs those
def test_every_command_is_accepted(command):
    words = shlex.split(command, comments=True)
    words = words[words.index("experiments.py") + 1 :]
    if "--help" in words:
        return
    overrides, options = parse(words)
    assert words == [] or options or explicit(overrides)
    if "row" in options:
        runs = [find_row(options["row"]).with_flags(overrides)]
    elif options.get("table") == METHODS_TABLE:
        assert chosen_entries(parse_rows(options["rows"]) if "rows" in options else None)
        runs = [job.run for job in comparisons_of(anywhere(overrides))]
    elif "table" in options:
        table = get_table(options["table"])
        numbers = parse_rows(options["rows"]) if "rows" in options else [row.number for row in table.rows]
        runs = [table.row(number).with_flags(overrides) for number in numbers]
        parse_shard(options.get("shard", "1/1"))
    else:
        runs = [] if options.keys() & {*ANY_RUN, "list", "download"} else [overrides]
    refuse_unused_in_rows(overrides, [anywhere(run) for run in runs])


def anywhere(run: Run) -> Run:
    """Return the run with files that are here in the place of those that a page only names."""
    if run.objective:
        return replace(run, checkpoint=None, dataset=None)
    if run.checkpoint:
        run = replace(run, checkpoint=None, model="distilbert-pocket")
    if run.dataset and run.dataset.endswith((".csv", ".tsv", ".jsonl")):
        run = replace(run, dataset="sentiment-pocket")
    return replace(run, dataset="persona") if run.dataset and run.dataset.endswith(".json") else run


def test_a_flag_that_nothing_uses_would_be_noticed():
    with pytest.raises(UserError, match="--lora_rank is not used by --trainable_layers last_layer"):
        test_every_command_is_accepted("python experiments.py --trainable_layers last_layer --lora_rank 4")


@pytest.mark.parametrize("command", found(r"python benchmarks/run\.py[^\n`|&]*"))
def test_every_benchmark_is_accepted(command):
    args = benchmarks.parse(shlex.split(command)[2:])
    assert args.suite in benchmarks.SUITES


def test_every_module_and_test_that_is_named_is_there():
    modules = [name for name in found(r"python -m ([\w.]+)") if name not in ("pip", "pytest", "venv")]
    assert "tools.render_tables" in modules
    assert not [name for name in modules if importlib.util.find_spec(name) is None]
    assert not [path for path in found(r"(?<![\w/.])tests/[\w/]+(?:\.py)?") if not (ROOT / path).exists()]


def test_every_path_in_backticks_is_there():
    paths = found(r"`((?:model|peft|data|training|pipeline|published|tools|utils|docs|tests|benchmarks)/[\w/.-]*)`")
    assert "peft/lora.py" in paths
    assert not [path for path in paths if not (ROOT / path).exists() and not re.search(r"[A-Z]{3}", path)]  # SUITE


def test_files_of_the_tree_are_there_and_no_folder_is_missing():
    tree = README.split("## The house")[1].split("```")[1]
    named = [line.split()[0].rstrip("/") for line in tree.splitlines() if line.strip()]
    assert not [name for name in named if not (ROOT / name).exists()]
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert {path.split("/")[0] for path in tracked} <= set(named)


@pytest.mark.parametrize("page", PAGES)
def test_no_link_is_dead(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", PAGES[page]):
        if "://" in target:
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), anchor


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_can_be_reached_from_the_readme():
    reached = {link for link in re.findall(r"\]\(([^)#]+)\)", README) if link.endswith(".md")}
    assert {page for page in PAGES if page.startswith("docs/")} <= reached


def test_ci_runs_the_readme_test_command():
    command = next(line for line in README.splitlines() if "python -m pytest" in line)
    lines = (ROOT / ".ci/run").read_text().splitlines()
    first, last = (lines.index(part) for part in command.split(" && "))  # real weights are brought in between
    assert first < last
    assert "run: .ci/run" in (ROOT / ".github/workflows/ci.yml").read_text()


def test_run_time_dependencies_are_the_five_and_pinned():
    lines = (ROOT / "requirements.txt").read_text().split()
    assert {line.split("==")[0] for line in lines} == {"torch", "tiktoken", "numpy", "safetensors", "huggingface_hub"}
    assert all("==" in line for line in lines) and "torch==2.13.0" in lines


EXAMPLES = [
    pytest.param(code, id=f"{page}-{number}")
    for page in ("README.md", "docs/methods.md")
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL))
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_python_runs(code, tmp_path):
    environment = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
