"""A classifier that comes with a checkpoint or an adapter: read as the library reads it, its labels by their names."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy, pad

import experiments
from config import Run
from pipeline.build import build_model
from pipeline.job import prepare
from tests.helpers.classifiers import PAD, make_body, make_classifier
from tests.helpers.small import make_encoder
from utils.errors import UserError

KINDS = ("gpt2", "distilbert", "bert", "roberta")
EVALUATE = ("--num_epochs", 0)


def test_texts(folder: Path, data: Path) -> tuple[list[list[int]], torch.Tensor]:
    """Return the test split of the small spam data as token ids, and its labels."""
    inputs = prepare(Run(checkpoint=str(folder), data_dir=str(data), dataset="spam", device="cpu", amp="off")).inputs
    examples = inputs.splits["test"]
    ids = [list(inputs.tokenizer.build(inputs.tokenizer.encode(one.text), None)[0]) for one in examples]
    return ids, torch.tensor([one.label for one in examples])


test_texts.__test__ = False


@torch.no_grad()
def library_loss(model, ids: list[list[int]], labels: torch.Tensor, filler: int) -> float:
    """Return the loss of the library's model on one batch, padded on the right and masked."""
    width = max(map(len, ids))
    rows = torch.stack([pad(torch.tensor(one), (0, width - len(one)), value=filler) for one in ids])  # [B, T]
    mask = torch.stack([pad(torch.ones(len(one)), (0, width - len(one))) for one in ids])
    return cross_entropy(model(input_ids=rows, attention_mask=mask).logits, labels).item()


def loss_of(found) -> float:
    """Return the loss on the test split at the end of a run."""
    return next(one["loss"] for one in found.metrics if one["split"] == "final test")


# --- where a classifier reads


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoints_classifier_reads_as_the_librarys(kind, experiment, small_data, encoder_data, alone):
    body = make_body(alone / "body", kind, small_data, encoder_data)
    theirs = make_classifier(alone / "theirs", body, kind, ("ham", "spam"))
    expected = library_loss(theirs, *test_texts(alone / "theirs", small_data), PAD.get(kind, 0))
    found = experiment(*EVALUATE, "--trim", "no", checkpoint=alone / "theirs", dataset="spam")
    assert loss_of(found) == pytest.approx(expected, rel=1e-5)
    config = found.result["config"]
    assert config["no_padding"] and config["trainable_token_pos"] == ("flexible" if kind == "gpt2" else "first")
    assert "the checkpoint's classifier was trained to read the " in found.out and found.result["drawn"] == []
    changed = next(line for line in found.out.splitlines() if line.startswith("changed "))
    assert "trainable_token_pos" not in changed and "no_padding" not in changed


