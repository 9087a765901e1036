"""Runs on a user's own texts: what is said and recorded, and that the trained model needs no file afterwards."""

import json
from pathlib import Path

import pytest

import experiments
from config import Run
from pipeline.job import prepare
from pipeline.reload import load_run
from tests.helpers.own import texts, write
from tests.helpers.small import make_encoder, write_dialogues
from utils.errors import UserError


@pytest.fixture
def reviews(alone) -> Path:
    rows = [[f"{('good', 'bad', 'dull')[i % 3]} {i}", ("=fine", "<b>bad</b>", "so so")[i % 3]] for i in range(90)]
    return write(Path("reviews.csv"), [["Review", "Sentiment"], *rows])


def run_own(experiment, *flags, **replaced):
    return experiment("--dataset", "reviews.csv", "--num_epochs", 1, *flags, **({"data_dir": None} | replaced))


def test_the_header_says_what_was_read_and_the_result_what_became_of_each_class(experiment, reviews):
    found = run_own(experiment, max_steps=None, learning_rate=3e-3)
    lines = {line[:9].strip(): line[9:] for line in found.out.splitlines()}
    assert lines["dataset"].startswith("reviews.csv, 72 / 9 / 9 texts") and "(named; texts with labels)" in lines["dataset"]
    assert lines["columns"].startswith("text 'Review', label 'Sentiment'; validation and test drawn")
    assert lines["classes"] == "<b>bad</b> 24 / 3 / 3, =fine 24 / 3 / 3, so so 24 / 3 / 3 (train / validation / test)"
    assert len(found.out.splitlines()) <= 14 and "macro_f1" in lines
    labels = ["<b>bad</b>", "=fine", "so so"]
    assert found.result["labels"] == labels and found.result["data"][1].endswith(lines["classes"])
    for split, n in (("train", 24), ("validation", 3), ("test", 3)):
        assert [sum(row) for row in found.result[f"{split}_confusion"]] == [n, n, n]
        assert [*found.result[f"{split}_per_class"]] == labels
        scores = [one["f1"] for one in found.result[f"{split}_per_class"].values()]
        assert sum(scores) / 3 == pytest.approx(found.result[f"{split}_macro_f1"])
        hits = sum(found.result[f"{split}_confusion"][i][i] for i in range(3))
        assert hits / (3 * n) == pytest.approx(found.result[f"{split}_accuracy"])
    assert all("confusion" not in record and "per_class" not in record for record in found.metrics)


def test_the_trained_model_needs_no_file_and_an_export_has_its_labels(experiment, reviews, capsys):
    found = run_own(experiment)
    reviews.unlink()
    assert load_run(found.directory).inputs.task.labels == ("<b>bad</b>", "=fine", "so so")
    assert experiments.main(["--export_model", "exported", "--run_dir", str(found.directory)]) == 0
    assert json.loads(Path("exported/config.json").read_text())["id2label"] == {
        "0": "<b>bad</b>",
        "1": "=fine",
        "2": "so so",
    }
    with pytest.raises(UserError, match=r"reviews\.csv can't be read"):
        run_own(experiment)


def test_an_export_is_measured_on_the_same_texts_in_its_own_order_of_labels(experiment, reviews):
    first = run_own(experiment, max_steps=8, learning_rate=1e-2)
    assert experiments.main(["--export_model", "exported", "--run_dir", str(first.directory)]) == 0
    again = experiment(
        "--dataset", "reviews.csv", "--num_epochs", 0, checkpoint="exported", output_dir="again", data_dir=None
    )
    assert again.result["test_confusion"] == first.result["test_confusion"]


def test_one_file_in_several_spellings_is_one_run(reviews, alone, small_checkpoint, monkeypatch):
    def name(dataset: str) -> str | None:
        return prepare(Run(checkpoint=str(small_checkpoint), dataset=dataset, device="cpu")).run.output_dir

    assert name("reviews.csv") == name("./reviews.csv") == name(str(reviews.resolve()))
    write(Path("folder/train.csv"), [["text", "label"], *texts(30, "a", "b")])
    assert name("folder") == name("./folder/") == name(str(Path("folder").resolve())) != name("reviews.csv")
    with pytest.raises(UserError, match="owner/folder is no file or directory"):
        name("owner/folder")
    Path("spam-pocket").mkdir()
    assert "spam-pocket" in name("spam-pocket")  # a task's name is never a directory


def test_a_run_goes_on_unless_its_file_has_changed(experiment, reviews):
    first = run_own(experiment)
    again = run_own(experiment, "--resume")
    assert "resume   the run is complete" in again.out and again.result == first.result
    with reviews.open("a") as file:
        file.write("good and new,so so\n")
    with pytest.raises(UserError, match="holds a run with other values of data_sha256"):
        run_own(experiment, "--resume")


@pytest.mark.parametrize(("kind", "position"), [("gpt2", "flexible"), ("bert", "first")])
def test_the_recipe_follows_the_kind_of_model(reviews, encoder_data, small_checkpoint, alone, kind, position):
    folder = small_checkpoint if kind == "gpt2" else make_encoder(alone / "encoder", kind, encoder_data)
    run = prepare(Run(checkpoint=str(folder), dataset="reviews.csv", device="cpu")).run
    assert (run.trainable_token_pos, run.no_padding, run.num_epochs, run.trainable_layers) == (position, True, 20, "all")
    write(Path("many.csv"), [["text", "label"], *texts(4000, "a", "b")])
    assert prepare(Run(checkpoint=str(folder), dataset="many.csv", device="cpu")).run.num_epochs == 3


def test_without_a_model_the_shipped_encoder_trains(reviews, capsys):
    assert (
        experiments.main(["--dataset", "reviews.csv", "--device", "cpu", "--num_epochs", "4", "--output_dir", "out"]) == 0
    )
    out = capsys.readouterr().out
    assert "distilbert-pocket, pretrained weights (shipped; distilbert-base-uncased isn't in the cache" in out
    assert json.loads(Path("out/result.json").read_text())["test_accuracy"] > 0.9


def test_a_published_row_takes_own_texts(experiment, reviews):
    found = run_own(experiment, "--row", 11, data_dir=None)
    assert found.result["method"] == "lora" and found.result["labels"] == ["<b>bad</b>", "=fine", "so so"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--packing"], "--packing is about dialogues, and reviews.csv has none"),
        (["--label_column", "labl"], "--label_column is 'labl'; reviews.csv has the columns 'Review', 'Sentiment'"),
        (["--auxiliary_dataset", "reviews.csv"], "--auxiliary_dataset is about dialogues, and reviews.csv has none"),
    ],
)
def test_what_own_texts_make_no_use_of_is_refused(experiment, reviews, flags, said):
    with pytest.raises(UserError) as caught:
        run_own(experiment, *flags)
    assert said in str(caught.value)


def test_dialogues_are_still_taken_by_their_path_and_said(experiment, alone):
    found = experiment("--dataset", write_dialogues(Path("some.json")), data_dir=None)
    assert "(named; dialogues)" in found.out and found.result["labels"] is None
