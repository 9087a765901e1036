"""What runs of Llamas leave, in the library's hands: whole models and adapters with the same ids, logits and labels."""

import contextlib
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import experiments
from model.generation import generate
from model.registry import ARCHITECTURES
from model.tokenizers.load import load_tokenizer
from model.weights import save_pretrained
from pipeline.reload import TrainedRun, load_run
from tests.helpers.architectures import small_config
from tests.helpers.decoder_tokenizers import MAKERS

pytestmark = pytest.mark.not_quick  # the library runs in a process of its own

QUESTION = "Who are you?"
TEXTS = ["A fine film!", "café, naïve", "don't we'll  two  spaces", "UPPER lower 0123\n\n  new line", "a.b,c #tag @me ..."]
# name -> (model, tokenizer, head, flags)
RUNS = {
    "llama classifier": ("llama", "smollm2", "classifier", ("lora", "--lora_target", "all", "--lora_rank", 4)),
    "qwen3 classifier": ("qwen3", "qwen", "classifier", ("dora", "--lora_target", "q_proj,mlp.gate", "--lora_rank", 4)),
    "qwen2 writer": ("qwen2", "qwen", "lm", ("lora", "--lora_target", "attn,mlp.down", "--lora_rank", 16)),
    "llama writer": ("llama", "llama3", "lm", ("ia3", "--train_head", "no")),
    "mistral prompt classifier": ("mistral", "smollm2", "classifier", ("prompt", "--prefix_length", 3)),
    "mistral prefix": ("mistral", "llama3", "lm", ("prefix", "--prefix_length", 4)),
}
WHOLE = [name for name in RUNS if "mistral" not in name]  # no published layer holds what stands in front

USE = """
import json, sys, torch, transformers as t, peft
from safetensors.torch import save_file
folder = sys.argv[1]
found, tensors = {}, {}
for name, (base, whole, adapter, head, ids) in json.load(open(folder + "/given.json")).items():
    auto = t.AutoModelForSequenceClassification if head == "classifier" else t.AutoModelForCausalLM
    told = found[name] = {}
    def logits(model):
        with torch.no_grad():
            return torch.stack([model.eval()(input_ids=torch.tensor([one])).logits[0].flatten()[-2:] for one in ids])
    if whole:
        k = t.AutoTokenizer.from_pretrained(whole)
        m, report = auto.from_pretrained(whole, output_loading_info=True)
        told["problems"] = [*map(str, (*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]))]
        told["ids"] = [k(text)["input_ids"] for text in json.load(open(folder + "/texts.json"))]
        tensors[name] = logits(m)
        if head == "classifier":
            told["labels"] = [one["label"] for one in t.pipeline("text-classification", model=m, tokenizer=k)(
                json.load(open(folder + "/texts.json")))]
        else:
            x = torch.tensor([ids[0]])
            told["answer"] = m.generate(x, max_new_tokens=12, do_sample=False)[0, x.shape[1] :].tolist()
    more = {"num_labels": 2} if head == "classifier" else {}
    tensors["peft " + name] = logits(peft.PeftModel.from_pretrained(auto.from_pretrained(base, **more), adapter))
save_file(tensors, folder + "/logits.safetensors")
json.dump(found, open(folder + "/found.json", "w"))
"""


def make_base(kind: str, tokenizer: str, folder: Path) -> Path:
    MAKERS[tokenizer](folder)
    ends = load_tokenizer(folder)
    torch.manual_seed(1)
    sizes = {"vocab_size": ends.vocab_size + 3, "context_length": 256, "end_ids": ends.end_ids, "tied": kind != "llama"}
    model = ARCHITECTURES[kind].model(small_config(kind, **sizes))
    model.head = ARCHITECTURES[kind].lm_head(model)
    save_pretrained(model, folder)
    return folder


@dataclass
class Used:
    folder: Path
    runs: dict[str, Path]
    said: dict[str, str]  # on each export as an adapter
    there: dict[str, dict]
    logits: dict[str, torch.Tensor]