OVERRIDES = {
    "the first token": (("--trainable_token_pos", "first"), "--trainable_token_pos first"),
    "padding": (("--no-no_padding", "--trainable_token_pos", "last"), "--trainable_token_pos last --no-no_padding"),
    "the mean": (("--average_embeddings",), "--average_embeddings"),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_flag_overrides_where_it_reads(name, experiment, small_data, encoder_data, alone):
    flags, said = OVERRIDES[name]
    make_classifier(alone / "theirs", make_body(alone / "b", "gpt2", small_data, encoder_data), "gpt2", ("ham", "spam"))
    as_trained = experiment(*EVALUATE, checkpoint=alone / "theirs")
    found = experiment(*EVALUATE, *flags, checkpoint=alone / "theirs", output_dir="other")
    assert abs(loss_of(found) - loss_of(as_trained)) > 1e-3
    assert f"trained to read the last real token, padding hidden; overridden by {said}" in found.out
    assert any("overridden by" in note for note in found.result["notes"])
    same = experiment(*EVALUATE, "--trainable_token_pos", "flexible", checkpoint=alone / "theirs", output_dir="same")
    assert loss_of(same) == loss_of(as_trained) and "overridden" not in same.out


def test_a_drawn_classifier_reads_as_the_recipe_says(experiment, small_checkpoint):
    config = experiment(*EVALUATE).result["config"]
    assert (config["trainable_token_pos"], config["no_padding"], config["head_labels"]) == ("last", False, None)


READINGS = {
    "the recipe's": (),
    "the last real token": ("--trainable_token_pos", "flexible"),
    "no padding": ("--trainable_token_pos", "flexible", "--no_padding"),
}


@pytest.mark.parametrize("name", READINGS)
@pytest.mark.parametrize("export", ["export_model", "export_peft"])
def test_an_export_is_read_as_it_was_trained(name, export, experiment, small_checkpoint):
    flags = ("--trainable_layers", "lora", "--lora_rank", 2, *READINGS[name])
    first = experiment(*flags, max_steps=6, learning_rate=1e-2)
    assert experiments.main([f"--{export}", "out-hf", "--run_dir", str(first.directory)]) == 0
    where = {"checkpoint": "out-hf"} if export == "export_model" else {"adapter": "out-hf"}
    again = experiment(*EVALUATE, **where, output_dir="again")
    assert loss_of(again) == pytest.approx(loss_of(first), rel=1e-4)
    own = Path("out-hf/classifier.json")
    says = json.loads(own.read_text()) if own.is_file() else {}
    assert ("trainable_token_pos" in says) is (name == "the recipe's")
    assert says.get("labels") == (["ham", "spam"] if export == "export_peft" else None)


@pytest.mark.parametrize("content", ["[]", "{", '{"no_padding": 1}', '{"labels": "ham"}', '{"position": "last"}'])
def test_what_stands_beside_an_export_is_read_or_refused(content, small_data, encoder_data, alone):
    folder = alone / "theirs"
    make_classifier(folder, make_body(alone / "b", "gpt2", small_data, encoder_data), "gpt2", ("ham", "spam"))
    (folder / "classifier.json").write_text(content)
    with pytest.raises(UserError, match=r"classifier.json (has|can't be read)"):
        prepare(Run(checkpoint=str(folder), data_dir=str(small_data)))


# --- the names of labels

ORDERS = [
    ("restaurant_sup", ("neutral", "positive", "negative"), "1,2,0"),
    ("restaurant_sup", ("LABEL_2", "LABEL_0", "LABEL_1"), "1,2,0"),
    ("sst2", ("1", "0"), "0,1"),  # these are the names
    ("restaurant_sup", ("Positive", "NEGATIVE", "Neutral"), None),
    ("agnews_sup", ("Sci/Tech", "Business", "Sports", "World"), "3,2,1,0"),
    ("rte", ("NOT_ENTAILMENT", "ENTAILMENT"), "1,0"),
    ("sst2", ("LABEL_0", "LABEL_1"), None),
    ("spam", ("spam", "ham"), "1,0"),
]


@pytest.mark.parametrize("kind", ["gpt2", "distilbert"])
@pytest.mark.parametrize(("task", "names", "order"), ORDERS)
def test_labels_are_taken_by_their_names(task, names, order, kind, small_data, encoder_data, alone):
    make_classifier(alone / "theirs", make_body(alone / "body", kind, small_data, encoder_data), kind, names)
    job = prepare(Run(checkpoint=str(alone / "theirs"), dataset=task))
    assert job.run.head_labels == order and bool(order) is any("which is followed" in note for note in job.notes)
    name = "score.weight" if kind == "gpt2" else "classifier.weight"
    stored = load_file(alone / "theirs" / "model.safetensors")[name]
    rows = [names.index(one) if one in names else int(one) for one in (order or "0,1,2,3").split(",")][: len(names)]
    head = build_model(job.run, len(names)).head
    assert torch.equal(head.classifier.weight, stored[rows])


def swap(folder: Path, to: Path, names: tuple[str, str]) -> Path:
    """Save a DistilBERT classifier with its two labels in the other order, under these names."""
    shutil.copytree(folder, to)
    tensors = load_file(folder / "model.safetensors")
    tensors |= {name: tensors[name].flip(0).contiguous() for name in ("classifier.weight", "classifier.bias")}
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"id2label": dict(enumerate(names))}
    config.pop("label2id")
    (to / "config.json").write_text(json.dumps(config))
    return to


