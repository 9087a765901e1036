"""Runs on a user's own texts: what is said and recorded, and that the trained model needs no file afterwards."""

import csv
import io
import json
import shlex
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


# --- predictions


def predicted(capsys, file: str, *flags: str) -> tuple[list[str], str]:
    """Return the labels that the run in "out" predicts for the texts of a file, and what is said."""
    capsys.readouterr()
    assert experiments.main(["--predict", file, "--run_dir", "../out", *flags]) == 0
    found = capsys.readouterr()
    return [row["label"] for row in csv.DictReader(io.StringIO(found.out))], found.err


TEXTS = [f"{('good', 'bad')[i % 2]} {('film', 'story')[i // 2 % 2]} {i}" for i in range(80)]
KINDS = [("yes", "no")[(i + (i % 5 == 0)) % 2] for i in range(80)]  # one in five can't be told by its text


def written(name: str, rows: slice) -> str:
    """Write some of TEXTS with their labels to a file. Return its name."""
    some = [{"id": i, "review": TEXTS[i], "stars": KINDS[i]} for i in range(80)[rows]]
    if name.endswith("l"):
        Path(name).write_text(
            "".join(json.dumps({"text_b": "so", "text_a": one["review"], "class": one["stars"]}) + "\n" for one in some)
        )
    elif name.endswith(".tsv"):
        lines = ["\t".join((one["stars"], '"' * (one["id"] % 20 == 0) + one["review"])) for one in some]
        Path(name).write_text("\n".join(["stars\tcontent", *lines]))
    else:
        write(Path(name), [["id", "Review", "Stars"], *map(list, map(dict.values, some))], ";" if "semi" in name else ",")
    return name


@pytest.mark.parametrize("words", [["A text"], ["A text", "and its pair"]])
def test_what_to_type_next_is_a_prediction(words, experiment, alone, capsys, encoder_data):
    rows = [[f"good {i}", "a film", i % 2] for i in range(30)]
    write(Path("own.csv"), [["text_a", "text_b", "label"], *rows])
    columns = ["--text_column", "text_a"] if len(words) == 1 else []
    encoder = make_encoder(alone / "ck", "bert", encoder_data)
    found = experiment("--dataset", "own.csv", *columns, checkpoint=encoder, data_dir=None)
    typed = shlex.split(found.out.split("next     ")[1])
    assert typed == ["python", "experiments.py", "--predict", *words, "--run_dir", str(found.directory)]
    assert experiments.main(typed[2:]) == 0 and capsys.readouterr().out[:3] in ("0  ", "1  ")


@pytest.mark.parametrize("test", ["test.csv", "semi-test.csv", "test.tsv", "test.jsonl"])
def test_predictions_of_a_file_are_those_that_were_measured(test, experiment, alone, capsys, encoder_data):
    Path("folder").mkdir()
    kind = "bert" if test.endswith("l") else None
    model = {"checkpoint": make_encoder(alone / "ck", kind, encoder_data)} if kind else {}
    file = written(f"folder/{test}", slice(60, None))
    for name, rows in (("train", slice(0, 50)), ("dev", slice(50, 60))):
        written(f"folder/{test.replace('test', name)}", rows)
    found = experiment("--dataset", "folder", data_dir=None, max_steps=60, learning_rate=3e-3, dropout=0, **model)
    labels, said = predicted(capsys, file)
    assert sum(map(str.__eq__, labels, KINDS[60:])) / 20 == pytest.approx(found.result["test_accuracy"])
    assert len({*labels}) == 2 and "columns  " in said
    columns = found.result["data"][0].removeprefix("columns  ").split(",")[0]
    assert f"columns  {columns}" in said and ("quotes are read as text" in said) == test.endswith(".tsv")
    for name in ("train", "dev"):
        Path(f"folder/{test.replace('test', name)}").unlink()
    assert predicted(capsys, file)[0] == labels  # nothing of the data is needed


def test_columns_that_a_run_named_are_those_of_its_predictions(experiment, alone, capsys, encoder_data):
    rows = [[f"text {i}", f"{('good', 'bad')[i % 2]} {i}", "so", i % 2] for i in range(60)]
    write(Path("own.csv"), [["text", "subject", "body", "kind"], *rows])
    write(Path("new.csv"), [["text", "subject", "body"], *(row[:3] for row in rows)])
    write(Path("other.csv"), [["text"], ["good"]])
    flags = ["--text_column", "subject", "--label_column", "kind"]
    experiment("--dataset", "own.csv", *flags, data_dir=None, max_steps=40, learning_rate=3e-3)
    labels, said = predicted(capsys, "new.csv")
    assert labels == ["0", "1"] * 30 and "note     as in the run: --text_column subject --label_column kind\n" in said
    assert "columns  text 'subject'; not read: text, body\n" in said
    others, said = predicted(capsys, "new.csv", "--text_column", "text")
    assert others != labels and "columns  text 'text'" in said and "--text_column subject" not in said
    with pytest.raises(UserError, match=r"--text_column is 'subject'; other\.csv has the columns 'text'"):
        predicted(capsys, "other.csv")
    Path("a.txt").write_text("good\nbad\n")
    assert predicted(capsys, "a.txt")[0] == ["0", "1"]
    pairs = make_encoder(alone / "ck", "bert", encoder_data)
    experiment("--dataset", "own.csv", *flags, "--pair_column", "body", data_dir=None, checkpoint=pairs)
    assert "columns  pair 'subject' and 'body'; not read: text\n" in predicted(capsys, "new.csv")[1]
    with pytest.raises(UserError, match="reads pairs of texts, and this is one text: 'good'"):
        predicted(capsys, "a.txt")
    with pytest.raises(UserError, match="reads pairs of texts, and this is one text: 'good'"):
        experiments.main(["--predict", "good", "--run_dir", "../out"])
