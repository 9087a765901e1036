"""Records made by hand -> rows, verdicts, the Pareto page and the pages' text."""

import json

import numpy as np
import pytest

from pipeline.comparison import pages
from pipeline.comparison.methods import REFERENCE
from pipeline.comparison.pages import pareto_text, side_by_side, table_text, write_pages
from pipeline.comparison.records import SEARCH, TEST, UNTRAINED, write_record
from pipeline.comparison.summary import pareto, summarize
from utils.errors import UserError

HASHES = {"weights_sha256": "w", "data_sha256": "d", "tokenizer_sha256": "t", "code_sha256": "c"}


def record(title: str, stage: str, rate: float, seed: int, loss: float | None, **more) -> dict:
    values = {"title": title, "stage": stage, "seed": seed, "rate": rate, "learning_rate": rate, "config": {}}
    values |= {"validation_loss": loss, "trained_parameters": 1000, "file_bytes": 4000, "seconds_to_best": 2.0}
    return values | {"peak_bytes": 5e6, "hashes": HASHES} | more


def write(folder, title: str, scores: np.ndarray, losses=(0.5, 0.4, 0.6), rates=(0.1, 0.2, 0.3), **more) -> None:
    """Write a method's search over the rates, and for each seed what test examples [S, N] score at the best of them."""
    name = title.replace(" ", "-").lower()
    for rate, loss in zip(rates, losses, strict=True):
        write_record(folder / f"{name}-rate{rate}-seed0.json", record(title, SEARCH, rate, 0, loss, **more))
    best = min((loss, rate) for loss, rate in zip(losses, rates, strict=True) if loss is not None)[1]
    for seed, values in enumerate(scores, start=1):
        one = record(title, TEST, best, seed, 0.4, test=values.tolist(), **more)
        write_record(folder / f"{name}-rate{best}-seed{seed}.json", one)


def right(share: float, n: int = 400, seeds: int = 5) -> np.ndarray:
    generator = np.random.default_rng(int(1000 * share))
    return (generator.random((seeds, n)) < share).astype(int)


def test_verdicts_come_after_the_correction(tmp_path):
    write(tmp_path, REFERENCE.title, right(0.8))
    write(tmp_path, "full", right(0.9), trained_parameters=9000)
    write(tmp_path, "IA3", right(0.6), trained_parameters=10)
    write(tmp_path, "BitFit", right(0.8001), trained_parameters=100)
    results = summarize(tmp_path)
    rows = {row.title: row for row in results.rows}
    assert [*rows] == ["full", REFERENCE.title, "IA3", "BitFit"]  # as the list of methods has them
    assert results.higher_is_better and results.before == {}
    assert [rows[title].verdict for title in rows] == ["better", "", "worse", "tie"]
    assert all(row.p_corrected >= row.p for row in results.rows if row.verdict)
    assert rows["full"].score == pytest.approx(right(0.9).mean(), abs=1e-6)
    assert rows["full"].difference == pytest.approx(right(0.9).mean() - right(0.8).mean(), abs=1e-6)
    assert rows[REFERENCE.title].difference is None and rows["full"].seeds == [1, 2, 3, 4, 5]


def test_of_losses_a_lower_one_is_better(tmp_path):
    generator = np.random.default_rng(0)
    losses = 3 + generator.normal(0, 0.3, (3, 60))
    kept = {"general": [2.0, 2.2], "wikitext2": [3.0, 4.0]}
    write_record(tmp_path / "nothing-seed0.json", record("nothing", UNTRAINED, 0.0, 0, None, test=[4.0], **kept))
    write(tmp_path, REFERENCE.title, losses, general=[2.5, 2.7], wikitext2=[3.0, 4.0])
    write(tmp_path, "full", losses - 1, general=[3.0, 3.2], wikitext2=[4.0, 5.0])
    results = summarize(tmp_path)
    full, reference = results.rows
    assert not results.higher_is_better and full.verdict == "better" and full.difference == pytest.approx(-1)
    assert results.before == {"test": 4.0, "general": 2.1, "wikitext2": 3.5}
    assert full.kept["general"][0] == pytest.approx(1.0) and reference.kept["general"][0] == pytest.approx(0.5)
    text = table_text(results)
    assert "| forgetting: general set |" in text and "| +1.000 ± 0.000, more |" in text and "test 4.000" in text
    assert "| +1.000 ± 0.000 (90.0), more |" in text and "Before it: 33.1." in text  # e to the 4.5, to the 3.5