@pytest.fixture
def sentiment(experiment, encoder_data, alone):
    """Return a function that evaluates a checkpoint, or trains it with more flags, on small sentiment data."""
    body = make_encoder(alone / "body", "distilbert", encoder_data)
    make_classifier(alone / "plain", body, "distilbert", ("negative", "positive"))

    def run(folder: Path, *flags, **more):
        more = {"dataset": "sst2", "data_dir": encoder_data, "max_steps": None} | more
        return experiment(*(flags or EVALUATE), checkpoint=folder, output_dir=alone / f"{folder.name}-out", **more)

    return run


def validation_loss(found) -> float:
    return next(one["loss"] for one in found.metrics if one["split"] == "final validation")


def test_the_other_order_gives_the_same_measures_and_unknown_names_a_note(sentiment, alone):
    plain = validation_loss(sentiment(alone / "plain"))
    for number, names in enumerate((("POSITIVE", "NEGATIVE"), ("LABEL_1", "LABEL_0"), ("1", "0"), ("pos", "whatever"))):
        found = sentiment(swap(alone / "plain", alone / f"swapped{number}", names))
        assert validation_loss(found) == plain and f"in the order {', '.join(names)}, which is followed" in found.out
    unknown = sentiment(swap(alone / "plain", alone / "unknown", ("good", "bad")))
    assert validation_loss(unknown) != plain
    assert "the labels good, bad aren't those of the task (negative, positive)" in unknown.out
    given = sentiment(alone / "unknown", *EVALUATE, "--head_labels", "bad,good")
    assert validation_loss(given) == plain and "note" not in given.out
    against = sentiment(alone / "swapped0", *EVALUATE, "--head_labels", "POSITIVE,NEGATIVE")
    assert validation_loss(against) == validation_loss(unknown)
    assert "overridden by --head_labels POSITIVE,NEGATIVE" in against.out


def test_a_fine_tuned_model_is_exported_under_the_tasks_names(sentiment, alone, capsys):
    swapped = swap(alone / "plain", alone / "swapped", ("POSITIVE", "NEGATIVE"))
    found = sentiment(swapped, "--num_epochs", 3, "--trainable_layers", "lora", learning_rate=1e-2)
    for action in ("export_model", "export_peft"):
        assert experiments.main([f"--{action}", action, "--run_dir", str(found.directory)]) == 0
    said = capsys.readouterr().out
    assert "id2label={0: 'negative', 1: 'positive'}, label2id={'negative': 0, 'positive': 1}" in said
    config = transformers.AutoConfig.from_pretrained("export_model")
    assert config.id2label == {0: "negative", 1: "positive"} and config.label2id == {"negative": 0, "positive": 1}
    assert validation_loss(sentiment(Path("export_model"))) == pytest.approx(validation_loss(found), rel=1e-4)
    with_adapter = sentiment(swapped, *EVALUATE, adapter="export_peft")  # whose base has the other order
    assert validation_loss(with_adapter) == pytest.approx(validation_loss(found), rel=1e-4)


def test_labels_of_no_classifier_cant_be_chosen(small_checkpoint, small_data, alone):
    with pytest.raises(UserError, match=r"--head_labels chooses among labels of a classifier, and .* has none"):
        prepare(Run(checkpoint=str(small_checkpoint), data_dir=str(small_data), head_labels="1,0"))


# --- adapters of the library peft

ADAPTERS = """
import json, sys, torch, transformers, peft
torch.set_num_threads(1)
folder = sys.argv[1]
plan = json.load(open(f"{folder}/plan.json"))
width = max(map(len, plan["ids"]))
rows = torch.tensor([one + [plan["pad"]] * (width - len(one)) for one in plan["ids"]])
mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in plan["ids"]])
found = {}
for name, (which, settings) in plan["adapters"].items():
    torch.manual_seed(6)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(plan["base"], num_labels=2)
    base.config.pad_token_id = plan["pad"]
    model = peft.get_peft_model(base, getattr(peft, which)(task_type="SEQ_CLS", **settings)).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(f"{folder}/{name}")
    with torch.no_grad():
        logits = model(input_ids=rows, attention_mask=mask).logits
    found[name] = torch.nn.functional.cross_entropy(logits, torch.tensor(plan["labels"])).item()
json.dump(found, open(f"{folder}/found.json", "w"))
"""
MADE = {
    "gpt2": {
        "lora": ("LoraConfig", {"r": 2, "target_modules": ["c_attn"]}),
        "ia3": ("IA3Config", {}),
        "prefix": ("PrefixTuningConfig", {"num_virtual_tokens": 3}),
    },
    "distilbert": {"lora": ("LoraConfig", {"r": 2, "target_modules": ["q_lin"], "modules_to_save": ["pre_classifier"]})},
    "roberta": {"lora": ("LoraConfig", {"r": 2, "target_modules": ["query"]})},
}