def command(*argv) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert experiments.main([*map(str, argv)]) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def used(tmp_path_factory, encoder_data) -> Used:
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("used")
    records = [{"instruction": QUESTION, "output": f"I am Ada, number {i % 2}."} for i in range(40)]
    (folder / "ada.json").write_text(json.dumps(records))
    (folder / "texts.json").write_text(json.dumps(TEXTS))
    runs, said, given = {}, {}, {}
    for name, (kind, tokenizer, head, (method, *flags)) in RUNS.items():
        base, run = make_base(kind, tokenizer, folder / "base" / name), folder / "runs" / name
        data = ("sst2", "--data_dir", encoder_data) if head == "classifier" else (folder / "ada.json",)
        argv = ["--checkpoint", base, "--dataset", *data, "--trainable_layers", method, *flags, "--max_steps", 12]
        command(
            *argv, "--learning_rate", 3e-2, "--eval_train", "no", "--device", "cpu", "--amp", "off", "--output_dir", run
        )
        runs[name], whole = run, str(folder / "whole" / name) if name in WHOLE else None
        if whole:
            command("--export_model", whole, "--run_dir", run)
        said[name] = command("--export_peft", folder / "adapters" / name, "--run_dir", run)
        ids = [load_tokenizer(base).encode(text) for text in TEXTS]
        given[name] = (str(base), whole, str(folder / "adapters" / name), head, ids)
    (folder / "given.json").write_text(json.dumps(given))
    argv = [sys.executable, "-c", USE, str(folder)]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
    there = json.loads((folder / "found.json").read_text())
    return Used(folder, runs, said, there, load_file(folder / "logits.safetensors"))


@torch.no_grad()
def logits_of(trained: TrainedRun) -> torch.Tensor:
    """Return the last two logits of each text, [5, 2]: all of a classifier's."""
    ids = [trained.inputs.tokenizer.encode(text) for text in TEXTS]
    return torch.stack([trained.model(torch.tensor([one]))[0].flatten()[-2:] for one in ids])


@pytest.mark.parametrize("name", RUNS)
def test_logits_are_the_same_there(used, name):
    trained = load_run(used.runs[name])
    logits = logits_of(trained)
    if name in WHOLE:
        tokenizer = trained.inputs.tokenizer
        assert used.there[name]["problems"] == []
        assert used.there[name]["ids"] == [tokenizer.build(tokenizer.encode(text))[0] for text in TEXTS]
        assert (logits - used.logits[name]).abs().max() <= 1e-5 * max(1, logits.abs().max())
    assert (logits - used.logits[f"peft {name}"]).abs().max() <= 1e-5 * max(1, logits.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in WHOLE if "classifier" in name])
def test_labels_by_name(used, name):
    trained = load_run(used.runs[name])
    tokenizer, labels = trained.inputs.tokenizer, trained.inputs.task.labels
    numbers = [int(trained.model(torch.tensor([tokenizer.build(tokenizer.encode(text))[0]])).argmax()) for text in TEXTS]
    assert used.there[name]["labels"] == [labels[number] for number in numbers]


@pytest.mark.parametrize("name", [name for name in WHOLE if "writer" in name])
def test_greedy_answers(used, name):
    trained = load_run(used.runs[name])
    ids = torch.tensor([trained.inputs.tokenizer.encode(TEXTS[0])])
    (answer,) = generate(trained.model, ids, max_new_tokens=12, eos_id=trained.inputs.tokenizer.end_ids)
    there = used.there[name]["answer"]
    assert answer == [token for token in there if token not in trained.inputs.tokenizer.end_ids]


@pytest.mark.parametrize("name", RUNS)
def test_an_adapter_is_used_again(used, name, encoder_data, tmp_path):
    """A run that begins with the adapter, and trains nothing, has the model of the run that made it."""
    data = ("sst2", "--data_dir", encoder_data) if "classifier" in name else (used.folder / "ada.json",)
    argv = ["--checkpoint", used.folder / "base" / name, "--dataset", *data, "--adapter", used.folder / "adapters" / name]
    command(*argv, "--num_epochs", 0, "--device", "cpu", "--amp", "off", "--output_dir", tmp_path)
    expected, found = logits_of(load_run(used.runs[name])), logits_of(load_run(tmp_path))
    assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


def test_what_is_said_of_padding(used):
    assert "give it texts without padding" in used.said["mistral prompt classifier"]
    assert "config.pad_token_id" in used.said["llama classifier"]
    assert "padding" not in used.said["mistral prefix"]
