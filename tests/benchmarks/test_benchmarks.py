"""benchmarks/: medians, ratios, what is written and merged, errors; and one row for real."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import encoders, growth, inputs, measure, spam, step
from benchmarks import run as benchmark
from config import Run, resolve
from data.files import TextExample
from data.registry import get_task
from data.spam import RECIPE
from tests.helpers.paths import ROOT
from utils.errors import UserError

CPU = measure.CPU
SHOWN = {"/somewhere": "INPUTS", "/shared/data": "../data"}
OURS, THEIRS = (measure.Side([name], ROOT, json.loads) for name in ("ours", "theirs"))


def comparison(row: int = 1, **changes) -> measure.Comparison:
    return measure.Comparison(**{"row": row, "work": f"work {row}", "peer": "them", "precision": "fp32 / fp32"} | changes)


def fake(*seconds: float):
    """Measurements in this order, and which side each was of."""
    left, asked = list(seconds), []

    def run(side: measure.Side) -> dict:
        asked.append(side.command[0])
        return {"seconds": left.pop(0), "peak_bytes": 100 if side is OURS else 400, "steps": 7, "start_loss": 0.5}

    return run, asked


def test_sides_take_turns_and_medians_count():
    run, asked = fake(1.0, 10.0, 5.0, 30.0, 2.0, 20.0)
    record = measure.measure(comparison(ours=OURS, theirs=THEIRS, extra={"fraction": 0.5}), 3, SHOWN, run)
    assert asked == ["ours", "theirs"] * 3
    assert (record["ours_seconds"], record["peer_seconds"], record["time_ratio"]) == (2.0, 20.0, 10.0)
    assert record["memory_ratio"] == 0.25 and record["fraction"] == 0.5 and record["repeats"] == 3
    assert record["ours_all_seconds"] == [1.0, 5.0, 2.0] and record["peer_command"] == "theirs"


def test_commands_are_written_without_the_paths_of_this_machine():
    command = [
        sys.executable,
        "-P",
        str(ROOT / "benchmarks/peers/some.py"),
        "--data",
        "/somewhere/texts",
        "/shared/data",
        "a b",
    ]
    assert measure.written(command, SHOWN) == "python -P benchmarks/peers/some.py --data INPUTS/texts ../data 'a b'"


def test_without_a_peer_the_limit_stands_in_and_a_note_stands_alone():
    def run(side):
        return {"seconds": 4.0, "limit_seconds": 3.0, "peak_bytes": 100}

    record = measure.measure(comparison(ours=OURS), 2, SHOWN, run)
    assert record["time_ratio"] == 0.75 and record["memory_ratio"] is None and "peer_command" not in record
    left_out = measure.measure(comparison(ours=None, note="too large"), 2, SHOWN, run)
    assert left_out["ours_seconds"] is None and left_out["repeats"] == 0
    assert "too large" in measure.markdown([record, left_out], "title")


def test_checks_are_run_once_and_not_timed():
    run, asked = fake(1.0, 2.0, 3.0, 4.0, 50.0, 60.0)
    record = measure.measure(comparison(ours=OURS, theirs=THEIRS, check=(OURS, THEIRS)), 2, SHOWN, run)
    assert len(asked) == 6 and record["ours_seconds"] == 2.0
    assert record["ours_start_loss"] == record["peer_start_loss"] == 0.5


def test_new_records_take_the_place_of_old_ones(tmp_path):
    file, records = tmp_path / "found.json", []
    for row, seconds in ((5, 1.0), (1, 2.0), (5, 3.0)):
        run, _ = fake(seconds, 9.0)
        record = measure.measure(comparison(row, ours=OURS, theirs=THEIRS), 1, SHOWN, run)
        records = measure.merged(measure.read_records(file), record)
        measure.write_records(records, file, "title")
    assert [(one["row"], one["ours_seconds"]) for one in json.loads(file.read_text())] == [(1, 2.0), (5, 3.0)]
    table = file.with_suffix(".md").read_text()
    assert "| 5 | work 5 | them | fp32 / fp32 | 3 | 9 | 3 |" in table and "theirs" in table
    other = measure.merged(records, record | {"precision": "bf16 / fp32"})
    assert [one["precision"] for one in other] == ["fp32 / fp32", "fp32 / fp32", "bf16 / fp32"]


def test_a_file_without_measurements_is_left_alone(tmp_path):
    file = tmp_path / "notes.json"
    file.write_text("{}")
    with pytest.raises(UserError, match="holds no measurements"):
        measure.read_records(file)


def spam_records(fraction: float = 1.0) -> list[dict]:
    found = []
    for row, seconds, peak in ((5, 8.0, 400), (11, 4.0, 100)):
        one = measure.Comparison(row, f"row {row}", spam.PEER, "fp32 / fp32", OURS, THEIRS, extra={"fraction": fraction})
        measured = {"seconds": seconds, "peak_bytes": peak, "steps": row}
        found.append(measure.record_of(one, [measured], [measured | {"seconds": 99.0}], SHOWN))
    return found


def test_lora_is_compared_with_all_layers_where_both_were_measured_alike():
    full, lora = spam_records()
    assert spam.derived([lora]) == []
    assert spam.derived([full | {"fraction": 0.1}, lora]) == []
    (found,) = spam.derived([full, lora])
    assert found["peer"] == "ours, all layers" and found["time_ratio"] == 2.0 and found["memory_ratio"] == 0.25
    assert (found["ours_seconds"], found["peer_seconds"], found["peer_steps"]) == (4.0, 8.0, 5)
    assert len(measure.merged([full, lora], found)) == 3


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--suite", "spam", "--rows", "2"], "no row 2 in this suite; choose among 1, 3, 5, 11, 13, 14, 16"),
        (["--suite", "spam", "--rows", "x"], "--rows is 'x'"),
        (["--suite", "spam", "--fraction", "0"], "--fraction is 0.0; it must be above 0 and at most 1"),
        (["--suite", "spam", "--repeats", "0"], "--repeats is 0"),
        (["--suite", "spam", "--json", "x.txt"], "must end in .json"),
        (["--suite", "unknown"], "choose from"),
    ],
)
def test_errors_name_value_and_choices(argv, said):
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        benchmark.main(argv)


def test_a_missing_peer_is_named_with_its_command(monkeypatch):
    def missing(name: str) -> str:
        raise measure.PackageNotFoundError(name)

    monkeypatch.setattr(measure, "version", missing)
    with pytest.raises(UserError, match=r"pip install --no-deps llms-from-scratch==1\.0\.19"):
        benchmark.main(["--suite", "spam"])
    with pytest.raises(UserError, match="transformers isn't installed: python -m pip install -r benchmarks/requirements"):
        benchmark.main(["--suite", "encoders"])


def test_a_program_that_fails_is_an_error_of_one_line():
    side = measure.Side([sys.executable, "-c", "raise SystemExit('no memory')"], ROOT, measure.last_line)
    with pytest.raises(UserError, match="exit status 1 and said: no memory"):
        measure.run_side(side)
    side = measure.Side([sys.executable, "-c", "print('ready')"], ROOT, measure.last_line)
    with pytest.raises(UserError, match="left no measurement"):
        measure.run_side(side)


def test_versions_are_those_of_the_requirements():
    pinned = (ROOT / "benchmarks/requirements.txt").read_text()
    for name in ("transformers", "peft", "accelerate"):
        assert f"{name}=={encoders.PACKAGES[name]}" in pinned
    assert f"llms-from-scratch=={spam.PACKAGES['llms-from-scratch']}" in (ROOT / "benchmarks/README.md").read_text()


def test_peers_import_nothing_of_this_project():
    ours = {path.stem for path in ROOT.glob("*.py")} | {"model", "data", "published", "benchmarks"}
    for path in (ROOT / "benchmarks/peers").glob("*.py"):
        words = [line.split() for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
        assert not ours & {line[1].split(".")[0] for line in words}


def test_both_sides_get_the_same_drawn_messages(small_data, tmp_path):
    flags, csv = inputs.spam_texts(str(small_data), tmp_path, 10)
    assert flags[:3] == ["--dataset", "spam", "--data_dir"] and flags[3] == str(tmp_path)
    splits = get_task("spam").read(tmp_path)
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [14, 2, 4]
    lines = (csv / "train.csv").read_text().splitlines()
    assert lines[0] == "Label,Text" and lines[1] == f"{splits['train'][0].label},{splits['train'][0].text}"


def test_a_message_is_written_as_it_is_read(tmp_path):
    texts = ['a "quoted" word', '"', "plain", "with, a comma", "tail "]
    examples = [TextExample(text, label) for label in (0, 1) for text in texts]
    inputs.write_collection(examples, tmp_path / inputs.FILE)
    splits = get_task("spam").read(tmp_path)
    assert sorted(one for split in splits.values() for one in split) == sorted(examples)


def test_growth_names_each_step_once():
    assert len(set(growth.ROWS.values())) == len(growth.ROWS) == 2 * 15 + 3 + 1
    assert growth.bytes_needed("gpt2-pocket", "all") > 2 * growth.bytes_needed("gpt2-pocket", "lora")


def test_a_step_is_measured_beside_its_matrix_products(monkeypatch):
    assert step.product_rate(4, 8, "off", CPU, seconds=0) > 0
    monkeypatch.setattr(step, "product_rate", lambda tokens, dim, amp, device: 1e9)
    run = resolve(Run(model="gpt2-pocket", trainable_layers="all", batch_size=2, amp="off"), RECIPE)
    found = step.measure(run, 16, 2, CPU)
    blocks = 4 * 12 * 192 * 192  # parameters in the matrices of 4 blocks; the last one's output is read at one position
    forward = 2 * 32 * blocks
    assert 3 * forward * 3 / 4 < found["flops"] < 3 * forward * 1.2  # backward is twice that
    assert found["limit_seconds"] == pytest.approx(found["flops"] / 1e9) and found["peak_bytes"] > 0
    assert len(found["step_seconds"]) == 3  # the first of which isn't counted
    assert found["seconds"] == pytest.approx(sum(found["step_seconds"][1:]) / 2)


@pytest.mark.slow
def test_row_3_agrees_with_the_published_loop(shared, tmp_path):
    try:
        measure.need_packages(spam.PACKAGES)
    except UserError as error:
        pytest.skip(str(error))
    file = Path(tmp_path) / "found.json"
    words = f"--suite spam --rows 3 --fraction 0.02 --repeats 1 --data_dir {shared / 'data'} --json {file} --amp off"
    done = subprocess.run([sys.executable, "benchmarks/run.py", *words.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(file.read_text())
    assert record["ours_first_loss"] == pytest.approx(record["peer_first_loss"], rel=1e-5)
    assert record["ours_trainable_parameters"] == record["peer_trainable_parameters"] == 1538
    assert record["ours_steps"] == record["peer_steps"]
    assert record["ours_accuracy"]["test"] == pytest.approx(record["peer_accuracy"]["test"])
    assert record["time_ratio"] > 0 and file.with_suffix(".md").exists()