def test_what_is_forgotten_is_compared_after_the_correction(tmp_path):
    generator = np.random.default_rng(0)
    losses = 3 + generator.normal(0, 0.3, (5, 60))
    before = record("nothing", UNTRAINED, 0.0, 0, None, test=[4.0], general=[3.0] * 40)
    write_record(tmp_path / "nothing-seed0.json", before)

    def write_with(title: str, grown: float) -> None:
        write(tmp_path, title, losses)
        for path in tmp_path.glob(f"{title.replace(' ', '-').lower()}-rate0.2-seed[1-5].json"):
            one = json.loads(path.read_text())
            general = 3 + grown + generator.normal(0, 0.01, 40)  # as the reference, but for what another seed changes
            write_record(path, one | {"general": general.tolist()})

    for title, grown in ((REFERENCE.title, 0.5), ("full", 0.7), ("IA3", 0.2), ("norms", 0.501)):
        write_with(title, grown)
    rows = {row.title: row for row in summarize(tmp_path).rows}
    found = {title: row.forgot.get("general", "") for title, row in rows.items()}
    assert found == {"full": "more", REFERENCE.title: "", "IA3": "less", "norms": "tie"}
    assert all(row.verdict == "tie" for title, row in rows.items() if title != REFERENCE.title)


def test_a_set_that_a_method_was_not_measured_on_is_left_open(tmp_path):
    losses = 3 + np.random.default_rng(0).normal(0, 0.3, (3, 60))
    write_record(tmp_path / "nothing-seed0.json", record("nothing", UNTRAINED, 0.0, 0, None, test=[4.0], wikitext2=[3.0]))
    write(tmp_path, REFERENCE.title, losses, wikitext2=[3.5])
    write(tmp_path, "full", losses)  # before the file was there
    lines = table_text(summarize(tmp_path)).splitlines()
    assert next(line for line in lines if "| full |" in line).endswith("| tie | - |")
    assert next(line for line in lines if f"| {REFERENCE.title} |" in line).endswith("| +0.500 ± 0.000 (33.1) |")


def test_only_seeds_of_both_are_compared(tmp_path):
    scores = right(0.8)
    write(tmp_path, REFERENCE.title, scores[:3])
    write(tmp_path, "full", scores)
    full, _ = summarize(tmp_path).rows
    assert full.seeds == [1, 2, 3, 4, 5] and full.difference == 0.0 and full.verdict == "tie"


def test_rows_with_other_seeds_than_most_are_named(tmp_path):
    scores = right(0.8)
    for title in (REFERENCE.title, "IA3"):
        write(tmp_path, title, scores)
    for title in ("full", "last block", "head alone"):
        write(tmp_path, title, scores[:3])
    assert "- Seeds: 1, 2, 3; 1, 2, 3, 4, 5 of row 5, 13." in table_text(summarize(tmp_path)).splitlines()


@pytest.mark.parametrize("name", ["data", "weights", "tokenizer"])
def test_other_inputs_are_not_compared_and_are_named(tmp_path, name):
    write(tmp_path, REFERENCE.title, right(0.8))
    write(tmp_path, "full", right(0.9), hashes=HASHES | {f"{name}_sha256": "other"})
    results = summarize(tmp_path)
    full, reference = results.rows
    assert full.difference is None and full.verdict == "" and full.unlike == (name,)
    assert f"- full: {name} was not as for {REFERENCE.title}" in table_text(results)
    assert pareto(results.rows, True) == [reference]


def test_records_of_other_inputs_do_not_count(tmp_path):
    old = {"hashes": HASHES | {"data_sha256": "before a change", "test_data_sha256": "before a change"}}
    write(tmp_path, REFERENCE.title, right(0.2, n=300), losses=(0.1, 0.2, 0.3), rates=(0.4, 0.5, 0.6), **old)
    write(tmp_path, REFERENCE.title, right(0.2, n=300), losses=(0.5, 0.4, 0.6), **old)
    write(tmp_path, REFERENCE.title, right(0.8)[:3])  # the seeds 4 and 5, and three rates, are of the data before
    (row,) = summarize(tmp_path).rows
    assert row.seeds == [1, 2, 3] and row.learning_rate == 0.2
    assert row.score == pytest.approx(right(0.8)[:3].mean(), abs=1e-6)


