"""Predictions are the numbers of an evaluation, for every way to read a text, and those of the published library."""

import json
import math
import shutil
import subprocess
import sys

import pytest
import torch

import experiments
from config import Run
from pipeline import predict
from pipeline.predict import load_predictor
from pipeline.reload import load_run
from tests.helpers.classifiers import make_body, make_classifier
from tests.helpers.small import make_encoder, write_dialogues, write_messages
from utils.errors import UserError

RUNS = {
    "the last position, padding seen": (),
    "the last real token": ("--trainable_token_pos", "flexible"),
    "the first token": ("--trainable_token_pos", "first"),
    "nothing trimmed": ("--trainable_token_pos", "flexible", "--trim", "no"),
    "no padding": ("--no_padding", "--trainable_token_pos", "flexible"),
    "the mean": ("--average_embeddings",),
    "no causal mask": ("--disable_causal_mask",),
    "texts that are cut": ("--context_length", 9),
    "texts that are cut, no padding": ("--context_length", 9, "--no_padding", "--trainable_token_pos", "flexible"),
    "all of the context": ("--context_length", "model_context_length"),
    "LoRA": ("--trainable_layers", "lora", "--lora_rank", 2),
    "a prompt": ("--trainable_layers", "prompt", "--prefix_length", 4, "--no_padding"),
    "stages": ("--stages", "layer_by_layer_then_lora"),
}


def split_of(found) -> tuple[str, list]:
    """Return the name and the examples of a run's test split, or of the last one that its task has."""
    splits = load_run(found.directory).inputs.splits
    name = "test" if "test" in splits else "validation"
    return name, splits[name]


def texts_of(examples) -> list[predict.Text]:
    return [one.text if one.pair is None else (one.text, one.pair) for one in examples]


def assert_as_evaluated(found, tolerance: float = 1e-5) -> None:
    """The labels have the accuracy of the run, and the probabilities its loss."""
    predictor = load_predictor(found.directory, device="cpu")
    name, examples = split_of(found)
    predictions = [*predictor.stream(texts_of(examples))]
    labels = [predictor.labels[one.label] for one in examples]
    hits = [one.label == label for one, label in zip(predictions, labels, strict=True)]
    losses = [-math.log(one.probabilities[label]) for one, label in zip(predictions, labels, strict=True)]
    measured = next(one for one in found.metrics if one["split"] == f"final {name}")
    assert sum(hits) / len(hits) == pytest.approx(found.result[f"{name}_accuracy"], abs=1e-9)
    assert sum(losses) / len(losses) == pytest.approx(measured["loss"], rel=tolerance)
    assert all(sum(one.probabilities.values()) == pytest.approx(1) for one in predictions)


@pytest.mark.parametrize("name", RUNS)
def test_the_numbers_are_those_of_the_evaluation(name, experiment):
    found = experiment(*RUNS[name], max_steps=8, learning_rate=1e-2)
    assert found.result["texts"] == {"longest": found.result["texts"]["longest"], "pairs": False}
    assert_as_evaluated(found)


@pytest.mark.parametrize("dataset", ["sst2", "rte"])
def test_the_numbers_of_encoders_and_of_pairs(dataset, experiment, encoder, encoder_data):
    found = experiment(checkpoint=encoder, data_dir=encoder_data, dataset=dataset, max_steps=8, learning_rate=1e-2)
    assert found.result["texts"]["pairs"] is (dataset == "rte")
    assert_as_evaluated(found)


def test_the_precision_is_that_of_the_run(experiment):
    found = experiment(amp="bf16", max_steps=8, learning_rate=1e-2)
    assert load_predictor(found.directory, device="cpu").amp == "bf16"
    assert load_predictor(found.directory, device="cpu", amp="off").amp == "off"
    assert_as_evaluated(found, tolerance=1e-2)


def test_padding_that_is_seen_is_that_of_the_training(experiment):
    found = experiment(max_steps=8, learning_rate=1e-2)
    predictor = load_predictor(found.directory)
    assert predictor.encoder.pad_to == found.result["texts"]["longest"]
    short = predictor("free prize")
    padded = predictor.encoder.pad_to
    predictor.encoder = type(predictor.encoder)(predictor.encoder.tokenizer, padded, False, None)
    assert abs(predictor("free prize").probabilities["spam"] - short.probabilities["spam"]) > 1e-4


def test_a_run_that_has_not_written_down_its_texts_reads_them_again(experiment, alone, small_data):
    data = shutil.copytree(small_data, alone / "data")
    found = experiment(data_dir=data)
    expected = load_predictor(found.directory)("free prize")
    result = json.loads((found.directory / "result.json").read_text())
    for wrong in (None, {"longest": 0, "pairs": False}, {"longest": True, "pairs": False}, []):
        (found.directory / "result.json").write_text(json.dumps(result | {"texts": wrong}))
        assert load_predictor(found.directory)("free prize") == expected
    write_messages(data / "sms_spam" / "SMSSpamCollection", 60, seed=1)
    with pytest.raises(UserError, match=r"spam has other texts than when .* was trained; train again"):
        load_predictor(found.directory)


