"""`--predict`: what it takes, what it writes and where, and what it refuses."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest

import experiments
from pipeline import predictions
from pipeline.predict import Prediction, load_predictor
from tests.helpers.paths import ROOT
from tests.helpers.small import make_encoder
from utils.errors import UserError

TEXTS = ["free prize now", "see you, at home", "", 'win £5, "now"']


@pytest.fixture
def run_dir(experiment):
    """Return the directory of a run that tells ham from spam."""
    return experiment("--no_padding", "--trainable_token_pos", "flexible", max_steps=8, learning_rate=1e-2).directory


@pytest.fixture
def ask(run_dir, capsys):
    """Return a function that runs --predict, and returns what it printed."""

    def run(*words, run_dir=run_dir, code=0):
        capsys.readouterr()
        flags = ["--run_dir", run_dir] if run_dir else []
        assert experiments.main(["--predict", *map(str, [*words, *flags])]) == code
        return capsys.readouterr()

    return run


def rows_of(text: str) -> list[dict]:
    return [*csv.DictReader(io.StringIO(text))]


def test_a_text_is_one_line(ask, run_dir):
    found, said = ask("free prize now"), load_predictor(run_dir)("free prize now")
    ham, spam = said.probabilities.values()
    assert found.out == f"{said.label}  (ham {ham:.4f}, spam {spam:.4f})\n"
    assert found.err.startswith("model    ") and len(found.err.splitlines()) == 1


FILES = {
    "a.txt": "\n".join(TEXTS),
    "a.jsonl": "".join(json.dumps({"text": text}) + "\n" for text in TEXTS),
    "a.JSON": json.dumps([{"Review": text} for text in TEXTS]),
    "a.csv": 'id,text\n0,free prize now\n1,"see you, at home"\n2,\n3,"win £5, ""now"""\n',
    "a.tsv": "content\tid\n" + "".join(f"{text}\t1\n" for text in TEXTS),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_gives_a_row_per_text(name, ask, run_dir, alone):
    (alone / name).write_text(FILES[name], encoding="utf-8")
    found, expected = ask(alone / name), [*load_predictor(run_dir).stream(TEXTS)]
    rows = rows_of(found.out)
    assert [row["row"] for row in rows] == ["1", "2", "3", "4"]
    assert [*rows[0]] == ["row", "label", "probability_ham", "probability_spam"]
    assert [row["label"] or None for row in rows] == [one.label for one in expected]
    for row, one in zip(rows, expected, strict=True):
        shown = [row[f"probability_{label}"] for label in ("ham", "spam")]
        assert shown == (["", ""] if one.label is None else [f"{value:.9g}" for value in one.probabilities.values()])
    assert "1 of 4 texts are empty and have no label" in found.err


def test_jsonl_and_csv_say_the_same(ask, alone, capsys):
    (alone / "a.txt").write_text("\n".join(TEXTS))
    printed = rows_of(ask(alone / "a.txt").out)
    assert ask(alone / "a.txt", "--out", "a.csv").out == ""
    assert ask(alone / "a.txt", "--out", "~/a.jsonl".replace("~", str(alone))).err.endswith("a.jsonl\n")
    with open("a.csv", newline="") as file:
        assert [*csv.DictReader(file)] == printed
    lines = [json.loads(line) for line in (alone / "a.jsonl").read_text().splitlines()]
    assert lines[2] == {"row": 3, "label": None, "probabilities": None}
    for line, row in zip(lines, printed, strict=True):
        values = line["probabilities"] or {"ham": None, "spam": None}
        assert [f"{value:.9g}" if value else "" for value in values.values()] == [*row.values()][2:]


def test_standard_input(ask, monkeypatch, alone):
    (alone / "a.txt").write_text("\n".join(TEXTS))
    expected = ask(alone / "a.txt").out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(TEXTS).encode())))
    assert ask("-").out == expected


