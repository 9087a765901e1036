"""The house is in order: layers, no circles, short files. And the checks notice when it isn't."""

from pathlib import Path

import pytest

from tests.helpers import house
from tests.helpers.paths import ROOT

FILE_LINES, FUNCTION_LINES, TRAIN_LINES, README_BYTES = 350, 50, 260, 10_000
# What may be longer, and why.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {
    "train.py:fit": "the loop is read in one piece",
    "model/__init__.py:from_pretrained": "twenty of its lines say what its arguments mean",
}


@pytest.fixture(scope="module")
def modules() -> dict[str, Path]:
    return house.find_modules(ROOT)


def test_each_layer_imports_only_those_below_it(modules):
    imports = house.find_imports(modules)
    assert len(imports) > 100
    assert house.upward_imports(imports) == []
    assert house.circles(imports) == []


def test_tests_import_no_tests():
    tests = house.find_tests(ROOT)
    assert len(tests) > 50
    assert house.imports_of_tests(tests) == []


def test_imports_stand_above_definitions(modules):
    assert house.late_imports(modules) == []


def test_nothing_lies_where_no_one_looks():
    assert house.strangers(ROOT) == []


def test_files_and_functions_are_short(modules):
    files = house.long_files(ROOT, modules | house.find_tests(ROOT), FILE_LINES)
    functions = house.long_functions(ROOT, modules, FUNCTION_LINES)
    assert [said for name, said in files.items() if name not in LONG_FILES] == []
    assert [said for name, said in functions.items() if name not in LONG_FUNCTIONS] == []
    assert LONG_FILES.keys() <= files.keys() and LONG_FUNCTIONS.keys() <= functions.keys()  # no reason without need


def test_the_loop_and_the_first_page_are_read_in_one_sitting(modules):
    assert house.long_files(ROOT, {"train": modules["train"]}, TRAIN_LINES) == {}
    assert (ROOT / "README.md").stat().st_size <= README_BYTES


# --- the checks themselves, on a made-up house


def build(root: Path, files: dict[str, str]) -> dict[str, Path]:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return house.find_modules(root)


GOOD = {
    "utils/errors.py": "",
    "config.py": "import json\nfrom utils.errors import UserError\n",
    "model/__init__.py": "from model import gpt2\nfrom model.gpt2 import GPT2\n\n\ndef make(): ...\n",
    "model/gpt2.py": "import torch\n\nfrom config import Run\nfrom utils import errors\n",
    "peft/lora.py": "import model\nimport model.gpt2\n",
    "published/spam.py": "from config import Run\n",
    "pipeline/job.py": "def late():\n    from published.spam import ROWS\n",
}


def test_a_good_house_has_no_faults(tmp_path):
    modules = build(tmp_path, GOOD)
    imports = house.find_imports(modules)
    assert set(imports) >= {("model.gpt2", "config", 3), ("model.gpt2", "utils.errors", 4), ("peft.lora", "model", 1)}
    assert not house.upward_imports(imports) and not house.circles(imports)
    assert not house.late_imports(modules) and not house.strangers(tmp_path)
    assert not house.long_files(tmp_path, modules, 10) and not house.long_functions(tmp_path, modules, 10)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("model/bert.py", "import peft.lora\n", "model.bert:1 imports peft.lora"),
        ("model/bert.py", "def f():\n    from peft import lora\n", "model.bert:2 imports peft.lora"),
        ("utils/files.py", "from config import Run\n", "utils.files:1 imports config"),
        ("data/task.py", "from peft.lora import LoRA\n", "data.task:1 imports peft.lora"),
        ("training/device.py", "import train\n", "training.device:1 imports train"),
        ("published/rows.py", "import model\n", "published.rows:1 imports model"),
        ("pipeline/tables.py", "import experiments\n", "pipeline.tables:1 imports experiments"),
    ],
)
def test_an_upward_import_is_found(tmp_path, file, text, said):
    files = GOOD | {"train.py": "", "experiments.py": "", file: text}
    assert house.upward_imports(house.find_imports(build(tmp_path, files))) == [said]


@pytest.mark.parametrize("text", ["from model import gpt2\n", "def f():\n    from . import gpt2\n", "import model.gpt2\n"])
def test_a_circle_is_found(tmp_path, text):
    files = GOOD | {"model/gpt2.py": "from model.blocks import Block\n", "model/blocks.py": text}
    (circle,) = house.circles(house.find_imports(build(tmp_path, files)))
    assert set(circle.split(" <- ")) == {"model.gpt2", "model.blocks"}


def test_a_part_that_imports_its_own_package_is_a_circle(tmp_path):
    files = GOOD | {"model/gpt2.py": "from model import make\n"}
    assert house.circles(house.find_imports(build(tmp_path, files)))


def test_an_import_of_a_test_is_found(tmp_path):
    files = {"tests/helpers/small.py": "", "tests/conftest.py": "", "tests/model/test_a.py": ""}
    good = "import model\nfrom tests.helpers import small\nfrom tests.helpers.small import make\n"
    build(tmp_path, files | {"tests/test_b.py": good})
    assert house.imports_of_tests(house.find_tests(tmp_path)) == []
    for text in (
        "from tests.conftest import ROOT\n",
        "from tests.model.test_a import tiny\n",
        "from tests.model import test_a\n",
    ):
        build(tmp_path, {"tests/test_b.py": text})
        (said,) = house.imports_of_tests(house.find_tests(tmp_path))
        assert said.startswith("tests.test_b:1 imports tests.")


def test_an_import_at_the_bottom_of_a_package_is_found(tmp_path):
    modules = build(tmp_path, GOOD | {"peft/__init__.py": "def attach(): ...\n\n\nfrom peft import lora\n"})
    assert house.late_imports(modules) == ["peft:4 imports below a definition"]


def test_a_file_without_a_place_is_found(tmp_path):
    build(tmp_path, GOOD | {"hub.py": "", "models/gpt2.py": "", "tests/test_a.py": "", "docs/page.md": ""})
    assert house.strangers(tmp_path) == ["hub.py", "models/"]


def test_what_is_long_is_found(tmp_path):
    body = "class A:\n    def run(self):\n" + "        pass\n" * 9
    modules = build(tmp_path, {"model/gpt2.py": body})
    assert house.long_files(tmp_path, modules, 11) == house.long_functions(tmp_path, modules, 10) == {}
    assert house.long_files(tmp_path, modules, 10) == {"model/gpt2.py": "model/gpt2.py has 11 lines"}
    assert house.long_functions(tmp_path, modules, 9) == {"model/gpt2.py:run": "model/gpt2.py:run has 10 lines"}
