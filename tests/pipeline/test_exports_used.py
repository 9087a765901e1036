"""Every kind of export is used by the library itself: ids, logits, generation that stops, and labels by name."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import experiments
from model.config_file import read_config
from model.hub import POCKET_DIR
from model.tokenizers.files import OPENAI_PAIR
from pipeline.chat import make_speaker
from pipeline.reload import load_run
from tests.helpers.small import make_checkpoint, make_encoder
from utils.errors import UserError

pytestmark = pytest.mark.not_quick  # the library runs in a process of its own
POCKET = POCKET_DIR / "gpt2-pocket"
QUESTION = "Who are you?\n"
TEXTS = [
    f"{start} {i} {end}"
    for i, (start, end) in enumerate(
        (start, end)
        for start in ("A fine film", "café, naïve", "don't we'll", "  two  spaces", "UPPER lower 0123")
        for end in (
            "!",
            "and 海 by the sea",
            "...\nnew line",
            "tab\there",
            "?!?",
            "x" * 30,
            "Äöü ß",
            "a.b,c",
            "#tag @me",
            "",
        )
    )
]

# A GPT-2 of the library with more tokens, as people make it: name -> (tokens, rows of padding, what config.json then says).
WITH_TOKENS = """
import json, os, sys, torch, transformers as t
pocket, plan = sys.argv[1], json.load(open(sys.argv[2]))
for out, (tokens, rows, settings) in plan.items():
    k, m = t.AutoTokenizer.from_pretrained(pocket), t.AutoModelForCausalLM.from_pretrained(pocket)
    k.add_special_tokens(tokens)
    torch.manual_seed(0)
    m.resize_token_embeddings(len(k) + rows)
    if "pad_token" in tokens:
        m.config.pad_token_id = k.pad_token_id
    if "eos_token" in tokens:
        m.config.eos_token_id = m.generation_config.eos_token_id = k.eos_token_id
    m.save_pretrained(out), k.save_pretrained(out)
    file = out + "/config.json"
    config = json.load(open(file)) | settings
    json.dump({n: v for n, v in config.items() if v != "left out"}, open(file, "w"))
    if settings:  # without it the library takes the ids from config.json
        os.remove(out + "/generation_config.json")
"""

USE = """
import json, sys, torch, transformers as t
from safetensors.torch import save_file
folder = sys.argv[1]
given = json.load(open(folder + "/given.json"))
found, tensors = {}, {}
for name, (path, head, texts, question) in given.items():
    k = t.AutoTokenizer.from_pretrained(path)
    auto = t.AutoModelForSequenceClassification if head == "classifier" else t.AutoModelForCausalLM
    m, report = auto.from_pretrained(path, output_loading_info=True)
    told = found[name] = {"ids": [k(text)["input_ids"] for text in texts], "size": len(k)}
    told["problems"] = [*map(str, (*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]))]
    told["config"] = {one: getattr(m.config, one) for one in ("bos_token_id", "eos_token_id", "pad_token_id")}
    m.eval()
    with torch.no_grad():
        rows = [m(input_ids=torch.tensor([ids])).logits[0] for ids in told["ids"] if ids]
    tensors[name] = torch.stack([row if head == "classifier" else row[-1] for row in rows])
    if head == "classifier":
        told["labels"] = [one["label"] for one in t.pipeline("text-classification", model=m, tokenizer=k)(texts[:8])]
    else:
        x = torch.tensor([k.encode(question)])
        told["answer"] = m.generate(x, max_new_tokens=60, do_sample=False)[0, x.shape[1] :].tolist()