# --- streams


def test_the_order_is_kept_and_the_batch_changes_nothing(experiment, monkeypatch):
    found = experiment("--no_padding", "--trainable_token_pos", "flexible", max_steps=8, learning_rate=1e-2)
    texts = [text for _, text in sorted(enumerate(texts_of(split_of(found)[1])), key=lambda one: one[0] * 7 % 24)]
    predictor = load_predictor(found.directory)
    one_by_one = [predictor(text) for text in texts]
    assert len({one.probabilities["spam"] for one in one_by_one}) > 12  # a wrong order would show
    for batch_size, window, most in ((64, 3, 1024), (5, 24, 1024), (64, 24, 20)):
        predictor.batch_size = batch_size
        monkeypatch.setattr(predict, "MOST_TOKENS_CPU", most)
        streamed = [one for some in predictor.windows(iter(texts), window) for one in some]
        for one, other in zip(one_by_one, streamed, strict=True):
            assert one.label == other.label and one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_texts_are_taken_as_they_are_needed(experiment):
    predictor = load_predictor(experiment().directory, eval_batch_size=1)
    taken = []
    stream = predictor.stream(taken.append(number) or f"free prize {number}" for number in range(100))
    assert taken == [] and next(stream).label and len(taken) == predict.WINDOW


def test_a_batch_holds_texts_of_similar_length_and_no_more_tokens_than_it_may(experiment):
    predictor = load_predictor(experiment("--no_padding", "--trainable_token_pos", "flexible").directory)
    texts = ["now " * (1 + number % 40) for number in range(200)] + ["  "]
    batches = [*predictor.batches([predictor.encode(text) for text in texts])]
    widths = [[len(one.ids) for one in some] for _, some in batches]
    assert all(len(some) <= 64 and len(some) * max(some) <= 1024 for some in widths)
    assert [*map(max, widths)] == sorted(map(max, widths), reverse=True) and len(batches) < 12
    assert sorted(number for numbers, _ in batches for number in numbers) == [*range(200)]


def test_an_empty_text_has_no_label(experiment):
    predictor = load_predictor(experiment("--no_padding", "--trainable_token_pos", "flexible").directory)
    found = [*predictor.stream(["free", "", " \n", "prize"])]
    assert [one.label is None for one in found] == [False, True, True, False]
    assert found[1] == (None, None, False)


def test_what_comes_before_a_fault_is_predicted(experiment):
    predictor = load_predictor(experiment().directory)

    def texts():
        yield "free prize"
        raise UserError("a fault")

    stream = predictor.stream(texts())
    assert next(stream) == predictor("free prize")
    with pytest.raises(UserError, match="a fault"):
        next(stream)


# --- a checkpoint's classifier


PIPELINE = """
import json, sys, warnings
warnings.simplefilter("ignore")
import transformers
folder, texts = sys.argv[1], json.load(open("texts.json"))
ask = transformers.pipeline("text-classification", model=folder, top_k=None, device="cpu", truncation=True)
given = [text if isinstance(text, str) else {"text": text[0], "text_pair": text[1]} for text in texts]
found = [ask(one) if isinstance(one, dict) else ask([one])[0] for one in given]
json.dump([{score["label"]: score["score"] for score in scores} for scores in found], open("found.json", "w"))
"""
SINGLE = ["good film", "a dull plot with bad actors and a cold story", "Naïve, isn't it?", "warm " * 200]
PAIRS = [("a good film", "the plot is dull"), ("bad", "a warm story with actors " * 40)]


def library_scores(folder, texts) -> list[dict]:
    """Return the scores of the library's pipeline, in a process of its own."""
    (folder.parent / "texts.json").write_text(json.dumps(texts))
    words = [sys.executable, "-c", PIPELINE, str(folder)]
    done = subprocess.run(words, cwd=folder.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder.parent / "found.json").read_text())


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "gpt2"])
def test_scores_are_those_of_the_library(kind, alone, small_data, encoder_data):
    names = ("bad", "so so", "good")
    make_classifier(alone / "theirs", make_body(alone / "body", kind, small_data, encoder_data), kind, names)
    tokenizer_limit(alone / "theirs", 256 if kind == "gpt2" else 128)
    texts = SINGLE + (PAIRS if kind != "gpt2" else [])  # whose pairs the library joins without anything between
    predictor = load_predictor(alone / "theirs", device="cpu")
    found, expected = [*predictor.stream(texts)], library_scores(alone / "theirs", texts)
    assert predictor.labels == names and len({round(one.probabilities["good"], 4) for one in found}) == len(texts)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.label == max(theirs, key=theirs.get)
        assert ours.probabilities == pytest.approx(theirs, abs=1e-5)
    assert [one.is_cut for one in found] == [len(str(text)) > 500 for text in texts]


def tokenizer_limit(folder, length: int) -> None:
    """Let the library's tokenizer cut texts to the context of the model, which published files say too."""
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(settings | {"model_max_length": length}))