def test_what_is_forgotten_is_of_the_same_weights(tmp_path):
    losses, kept = 3 + np.random.default_rng(0).normal(0, 0.3, (3, 60)), {"general": [2.0, 2.2]}
    before = record("nothing", UNTRAINED, 0.0, 0, None, test=[4.0], **kept)
    write_record(tmp_path / "nothing-seed0.json", before | {"hashes": HASHES | {"weights_sha256": "other"}})
    write(tmp_path, REFERENCE.title, losses, general=[2.5, 2.7])
    assert summarize(tmp_path).rows[0].kept == {}


def test_a_method_with_data_of_its_own_is_shown_without_a_verdict(tmp_path):
    write(tmp_path, REFERENCE.title, right(0.8))
    own = {"trained_on": "preferences", "validation_accuracy": 0.925, "hashes": HASHES | {"data_sha256": "other"}}
    write(tmp_path, "DPO", right(0.9), **own)
    text = table_text(summarize(tmp_path))
    line = next(line for line in text.splitlines() if "| DPO |" in line)
    assert line.endswith("| - | - | - |")
    assert "- DPO: trained on preferences, not on what the others were" in text and "accuracy is 92.5%" in text
    assert "trained on" not in line


def test_one_seed_has_no_interval_and_no_verdict(tmp_path):
    write(tmp_path, REFERENCE.title, right(0.8, seeds=1))
    write(tmp_path, "full", right(0.9, seeds=1))
    full, _ = summarize(tmp_path).rows
    assert full.half is None and full.verdict == "" and full.p is None
    line = next(line for line in table_text(summarize(tmp_path)).splitlines() if "| full |" in line)
    assert line.endswith("| - | one seed |") and "±" not in line


def test_a_rate_at_the_edge_and_one_that_diverged_are_said(tmp_path):
    write(tmp_path, REFERENCE.title, right(0.8), losses=(0.3, 0.4, None))
    write(tmp_path, "full", right(0.8), losses=(0.5, 0.4, 0.3))
    write_record(tmp_path / "bypass-left-out.json", {"title": "bypass", "reason": "it needs a classifier"})
    text = table_text(summarize(tmp_path))
    assert f"- {REFERENCE.title}: the rate 0.1 is the lowest that was tried." in text
    assert f"- {REFERENCE.title}: the training came to nan or inf at 0.3." in text
    assert "- full: the rate 0.3 is the highest that was tried." in text and "| 0.3* |" in text
    assert "- bypass: left out: it needs a classifier." in text


def test_a_seed_that_diverged_is_said_and_is_in_no_mean(tmp_path):
    write(tmp_path, REFERENCE.title, right(0.8))
    write(tmp_path, "full", right(0.9)[:3])
    write_record(tmp_path / "full-rate0.2-seed4.json", record("full", TEST, 0.2, 4, None, diverged="the loss is nan"))
    results = summarize(tmp_path)
    assert results.rows[0].seeds == [1, 2, 3] and results.rows[0].diverged_seeds == [4]
    assert "- full: with seed 4 the training came to nan or inf" in table_text(results)


def test_a_method_without_a_row_is_said(tmp_path):
    write(tmp_path, REFERENCE.title, right(0.8))
    write(tmp_path, "full", right(0.8)[:0])
    write(tmp_path, "IA3", right(0.8)[:0])
    write_record(tmp_path / "ia3-rate0.2-seed1.json", record("IA3", TEST, 0.2, 1, None, diverged="nan"))
    results = summarize(tmp_path)
    assert [row.title for row in results.rows] == [REFERENCE.title]
    assert results.left_out["IA3"] == "the training came to nan or inf with seed 1"
    assert "- full: left out: not measured on test data yet" in table_text(results)


def test_runs_at_a_rate_that_is_no_longer_chosen_do_not_count(tmp_path):
    write(tmp_path, REFERENCE.title, right(0.8))
    old = record(REFERENCE.title, TEST, 0.3, 1, 0.4, test=[0, 0])
    write_record(tmp_path / "old-rate0.3-seed1.json", old)
    (row,) = summarize(tmp_path).rows
    assert row.learning_rate == 0.2 and row.score == pytest.approx(right(0.8).mean(), abs=1e-6)


def test_runs_that_another_command_left_behind_do_not_count(tmp_path):
    write(tmp_path, REFERENCE.title, right(0.8))
    write(tmp_path, "full", right(0.9)[:3])
    for seed, left in ((4, {"config": {"max_steps": 4}}), (5, {"hashes": HASHES | {"code_sha256": "older"}})):
        one = record("full", TEST, 0.2, seed, 0.4, test=[0] * 400, **left)
        write_record(tmp_path / f"full-rate0.2-seed{seed}.json", one)
    full, _ = summarize(tmp_path).rows
    assert full.seeds == [1, 2, 3] and full.score == pytest.approx(right(0.9)[:3].mean(), abs=1e-6)