def test_columns_and_pairs(ask, experiment, alone, encoder_data):
    encoder = make_encoder(alone / "ck", "bert", encoder_data)
    pairs = experiment(checkpoint=encoder, data_dir=encoder_data, dataset="rte", output_dir="pairs").directory
    (alone / "a.csv").write_text("Hypothesis,premise,other\nbad plot,good film,x\n")
    found = ask(alone / "a.csv", run_dir=pairs)
    assert found.err.splitlines()[1:] == ["columns  pair 'premise' and 'Hypothesis'; not read: other"]
    (row,) = rows_of(found.out)
    expected = load_predictor(pairs)("good film", "bad plot")
    assert row["label"] == expected.label
    assert float(row["probability_entailment"]) == pytest.approx(expected.probabilities["entailment"], abs=1e-8)
    assert ask("good film", "bad plot", run_dir=pairs).out.startswith(f"{expected.label}  (entailment ")
    (other,) = rows_of(ask(alone / "a.csv", "--text_column", "other", "--pair_column", "premise", run_dir=pairs).out)
    assert other != row
    with pytest.raises(UserError, match="reads single texts, and this is a pair of texts: 'good film'"):
        ask(alone / "a.csv")
    assert len(rows_of(ask(alone / "a.csv", "--text_column", "premise").out)) == 1


