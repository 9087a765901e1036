"""`--report`: which runs it finds, what it reads of them, and what it says of those that are broken."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

import experiments
from pipeline.report import curves
from pipeline.report.page import GENERATOR, write_report
from pipeline.report.runs import MOST_SAMPLES, read_runs
from tests.helpers.paths import ROOT
from tests.helpers.runs import BROKEN, HALF, HOSTILE, write_hostile_runs, write_metrics, write_run, write_samples
from training.scores import by_class
from utils.errors import UserError


def read(*directories: Path) -> dict[str, dict]:
    """Return what is read of runs, by name."""
    return {run["name"]: run for run in read_runs([*directories], directories[0] / "report.html")}


def data_of(page: Path) -> dict:
    """Return the JSON in a page, as a browser finds it: up to the first end of a script."""
    text = page.read_text(encoding="utf-8")
    return json.loads(text.split('id="data">')[1].split("</script>")[0])


# --- what is found


def test_runs_are_found_at_any_depth_and_in_several_directories(tmp_path):
    for name in ("one/a", "one/deep/er/b", "two/c"):
        write_run(tmp_path / name)
    assert [*read(tmp_path / "one")] == ["a", "deep/er/b"]
    both = [*read(tmp_path / "one", tmp_path / "two", tmp_path / "one/deep")]
    assert len(both) == 3 and all(name.startswith(str(tmp_path)) for name in both)  # none twice
    assert [*read(tmp_path / "one" / "a")] == ["a"]  # a run itself


def test_the_command_writes_a_page_from_any_directory(tmp_path):
    write_run(tmp_path / "runs" / "a")
    command = [sys.executable, ROOT / "experiments.py", "--report", "runs"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "report   1 runs\nsaved    runs/report.html\n"), done.stderr
    assert data_of(tmp_path / "runs" / "report.html")["runs"][0]["name"] == "a"
    done = subprocess.run([*command, "--out", "page.html"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and data_of(tmp_path / "page.html")["runs"][0]["files"]["folder"] == "./runs/a"


def test_it_needs_no_torch(tmp_path):
    write_run(tmp_path / "a")
    code = f"import experiments, sys; experiments.main(['--report', {str(tmp_path)!r}]); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["--report", "empty"], "no result.json lies below empty: there is no run to report"),
        (["--report", "nowhere"], "--report nowhere is no directory; name one that holds runs, at any depth"),
        (["--report", "runs", "nowhere"], "--report nowhere is no directory"),
        (["--report", "runs", "--out", "empty"], "--out empty is a directory; name a file, such as empty/report.html"),
        (["--report", "runs", "--out", "no/where.html"], "--out no/where.html: there is no directory no"),
        (["--report", "runs", "--out", "runs/a/result.json"], "result.json is there and is no report; name another file"),
        (["--report", "runs", "--seed", "1"], "--seed doesn't go with --report; what does: --out"),
        (["--out", "x.html"], "--out goes with --predict or --report"),
        (["--report"], "expected at least one argument"),
    ],
)
def test_what_is_refused(argv, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    write_run(Path("runs/a"))
    with pytest.raises(UserError, match=re.escape(what)):
        experiments.main(argv)


def test_an_earlier_report_is_replaced_and_an_empty_directory_is_said(tmp_path, capsys):
    write_run(tmp_path / "runs" / "a")
    (tmp_path / "empty").mkdir()
    page, _ = write_report([tmp_path / "runs"])
    write_run(tmp_path / "runs" / "b")
    assert write_report([tmp_path / "runs", tmp_path / "empty"])[0] == page and len(data_of(page)["runs"]) == 2
    assert f"no result.json lies below {tmp_path / 'empty'}" in capsys.readouterr().err
    assert GENERATOR in page.read_text()


# --- what is read


def test_links_lead_from_the_page_to_the_files(tmp_path):
    directory = write_metrics(write_run(tmp_path / "runs" / "50% #1?: é"), [{}])
    (tmp_path / "pages").mkdir()
    (run,) = read_runs([tmp_path / "runs"], tmp_path / "pages" / "report.html")
    assert run["files"].keys() == {"folder", "result.json", "metrics.jsonl"}
    for name, link in run["files"].items():
        assert not set("#?") & set(link) and link.startswith("./../runs/")
        assert (tmp_path / "pages" / unquote(link)).resolve() == (directory if name == "folder" else directory / name)


def test_seeds_of_one_setting_are_a_group(tmp_path):
    for name, config in {"a": {"seed": 1}, "b": {"seed": 2, "output_dir": "x"}, "c": {"lora_rank": 4}}.items():
        write_run(tmp_path / name, config)
    write_run(tmp_path / "d", {"seed": 1})  # the same seed again is no third seed
    groups = {name: run["group"] for name, run in read(tmp_path).items()}
    assert groups["a"] == groups["b"] and len({groups[name] for name in "acd"}) == 3


def test_only_settings_that_the_method_reads_are_kept(tmp_path):
    write_run(tmp_path / "bitfit", {"trainable_layers": "bitfit"})
    write_run(tmp_path / "lora")
    runs = read(tmp_path)
    assert "lora_rank" not in runs["bitfit"]["settings"] and runs["lora"]["settings"]["lora_rank"] == 8


def test_curves_follow_the_stages_and_keep_their_extremes(tmp_path):
    records = [{"step": step, "stage": stage, "loss": stage} for stage in (1, 2) for step in (1, 2)]
    write_metrics(write_run(tmp_path / "a"), [*records, {"step": 2, "stage": 2, "split": "validation"}])
    found = read(tmp_path)["a"]["curves"]
    assert [point[:2] for point in found["train"]["points"]] == [[1, 1], [2, 1], [3, 2], [4, 2]]
    assert found["validation"] == {"points": [[4, 1, 0.5]], "of": 1}
    n = 30_000
    losses = [1.0] * n
    losses[12_345], losses[23_456] = 99.0, -99.0
    write_metrics(tmp_path / "a", [{"loss": loss} for loss in losses])
    train = read(tmp_path)["a"]["curves"]["train"]
    points = train["points"]
    assert train["of"] == n and len(points) <= curves.MOST_POINTS
    assert [12_346, 99, 0.5] in points and [23_457, -99, 0.5] in points
    assert (points[0][0], points[-1][0]) == (1, n) and points == sorted(points)


def test_what_no_run_logs_is_counted_and_the_rest_is_drawn(tmp_path):
    directory = write_metrics(write_run(tmp_path / "a"), [{}, {"loss": float("nan")}, {"step": 10**400}])
    with (directory / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\n7\n" + b"x" * 3 * curves.LONGEST_LINE + b"\n" + b'{"step": 4, "cut off')
    run = read(tmp_path)["a"]
    assert run["problems"] == ["metrics.jsonl: 3 lines are no records of a run"] and run["state"] == "complete"
    assert [point[1] for point in run["curves"]["train"]["points"]] == [1, None, 1]


def test_samples_are_shown_in_part(tmp_path):
    directory = write_samples(write_run(tmp_path / "a"), [{}] * 50 + [{"split": "general", "answer": "x" * 5000}])
    with (directory / "samples.jsonl").open("a") as file:
        file.write('[]\n{"prompt": 1}\n')
    run = read(tmp_path)["a"]
    assert run["problems"] == ["samples.jsonl: 2 lines are no samples"]
    assert (len(run["samples"]["test"]["shown"]), run["samples"]["test"]["of"]) == (MOST_SAMPLES, 50)
    assert len(run["samples"]["general"]["shown"][0]["answer"]) < 2100


def test_scores_by_class(tmp_path):
    scores = {label: {"precision": 0.5, "f1": None} for label in "abc"}
    more = {"test_per_class": scores, "test_confusion": [[1, 0, 0]] * 3, "validation_per_class": scores}
    write_run(tmp_path / "a", **more, validation_confusion=[[1], [2, 3]])
    test, validation = read(tmp_path)["a"]["classes"]
    assert test["confusion"] == [[1, 0, 0]] * 3 and [row["label"] for row in test["rows"]] == ["a", "b", "c"]
    assert validation["confusion"] == [] and validation["rows"][0]["precision"] == 0.5  # it isn't square


# --- what is broken


@pytest.fixture
def hostile(tmp_path) -> Path:
    return write_hostile_runs(tmp_path / "runs")


def test_broken_and_unfinished_runs_are_named(hostile, capsys):
    assert experiments.main(["--report", str(hostile)]) == 0
    assert "report   11 runs, 1 unfinished and 5 broken\n" in capsys.readouterr().out
    runs = {run["name"]: run for run in data_of(hostile / "report.html")["runs"]}
    said = {name: run["problems"] for name, run in runs.items() if run["state"] == "broken"}
    assert said.keys() == BROKEN.keys() and all(len(one) == 1 for one in said.values())
    assert said["list"] == ["result.json is a list, which no run writes"]
    assert "can't be read: Unterminated string" in said["cut"][0] and "too many brackets" in said["deep"][0]
    unfinished = runs["unfinished"]
    assert unfinished["state"] == "unfinished" and unfinished["results"]["dataset"] == "spam"


def test_texts_and_numbers_come_through_as_they_are(hostile):
    page, _ = write_report([hostile])
    text = page.read_text(encoding="utf-8")
    assert text.count("</script>") == 2 and text.count("<script") == 2 and "\u2028" not in text
    runs = {run["name"]: run for run in data_of(page)["runs"]}
    nan = runs["nan"]["results"]
    assert (nan["test_accuracy"], nan["total_seconds"], nan["seed"]) == ("NaN", "Infinity", str(2**62 + 1))
    assert nan["dataset"] == HOSTILE and runs["sound-123"]["notes"] == [HOSTILE] and runs["sound-123"]["warnings"] == [HALF]
    (chat,) = (run for name, run in runs.items() if name.startswith("chat"))
    assert chat["samples"]["test"]["shown"][0]["prompt"] == HOSTILE + HALF
    assert chat["mark"] == {"method": "freeze mlp", "layers": "all", "auxiliary": True}


def test_a_large_result_is_not_read(tmp_path, monkeypatch):
    directory = write_run(tmp_path / "a")
    with (directory / "result.json").open("ab") as file:
        file.truncate(2**26 + 1)
    assert "it has 67,108,865 bytes" in read(tmp_path)["a"]["problems"][0]


def test_two_hundred_long_runs_make_a_page_of_a_few_megabytes(tmp_path):
    first = write_metrics(write_run(tmp_path / "runs" / "000"), [{"loss": 1 / (step + 1)} for step in range(2000)])
    for number in range(1, 200):
        shutil.copytree(first, tmp_path / "runs" / f"{number:03}")
    page, _ = write_report([tmp_path / "runs"])
    assert page.stat().st_size < 4e6


def test_the_page_shows_all_that_a_run_says_of_a_class(tmp_path):
    measured = by_class([[3, 1], [2, 4]], ("ham", "spam"))
    write_run(tmp_path / "a", test_per_class=measured["per_class"], test_confusion=measured["confusion"])
    (found,) = read(tmp_path)["a"]["classes"]
    assert found["rows"] == [{"label": name} | scores for name, scores in measured["per_class"].items()]
    assert found["confusion"] == measured["confusion"]
