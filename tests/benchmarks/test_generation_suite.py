"""benchmarks/generation.py with small models: both sides write the same, and what differs is seen."""

import argparse
import json

import pytest
import torch

from benchmarks import generate, generation, measure
from benchmarks import run as benchmark
from benchmarks.inputs import write_drawn
from model import config_of
from model.gpt2 import GPT2Config
from tests.helpers.paths import ROOT
from utils.errors import UserError

SMALL = generation.Size(prompt=12, new_tokens=6, gpt2=GPT2Config(300, 64, 32, 4, 2))


def arguments(**given) -> argparse.Namespace:
    return argparse.Namespace(**{"amp": "off", "checkpoint": None, "fraction": 1.0} | given)


@pytest.fixture
def in_this_process(capsys, monkeypatch):
    """Generate ours here."""
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)

    def run(side: measure.Side) -> dict:
        if side.command[1:3] != ["-m", "benchmarks.generate"]:
            return measure.run_side(side)
        generate.main(side.command[3:])
        return side.read(capsys.readouterr().out)

    return run


def test_both_sides_get_the_same_words(tmp_path, small_checkpoint):
    rows = [*generation.ROWS]
    found = [*generation.comparisons(rows, arguments(checkpoint=str(small_checkpoint)), tmp_path, SMALL)]
    assert [one.row for one in found] == rows == [*range(1, 8)]
    *batches, chat = found
    assert [generation.ROWS[one.row].batch_size for one in batches] == [1, 8, 32] * 2
    for one in batches:
        assert one.ours.command[3:] == one.theirs.command[3:] and one.ours.cwd == ROOT != one.theirs.cwd
        words = dict(zip(one.ours.command[3::2], one.ours.command[4::2], strict=True))
        assert words["--threads"] == str(torch.get_num_threads()) and words["--new_tokens"] == "6"
        assert (words["--checkpoint"] == str(small_checkpoint.resolve())) == (one.row <= 3)
    assert chat.ours.command[:-1] == chat.theirs.command[:-1]
    assert (chat.ours.command[-1], chat.theirs.command[-1]) == ("keep", "anew")
    assert len({(one.work, one.precision) for one in found}) == 7


def test_prompts_are_padded_on_the_left_and_have_no_token_with_a_meaning_of_its_own(tmp_path):
    checkpoint = write_drawn(tmp_path / "gpt2", SMALL.gpt2)
    file = generation.write_prompts(tmp_path / "prompts.json", checkpoint, 8, 12)
    ids, mask = (torch.tensor(rows) for rows in json.loads(file.read_text()).values())
    assert ids.shape == mask.shape == (8, 12) and mask[0].all() and not mask.all()
    assert mask.sum(1).min() >= 9 and torch.equal(mask, mask.sort(dim=1).values)
    assert ids[mask == 1].min() >= 30 and ids.max() < 270
    assert file.read_text() == generation.write_prompts(tmp_path / "again.json", checkpoint, 8, 12).read_text()


def test_a_batch_is_continued_by_the_library_as_by_ours(tmp_path, in_this_process):
    try:
        measure.need_packages(generation.PACKAGES)
    except UserError as error:
        pytest.skip(str(error))
    (one,) = generation.comparisons([5], arguments(), tmp_path, SMALL)
    record = generation.judged(measure.measure(one, 1, {}, in_this_process))
    assert record["agree"] is True and record["equal_texts"] == 8 and len(set(record["ours_texts"])) > 4
    assert record["ours_tokens_per_second"] == pytest.approx(8 * 6 / record["ours_seconds"])
    assert record["peer_seconds"] > 0 and record["peer_peak_bytes"] > 0 and "8 of 8 texts equal" in record["note"]


def test_a_dialogue_has_the_same_answers_with_its_cache_kept_as_anew(small_checkpoint):
    # the context of the small checkpoint holds some turns; those that don't fit are forgotten on both sides
    kept, anew = (generate.measure_chat(str(small_checkpoint), 3, keep) for keep in (True, False))
    assert kept["texts"] == anew["texts"] and len(kept["first_token_seconds"]) == len(generate.QUESTIONS) == 6
    assert kept["seconds"] == pytest.approx(sum(kept["first_token_seconds"]))