save_file(tensors, folder + "/logits.safetensors")
json.dump(found, open(folder + "/found.json", "w"))
"""


def library(code: str, *argv, folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code, *map(str, argv)], cwd=folder, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]


PAD = {"pad_token": "[PAD]"}
GENERATORS = {
    "pocket": None,
    "padding token": (PAD, 0, {}),
    "padding token, no ids in config.json": (PAD, 0, dict.fromkeys(("bos_token_id", "eos_token_id"), "left out")),
    "padded vocabulary": ({}, 63, {}),
    "end of its own": ({"eos_token": "<|im_end|>", **PAD}, 5, {}),
    "end of its own, another in config.json": ({"eos_token": "<|im_end|>"}, 0, {"eos_token_id": 3056}),
}
CLASSIFIERS = ("gpt2", "distilbert", "bert", "roberta")


@dataclass
class Used:
    runs: dict[str, Path]
    exports: dict[str, Path]
    there: dict[str, dict]
    logits: dict[str, torch.Tensor]


def train(folder: Path, name: str, *flags) -> tuple[Path, Path]:
    run, out = folder / "runs" / name, folder / "exports" / name
    flags = [*flags, "--eval_train", "no", "--device", "cpu", "--amp", "off", "--output_dir", run]
    assert experiments.main([*map(str, flags)]) == 0
    assert experiments.main(["--export_model", str(out), "--run_dir", str(run)]) == 0
    return run, out


@pytest.fixture(scope="module")
def used(tmp_path_factory, encoder_data) -> Used:
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("used")
    plan = {str(folder / "made" / name): made for name, made in GENERATORS.items() if made}
    (folder / "plan.json").write_text(json.dumps(plan))
    library(WITH_TOKENS, POCKET, folder / "plan.json", folder=folder)
    records = [{"instruction": QUESTION.strip(), "output": f"I am Ada, number {i % 2}."} for i in range(40)]
    (folder / "ada.json").write_text(json.dumps(records))
    heads = dict.fromkeys(GENERATORS, "lm") | dict.fromkeys(CLASSIFIERS, "classifier")
    runs, exports = {}, {}
    for name in GENERATORS:
        base = folder / "made" / name if GENERATORS[name] else POCKET
        flags = (
            "--checkpoint",
            base,
            "--dataset",
            folder / "ada.json",
            "--trainable_layers",
            "all",
            "--learning_rate",
            2e-3,
        )
        runs[name], exports[name] = train(folder, name, *flags, "--num_epochs", 8 if "own" in name else 3)
    for kind in CLASSIFIERS:
        base = folder / "base" / kind
        texts = " ".join(TEXTS)
        make_checkpoint(base, texts) if kind == "gpt2" else make_encoder(base, kind, encoder_data)
        more = ("--trainable_token_pos", "flexible") if kind == "gpt2" else ()
        flags = ("--checkpoint", base, "--data_dir", encoder_data, "--dataset", "sst2", "--max_steps", 30, *more)
        runs[kind], exports[kind] = train(folder, kind, *flags, "--trainable_layers", "all", "--learning_rate", 3e-3)
    given = {name: (str(path), heads[name], TEXTS, QUESTION) for name, path in exports.items()}
    (folder / "given.json").write_text(json.dumps(given))
    library(USE, folder, folder=folder)
    there = json.loads((folder / "found.json").read_text())
    return Used(runs, exports, there, load_file(folder / "logits.safetensors"))


@pytest.mark.parametrize("name", [*GENERATORS, *CLASSIFIERS])
def test_ids_and_logits_are_the_same_there(used, name):
    trained, there = load_run(used.runs[name]), used.there[name]
    tokenizer, model = trained.inputs.tokenizer, trained.model
    ids = [tokenizer.build(tokenizer.encode(text))[0] for text in TEXTS]
    assert len(TEXTS) == 50 and there["ids"] == ids
    assert not there["problems"]
    with torch.no_grad():
        rows = [model(torch.tensor([one]))[0] for one in ids if one]
    logits = torch.stack([row if model.head.kind == "classifier" else row[-1] for row in rows])
    assert (logits - used.logits[name]).abs().max() <= 1e-5 * logits.abs().max()


@pytest.mark.parametrize("name", GENERATORS)
def test_generation_stops_there_and_here_at_the_same_token(used, name):
    there, tokenizer = used.there[name], load_run(used.runs[name]).inputs.tokenizer
    end = 3057 if "own" in name else 3056  # <|im_end|> or <|endoftext|>
    assert tokenizer.end_of_text == end
    assert there["config"]["eos_token_id"] == end and there["answer"][-1] == end
    assert 1 < len(there["answer"]) < 60 and end not in there["answer"][:-1]
    sampling = {"max_new_tokens": 60}
    speaker = make_speaker(experiments.Run(), str(used.runs[name]), sampling)
    assert "".join(speaker.answer(QUESTION.strip())) == tokenizer.decode(there["answer"][:-1])
    pad = None if "padding token" not in name and name != "end of its own" else tokenizer.pad_id
    assert there["config"]["pad_token_id"] == pad
    config, _ = read_config(used.exports[name])
    assert (config.end_ids, config.pad_id) == ((end,), pad)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_pipeline_finds_the_same_classes(used, name):
    trained = load_run(used.runs[name])
    tokenizer = trained.inputs.tokenizer
    with torch.no_grad():
        ids = [tokenizer.build(tokenizer.encode(text))[0] for text in TEXTS[:8]]
        numbers = [int(trained.model(torch.tensor([one])).argmax()) for one in ids]
    names = json.loads((used.exports[name] / "config.json").read_text())["id2label"]
    assert used.there[name]["labels"] == [names[str(number)] for number in numbers]


# Where a tokenizer comes from, and where an export goes


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), OPENAI_PAIR])
@pytest.mark.parametrize("beside", [False, True])
def test_any_tokenizer_is_exported_so_that_the_library_finds_it(names, beside, alone):
    transformers = pytest.importorskip("transformers")
    checkpoint, tokenizer = alone / "checkpoint", alone / "tokenizer"
    for folder in (checkpoint, tokenizer):
        folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(POCKET / name, checkpoint)
    for own, name in zip(("vocab.json", "merges.txt"), names, strict=True):
        shutil.copy(POCKET / own, (checkpoint if beside else tokenizer) / name)
    flags = [] if beside else ["--tokenizer", str(tokenizer)]
    flags += ["--checkpoint", str(checkpoint), "--dataset", "persona", "--max_steps", "1", "--eval_train", "no"]
    assert experiments.main([*flags, "--device", "cpu", "--output_dir", "run"]) == 0
    assert experiments.main(["--export_model", "out", "--run_dir", "run"]) == 0
    assert files(Path("out")) == {"config.json", "model.safetensors", "vocab.json", "merges.txt"}
    there, expected = (transformers.AutoTokenizer.from_pretrained(str(path)) for path in ("out", POCKET))
    assert len(there) == len(expected) == 3057
    assert [there(text)["input_ids"] for text in TEXTS] == [expected(text)["input_ids"] for text in TEXTS]


STALE = {
    "shards": ("model.safetensors.index.json", "model-00001-of-00002.safetensors"),
    "a tokenizer": ("tokenizer.json",),
    "settings": ("tokenizer_config.json", "generation_config.json"),
    "an adapter": ("adapter_config.json",),
    "a folder": ("onnx/model.onnx",),
}


@pytest.mark.parametrize("what", STALE)
def test_an_export_leaves_nothing_of_another_model_beside_it(experiment, what, capsys):
    flags = ("--trainable_layers", "lora", "--trainable_token_pos", "flexible")
    run = str(experiment(*flags).directory)
    for flag, own in (("--export_model", "config.json"), ("--export_peft", "adapter_model.safetensors")):
        out = Path(f"used{flag}")
        for name in STALE[what]:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text("of another model")
        before = files(out)
        if flag == "--export_peft" and what == "an adapter":
            continue
        with pytest.raises(UserError, match=f"{flag} .*holds {min(before)}.*name an empty or a new directory"):
            experiments.main([flag, str(out), "--run_dir", run])
        assert files(out) == before and own not in before
    for flag in ("--export_model", "--export_peft"):  # again into an export of its own
        for _ in range(2):
            assert experiments.main([flag, f"own{flag}", "--run_dir", run]) == 0
    expected = {"config.json", "model.safetensors", "vocab.json", "merges.txt"}
    assert files(Path("own--export_model")) >= expected
    assert files(Path("own--export_peft")) >= {"adapter_config.json", "adapter_model.safetensors"}


def test_what_the_run_began_with_is_not_written_over(experiment, small_checkpoint):
    run = str(experiment("--trainable_token_pos", "flexible").directory)
    before = (small_checkpoint / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="is what the run began with"):
        experiments.main(["--export_model", str(small_checkpoint), "--run_dir", run])
    assert (small_checkpoint / "model.safetensors").read_bytes() == before


def test_an_untied_model_goes_through_a_run_and_out_again(alone):
    """The head stays apart, and stays as it was where only adapters are trained."""
    transformers = pytest.importorskip("transformers")
    base = alone / "base"
    shutil.copytree(POCKET, base)
    tensors = load_file(base / "model.safetensors")
    embedding = tensors["transformer.wte.weight"].float()
    tensors["lm_head.weight"] = embedding + 0.05 * torch.randn_like(embedding)
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    flags = ["--checkpoint", str(base), "--dataset", "persona", "--trainable_layers", "lora", "--max_steps", "3"]
    flags += ["--learning_rate", "1e-2", "--eval_train", "no", "--device", "cpu", "--amp", "off", "--output_dir", "run"]
    assert experiments.main(flags) == 0
    assert experiments.main(["--export_model", "out", "--run_dir", "run"]) == 0
    exported = load_file("out/model.safetensors")
    assert torch.equal(exported["lm_head.weight"], tensors["lm_head.weight"].float())
    assert torch.equal(exported["transformer.wte.weight"], embedding)
    ids, model = torch.arange(5, 45)[None], load_run("run").model
    theirs = transformers.AutoModelForCausalLM.from_pretrained("out").eval()
    with torch.no_grad():
        expected = theirs(ids).logits
        assert (model(ids) - expected).abs().max() <= 1e-5 * expected.abs().max()