def test_a_real_model(minilm, alone):
    """A classifier that is drawn on all-MiniLM-L6-v2."""
    make = (
        "import sys, torch, transformers as t\ntorch.manual_seed(0)\n"
        "m = t.AutoModelForSequenceClassification.from_pretrained(sys.argv[1], num_labels=3)\n"
        "m.classifier.weight.data *= 40\nm.save_pretrained(sys.argv[2])\n"
        "t.AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])\n"
    )
    words = [sys.executable, "-c", make, str(minilm), str(alone / "theirs")]
    assert subprocess.run(words, cwd=alone, capture_output=True).returncode == 0
    found = [*load_predictor(alone / "theirs", device="cpu").stream([*SINGLE, *PAIRS])]
    for ours, theirs in zip(found, library_scores(alone / "theirs", [*SINGLE, *PAIRS]), strict=True):
        assert ours.label == max(theirs, key=theirs.get)
        assert ours.probabilities == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("name", ["the last position, padding seen", "the last real token", "no padding", "LoRA"])
def test_an_export_predicts_as_its_run(name, experiment, alone):
    found = experiment(*RUNS[name], max_steps=8, learning_rate=1e-2)
    assert experiments.main(["--export_model", "exported", "--run_dir", str(found.directory)]) == 0
    texts = texts_of(split_of(found)[1])
    of_run, of_export = (load_predictor(one, device="cpu") for one in (found.directory, alone / "here" / "exported"))
    for one, other in zip(of_run.stream(texts), of_export.stream(texts), strict=True):
        assert one.label == other.label and one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_an_export_that_does_not_say_how_long_its_texts_are_padded(experiment, alone):
    found = experiment()
    assert experiments.main(["--export_model", "exported", "--run_dir", str(found.directory)]) == 0
    own = alone / "here" / "exported" / "classifier.json"
    says = json.loads(own.read_text())
    assert says.pop("padded_to") == found.result["texts"]["longest"]
    expected = load_predictor("exported")("free prize")
    own.write_text(json.dumps(says))
    with pytest.raises(UserError, match="doesn't say how long they are padded; say it with --context_length"):
        load_predictor("exported")
    again = load_predictor("exported", context_length=str(found.result["texts"]["longest"]))("free prize")
    assert again.probabilities == pytest.approx(expected.probabilities)


def test_labels_without_names_are_numbers(alone, encoder_data):
    folder = make_encoder(alone / "ck", "bert", encoder_data, labels=("x", "y"))
    config = json.loads((folder / "config.json").read_text())
    bare = {name: value for name, value in config.items() if name not in ("id2label", "label2id")}
    (folder / "config.json").write_text(json.dumps(bare))
    assert load_predictor(folder).labels == ("0", "1")
    (folder / "config.json").write_text(json.dumps(bare | {"id2label": {"0": "x", "1": "x"}}))
    predictor = load_predictor(folder)
    assert predictor.labels == ("0", "1") and "two of its labels have the same name" in predictor.notes[0]


# --- what is refused


def test_what_has_no_classes(experiment, alone, small_checkpoint, encoder_data):
    with pytest.raises(UserError, match="has no classifier with weights, so it has nothing to predict"):
        load_predictor(small_checkpoint)
    with pytest.raises(UserError, match="has a classifier with one output, a score"):
        load_predictor(make_encoder(alone / "one", "bert", encoder_data, labels=("score",)))
    found = experiment(dataset=write_dialogues(alone / "some.json"), data_dir=None)
    with pytest.raises(UserError, match=r"was trained on .*, which has no classes to predict; try --generate"):
        load_predictor(found.directory)


def test_single_texts_and_pairs_are_told_apart(experiment, alone, encoder_data):
    predictor = load_predictor(experiment().directory)
    with pytest.raises(UserError, match="reads single texts, and this is a pair of texts: 'free'"):
        predictor("free", "prize")
    encoder = make_encoder(alone / "ck", "bert", encoder_data)
    pairs = load_predictor(experiment(checkpoint=encoder, data_dir=encoder_data, dataset="rte").directory)
    with pytest.raises(UserError, match="reads pairs of texts, and this is one text: 'free'"):
        pairs("free")


def test_settings_that_change_no_prediction(experiment, small_checkpoint):
    directory = experiment().directory
    for settings in ({"context_length": "5"}, {"learning_rate": 1.0}, {"model": "gpt2-pocket"}):
        with pytest.raises(UserError, match=rf"--{next(iter(settings))} changes no prediction of a trained model"):
            load_predictor(directory, **settings)
    with pytest.raises(UserError, match="--seed changes no prediction of a classifier as it is"):
        predict.predictor_of_model(Run(checkpoint=str(small_checkpoint), seed=3))


def test_memory_that_runs_out_is_said(experiment, monkeypatch):
    predictor = load_predictor(experiment().directory, device="cpu")

    def fails(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(predict.fast_path, "class_scores", fails)
    with pytest.raises(UserError, match="out of memory on cpu: choose --eval_batch_size below 1"):
        predictor("free")