TIMED = {"peak_bytes": 100, "texts": ["a", "b"], "tokens_per_second": 4.0}


def compared(theirs: list[str], precision: str = "fp32 / fp32", **more) -> dict:
    side = measure.Side(["program"], ROOT, json.loads)
    one = measure.Comparison(2, "a batch", "transformers", precision, side, side)
    ours = [TIMED | {"seconds": seconds} | more for seconds in (2.0, 1.0, 0.5)]
    peers = [TIMED | {"seconds": seconds, "texts": theirs} | more for seconds in (4.0, 4.0, 4.0)]
    return generation.judged(measure.record_of(one, ours, peers, {}))


def test_texts_that_differ_are_counted_and_refused_in_fp32_alone():
    same, other = compared(["a", "b"]), compared(["a", "c"])
    assert (same["equal_texts"], same["agree"]) == (2, True) and (other["equal_texts"], other["agree"]) == (1, False)
    assert "agree" not in compared(["a", "c"], "bf16 / bf16")
    assert same["time_ratio"] == 4.0 and same["note"] == "8 against 2 tokens/s; 2 of 2 texts equal"  # of the medians
    with pytest.raises(ValueError, match="zip"):
        compared(["a"])


def test_turns_are_listed_and_what_was_derived_before_is_replaced():
    chat = compared(["a", "b"]) | {"ours_first_token_seconds": [0.5, 0.25], "peer_first_token_seconds": [0.5, 1.0]}
    del chat["ours_tokens_per_second"]
    records = benchmark.with_derived([chat], generation)
    assert records == benchmark.with_derived(records, generation)
    assert records[0]["note"] == "0.50, 0.25 against 0.50, 1.00 s; 2 of 2 texts equal"


def test_a_run_whose_texts_differ_fails(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(generation, "comparisons", lambda *given: [measure.Comparison(2, "a batch", "them", "fp32", None)])
    monkeypatch.setattr(generation, "PACKAGES", {})
    monkeypatch.setattr(measure, "measure", lambda *given: compared(["a", "c"]))
    assert benchmark.main(["--suite", "generation", "--rows", "5", "--json", str(tmp_path / "found.json")]) == 1
    assert capsys.readouterr().err == "error: the texts of both sides don't agree: row 2\n"
    assert json.loads((tmp_path / "found.json").read_text())[0]["equal_texts"] == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--suite generation", "--rows 1, 2, 3, 7: a language model is needed.*--checkpoint, or choose --rows 4, 5, 6"),
        ("--suite generation --rows 8", "no row 8 in this suite; choose among 1, 2, 3, 4, 5, 6, 7"),
        ("--suite generation --fraction 0.5", "--fraction 0.5 changes nothing in --suite generation"),
        ("--suite generation --data_dir x", "--data_dir x changes nothing"),
        ("--suite spam --checkpoint x", "--checkpoint .*x changes nothing in --suite spam"),
    ],
)
def test_flags_that_are_missing_or_change_nothing_are_refused(argv, said, monkeypatch, tmp_path):
    monkeypatch.setattr(generation, "PACKAGES", {})
    with pytest.raises(UserError, match=said):
        benchmark.main([*argv.split(), "--json", str(tmp_path / "found.json")])


def test_in_half_precision_ours_writes_as_long_a_text(tmp_path):
    checkpoint = write_drawn(tmp_path / "gpt2", SMALL.gpt2)
    assert config_of(str(checkpoint)) == SMALL.gpt2
    prompts = generation.write_prompts(tmp_path / "prompts.json", checkpoint, 2, 12)
    found = generate.measure_batch(str(checkpoint), prompts, 6, "bf16")
    assert found["tokens_per_second"] == pytest.approx(12 / found["seconds"]) and len(found["texts"]) == 2