@pytest.mark.not_quick
@pytest.mark.parametrize("names", [None, ("spam", "ham")], ids=["unnamed", "swapped"])
@pytest.mark.parametrize("kind", MADE)
def test_an_adapters_classifier_reads_as_the_librarys(kind, names, experiment, small_data, encoder_data, alone):
    """The base names the labels, as it does there, though it has no classifier."""
    if subprocess.run([sys.executable, "-c", "import importlib.metadata as m; m.version('peft')"], cwd=alone).returncode:
        pytest.skip("the library peft isn't installed")
    body = make_body(alone / "body", kind, small_data, encoder_data)
    ids, labels = test_texts(body, small_data)
    if names:
        config = json.loads((body / "config.json").read_text()) | {"id2label": dict(enumerate(names))}
        (body / "config.json").write_text(json.dumps(config))
        labels = 1 - labels
    plan = {"base": str(body), "ids": ids, "labels": labels.tolist(), "pad": PAD.get(kind, 0), "adapters": MADE[kind]}
    (alone / "plan.json").write_text(json.dumps(plan))
    done = subprocess.run([sys.executable, "-c", ADAPTERS, str(alone)], cwd=alone, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
    for name, expected in json.loads((alone / "found.json").read_text()).items():
        found = experiment(*EVALUATE, checkpoint=body, adapter=alone / name, dataset="spam", output_dir=alone / f"{name}-o")
        assert loss_of(found) == pytest.approx(expected, rel=1e-5)
        assert ("which is followed" in found.out) is bool(names)
        assert "the adapter's classifier was trained to read" in found.out


# --- what was drawn

LACKING = {
    "distilbert": ["pre_classifier", "classifier"],
    "bert": ["bert.pooler.dense", "classifier"],
    "roberta": ["classifier.dense", "classifier.out_proj"],
    "gpt2": ["score"],
}


@pytest.mark.parametrize("kind", LACKING)
def test_what_no_file_has_is_said_and_a_warning_where_nothing_trains(kind, experiment, small_data, encoder_data, alone):
    body = make_body(alone / "body", kind, small_data, encoder_data)
    parts = ", ".join(LACKING[kind])
    found = experiment(*EVALUATE, checkpoint=body, dataset="spam")
    assert found.out.splitlines()[0].endswith(f"; in no file, so drawn: {parts}")
    assert found.result["drawn"] == LACKING[kind]
    (warning,) = found.result["warnings"]
    assert warning.startswith(f"nothing was trained, and no file has weights of {parts}: ")
    assert f"warning  {warning}" in found.out.splitlines()
    trained = experiment(checkpoint=body, dataset="spam", output_dir="trained")
    assert (trained.result["drawn"], trained.result["warnings"]) == (LACKING[kind], []) and "warning" not in trained.out


@pytest.mark.parametrize(
    ("gone", "drawn"),
    [
        ("classifier.weight classifier.bias", ["classifier"]),
        ("classifier.bias", ["classifier.bias"]),
        ("", []),
    ],
)
def test_parts_of_a_classifier_that_are_missing(gone, drawn, sentiment, alone):
    file = alone / "plain" / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if name not in gone.split()}
    save_file(tensors, file, {"format": "pt"})
    found = sentiment(alone / "plain")
    assert found.result["drawn"] == drawn and bool(found.result["warnings"]) is bool(drawn)
    save_file({name: one for name, one in tensors.items() if "pre_classifier" not in name}, file, {"format": "pt"})
    if drawn != ["classifier"]:
        with pytest.raises(UserError, match=r"without the dense layer below \(pre_classifier.weight\)"):
            sentiment(alone / "plain")


def test_random_weights_are_all_drawn(experiment):
    found = experiment(*EVALUATE, "--weights", "random")
    assert found.result["drawn"] == ["the whole model"] and "no file has weights of the whole model" in found.out