def test_a_file_is_read_by_the_columns_of_the_training(ask, alone, experiment):
    (alone / "here" / "train.csv").write_text("note,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(20)))
    own = {"dataset": "train.csv", "trainable_layers": "last_layer", "max_steps": 1, "eval_train": "no", "data_dir": None}
    run = experiment(**own, output_dir="own")
    assert run.result["columns"] == {"text": "note", "pair": None}
    (alone / "both.csv").write_text("note,content\nread,not read\n")  # the second has a usual name
    (alone / "content.csv").write_text("content\nread\n")
    one, other, named = (
        ask(*words, run_dir=run.directory)
        for words in ((alone / "both.csv",), (alone / "content.csv",), (alone / "both.csv", "--text_column", "content"))
    )
    assert "columns  text 'note'; not read: content" in one.err and "columns  text 'content'" in other.err
    assert rows_of(one.out) == rows_of(other.out)
    assert "columns  text 'content'; not read: note" in named.err


def test_texts_that_are_cut_are_counted(ask, experiment, alone):
    short = experiment("--context_length", 9, output_dir="short").directory
    (alone / "a.txt").write_text("free prize\n" + "see you at home " * 30)
    assert "1 of 2 texts were cut to 9 tokens" in ask(alone / "a.txt", run_dir=short).err
    assert "the text was cut to 9 tokens" in ask("see you at home " * 30, run_dir=short).err


def test_no_text_is_longer_than_the_context(ask, alone, run_dir):
    experiments.main(["--export_model", "exported", "--run_dir", str(run_dir)])
    with pytest.raises(UserError, match="--context_length is 100000, the model's context 256; choose at most that"):
        ask("a text", "--checkpoint", "exported", "--context_length", "100000", run_dir=None)


def test_a_checkpoint_needs_no_run(ask, alone, run_dir):
    assert experiments.main(["--export_model", "exported", "--run_dir", str(run_dir)]) == 0
    assert ask("free prize", "--checkpoint", "exported", run_dir=None).out == ask("free prize").out
    assert ask("free prize", "--model", "./exported", run_dir=None).out == ask("free prize").out


def test_a_label_like_a_formula_is_kept_and_said(capsys):
    file = io.StringIO()
    labels = ("=cmd()", "-1", "a,b")
    predictions.csv_writer(file, labels)(1, Prediction("=cmd()", dict.fromkeys(labels, 1 / 3)))
    assert rows_of(file.getvalue())[0]["label"] == "=cmd()" and "probability_a,b" in rows_of(file.getvalue())[0]
    assert "a spreadsheet may take the label '=cmd()' for a formula" in capsys.readouterr().err
    predictions.csv_writer(file, labels[1:])
    assert capsys.readouterr().err == ""


# --- what is refused

BAD = {
    "nothing to ask": (["a text"], "--predict needs a classifier: --run_dir of an earlier run, or --checkpoint"),
    "no run": (["a text", "--run_dir", "nowhere"], "nowhere is no directory; name the --output_dir"),
    "nothing in quotes": (["", "--run_dir", "{}"], "--predict is empty; write a text behind it"),
    "an empty text": ([" ", "--run_dir", "{}"], "--predict is empty; write a text behind it"),
    "words without quotes": (["a", "film", "of", "--run_dir", "{}"], "takes a text, or the two of a pair, and got 3"),
    "a file that isn't there": (["a.csv", "--run_dir", "{}"], "--predict a.csv isn't there; it takes a text, a file, or -"),
    "a directory": (["folder", "--run_dir", "{}"], "--predict folder is a directory; it takes a text, a file, or -"),
    "a file of another kind": (["a.xlsx", "--run_dir", "{}"], "a.xlsx is a file of an unknown kind; what is read: .txt"),
    "an empty file": (["empty.csv", "--run_dir", "{}"], "empty.csv holds no texts"),
    "a wrong column": (["b.csv", "--run_dir", "{}", "--text_column", "x"], "--text_column is 'x'; b.csv has the columns"),
    "a column of lines": (["c.txt", "--run_dir", "{}", "--text_column", "x"], "--text_column names a column, and c.txt"),
    "a column of a text": (["a text", "--run_dir", "{}", "--text_column", "x"], "--text_column goes with --predict FILE"),
    "a file for a text": (["a text", "--run_dir", "{}", "--out", "x.csv"], "--out goes with --predict FILE or --predict -"),
    "output that is there": (["b.csv", "--run_dir", "{}", "--out", "b.csv"], "--out b.csv is there already; remove it"),
    "output of no kind": (["b.csv", "--run_dir", "{}", "--out", "x.md"], "--out x.md must end in one of .csv, .jsonl"),
    "output nowhere": (["b.csv", "--run_dir", "{}", "--out", "no/x.csv"], "can't be written: no is no directory"),
    "a training flag": (["a text", "--run_dir", "{}", "--learning_rate", "1"], "--learning_rate changes no prediction of"),
    "two sources": (["a text", "--run_dir", "{}", "--model", "x"], "--model changes no prediction of a trained model"),
    "a row": (["a text", "--run_dir", "{}", "--row", "3"], "--row doesn't go with --predict"),
    "a model without labels": (["a text", "--model", "gpt2-pocket"], "gpt2-pocket has no classifier with weights"),
    "a model that isn't there": (["a text", "--model", "./nowhere"], "nowhere"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_an_error_is_one_line(name, experiment, capsys):
    words, said = BAD[name]
    os.mkdir("folder")
    for file, content in (("a.xlsx", "x"), ("empty.csv", ""), ("b.csv", "id,text\n1,a\n"), ("c.txt", "a")):
        with open(file, "w") as stream:
            stream.write(content)
    directory = experiment().directory if "{}" in words else None
    with pytest.raises(UserError) as caught:
        experiments.main(["--predict", *(word.format(directory) for word in words)])
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not os.path.exists("x.csv")


def test_the_flags_of_predictions_go_with_it():
    with pytest.raises(UserError, match="--out goes with --predict or --report"):
        experiments.main(["--out", "x"])


def test_a_fault_in_the_middle_keeps_what_came_before(ask, alone):
    (alone / "a.jsonl").write_text('{"text": "free"}\n{"text": "prize"}\n{"text": 3}\n')
    with pytest.raises(UserError, match=r"line 3: expected a text under text, got 3 \(rows of texts before it: 2\)"):
        ask(alone / "a.jsonl", "--out", "a.csv")
    with open("a.csv") as file:
        assert len(rows_of(file.read())) == 2


# --- how it ends early


def start(*words, **how) -> subprocess.Popen:
    """Start --predict in a process of its own."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
    words = [sys.executable, ROOT / "experiments.py", "--predict", *map(str, words), "--eval_batch_size", "1"]
    return subprocess.Popen(words, text=True, **pipes)


@pytest.mark.not_quick
def test_a_reader_that_has_enough_ends_it_quietly(run_dir, alone):
    (alone / "a.txt").write_text("free prize\n" * 20_000)
    with start(alone / "a.txt", "--run_dir", run_dir) as process:
        assert process.stdout.readline().startswith("row,label")
        process.stdout.close()
        assert process.wait(60) == 141
        assert len(process.stderr.read().splitlines()) == 1  # the model's line


@pytest.mark.not_quick
def test_ctrl_c_keeps_what_was_written(run_dir, alone):
    with start("-", "--run_dir", run_dir, "--out", alone / "a.csv") as process:
        process.stdin.write("free prize\n" * 100)
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not (alone / "a.csv").exists() or (alone / "a.csv").stat().st_size < 200:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read().splitlines()[1:] == ["interrupted"]
    rows = rows_of((alone / "a.csv").read_text())
    assert len(rows) in (32, 64, 96) and all(row["label"] for row in rows)  # whole windows