def test_a_rate_that_was_searched_with_other_settings_is_not_chosen(tmp_path):
    rates = REFERENCE.rates
    write(tmp_path, REFERENCE.title, right(0.8), losses=(0.5, 0.4), rates=rates[:2])
    old = record(REFERENCE.title, SEARCH, 1e-5, 0, 0.1, config={"max_steps": 4})  # by an earlier list of rates
    write_record(tmp_path / "a-rate1e-05-seed0.json", old)
    (row,) = summarize(tmp_path).rows
    assert row.learning_rate == rates[1] and row.edge == "highest"


def test_a_row_with_other_settings_than_the_reference_has_no_verdict(tmp_path):
    job = {"max_steps": 40, "seed": 1, "lora_rank": 16}
    write(tmp_path, REFERENCE.title, right(0.8), config=job, trained_parameters=500)
    write(tmp_path, "IA3", right(0.9), config=job | {"lora_rank": 8, "trainable_layers": "ia3"})
    write(tmp_path, "BitFit", right(0.9), config=job | {"max_steps": 4}, trained_parameters=10)
    results = summarize(tmp_path)
    rows = {row.title: row for row in results.rows}
    assert rows["IA3"].verdict == "better" and rows["IA3"].unlike == ()
    assert rows["BitFit"].verdict == "" and rows["BitFit"].difference is None
    assert "- BitFit: max_steps was not as for LoRA, r = 16, so there is no difference" in table_text(results)
    assert "BitFit" not in pareto_text(results)


def test_the_pareto_page_has_what_no_other_beats(tmp_path):
    scores = right(0.8)
    write(tmp_path, REFERENCE.title, scores, trained_parameters=500)
    write(tmp_path, "full", right(0.9), trained_parameters=9000)
    write(tmp_path, "IA3", scores, trained_parameters=500)  # the same in both: neither beats the other
    write(tmp_path, "BitFit", scores, trained_parameters=600)  # as good with more parameters
    write(tmp_path, "norms", right(0.5), trained_parameters=10)
    results = summarize(tmp_path)
    assert [row.title for row in pareto(results.rows, True)] == ["norms", REFERENCE.title, "IA3", "full"]
    text = pareto_text(results)
    assert "| norms | 10 |" in text and "BitFit" not in text
    assert {row.title for row in pareto(results.rows, False)} == {"norms"}  # of losses


def test_the_pages_are_made_from_the_records_by_a_command(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "methods" / "classification-x-y"
    write(folder, REFERENCE.title, right(0.8))
    write(folder, "full", right(0.9))
    monkeypatch.setattr("sys.argv", ["pages", str(tmp_path)])
    assert pages.main() == 0
    assert f"saved {folder}/table.md" in capsys.readouterr().out
    written = json.loads((folder / "table.json").read_text())
    assert [row["title"] for row in written["rows"]] == ["full", REFERENCE.title]
    assert written["rows"][0]["verdict"] == "better" and written["reference"] == REFERENCE.title
    assert (folder / "table.md").read_text().startswith("# classification-x-y\n")
    assert (folder / "pareto.md").is_file()
    monkeypatch.setattr("sys.argv", ["pages", str(tmp_path / "elsewhere")])
    with pytest.raises(UserError, match=r"elsewhere holds no results of --table methods"):
        pages.main()


def test_methods_with_as_many_parameters_stand_side_by_side(tmp_path):
    write(tmp_path, REFERENCE.title, right(0.8), trained_parameters=1000)
    write(tmp_path, "full", right(0.8), trained_parameters=5000)
    write(tmp_path, "IA3", right(0.8), trained_parameters=1000)
    assert side_by_side(summarize(tmp_path).rows) == {REFERENCE.title: 1000, "IA3": 1050, "full": 5000}


def test_a_plot_is_drawn_with_matplotlib_alone(tmp_path, monkeypatch):
    write(tmp_path, REFERENCE.title, right(0.8))
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)  # not installed
    assert write_pages(tmp_path)[-1] == "no plot: plots need matplotlib: pip install matplotlib"
    monkeypatch.undo()
    pytest.importorskip("matplotlib")
    assert write_pages(tmp_path)[-1] == f"plot  {tmp_path}/pareto.png"
    assert (tmp_path / "pareto.png").stat().st_size > 1000
