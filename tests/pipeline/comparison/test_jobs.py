"""Which job a flag asks for, and which data its runs see."""

import pytest

from config import Run
from data.registry import get_task
from pipeline.comparison import table
from pipeline.comparison.jobs import CLASSIFICATION, DIALOGUE, comparisons_of, hold_out, prepare_one, scored_job, wikitext
from pipeline.comparison.methods import ENTRIES, REFERENCE, UNTRAINED
from pipeline.comparison.table import why_left_out
from tests.helpers.small import make_encoder
from utils.errors import UserError


def prepared(overrides: Run, with_test: bool, seed: int = 0):
    (comparison,) = comparisons_of(overrides)
    return prepare_one(comparison, REFERENCE, 1e-3, seed, with_test)


def test_without_flags_both_jobs_run_on_what_is_shipped():
    classification, dialogue = comparisons_of(Run())
    assert (classification.name, dialogue.name) == (CLASSIFICATION.name, DIALOGUE.name)
    assert classification.folder == "classification-distilbert-pocket-sentiment-pocket"
    assert dialogue.folder == "dialogue-gpt2-pocket-persona"
    assert dialogue.test_seeds(None) == [1, 2, 3, 4, 5] and classification.test_seeds(2) == [1, 2]
    other = comparisons_of(Run(seed=7))[0]  # in a folder of its own
    assert (
        classification.search_seed == 0 and other.test_seeds(1) == [8] and other.folder == f"{classification.folder}-seed7"
    )


@pytest.mark.parametrize(
    ("flags", "job"),
    [
        ({"dataset": "persona"}, "dialogue-gpt2-pocket-persona"),
        ({"model": "gpt2-pocket"}, "dialogue-gpt2-pocket-persona"),
        ({"model": "distilbert-pocket"}, "classification-distilbert-pocket-sentiment-pocket"),
        ({"model": "gpt2-pocket", "dataset": "spam-pocket"}, "classification-gpt2-pocket-spam-pocket"),
    ],
)
def test_the_data_or_else_the_model_says_which_job(flags, job):
    (comparison,) = comparisons_of(Run(**flags))
    assert comparison.folder == job


def test_the_development_set_is_the_test_and_validation_is_drawn_from_training(tmp_path, encoder_data):
    bert = make_encoder(tmp_path / "bert", "bert", encoder_data)
    flags = Run(checkpoint=str(bert), data_dir=str(encoder_data))
    own = get_task("sst2").read(encoder_data)
    searched, tested = (prepared(flags, with_test).inputs.splits for with_test in (False, True))
    assert searched.keys() == {"train", "validation"} and tested.keys() == {"train", "validation", "test"}
    assert searched["train"] == tested["train"] and searched["validation"] == tested["validation"]
    assert tested["test"] == own["validation"]
    assert (len(searched["train"]), len(searched["validation"])) == (48, 12)
    assert sorted(map(str, searched["train"] + searched["validation"])) == sorted(map(str, own["train"]))
    assert prepared(flags, True, seed=3).inputs.splits == tested  # the same whatever the seed
    assert prepared(flags, True).run.train_samples == 48


def test_the_hash_of_a_search_has_no_test_data_in_it():
    searched, tested = (prepared(Run(dataset="persona"), with_test).inputs for with_test in (False, True))
    assert searched.splits.keys() == {"train", "validation"}
    assert tested.splits.keys() == {"train", "validation", "test", "general"}
    assert searched.hashes["data_sha256"] != tested.hashes["data_sha256"]


def test_pairs_of_answers_go_with_the_shipped_dialogues_alone():
    (dpo,) = (entry for entry in ENTRIES if entry.run.dataset)
    (persona,) = comparisons_of(Run(dataset="persona"))
    searched, tested = (prepare_one(persona, dpo, 1e-3, 1, with_test) for with_test in (False, True))
    assert searched.task.name == "preferences" and searched.inputs.splits.keys() == {"train", "validation"}
    assert scored_job(persona, dpo, searched).inputs.splits.keys() == {"train", "validation"}
    assert scored_job(persona, dpo, tested).inputs.splits.keys() == {"train", "validation", "test", "general"}
    assert scored_job(persona, REFERENCE, tested) is None
    (classification,) = comparisons_of(Run(dataset="sentiment-pocket"))
    assert "it trains on preferences" in why_left_out(classification, dpo) and not why_left_out(persona, dpo)


def test_a_flag_that_only_pairs_make_no_use_of_leaves_only_them_out(monkeypatch):
    (dpo,) = (entry for entry in ENTRIES if entry.run.dataset)
    (watched,) = comparisons_of(Run(dataset="persona", general_dataset="general"))
    assert why_left_out(watched, dpo).startswith("--general_dataset doesn't go with --objective dpo")
    assert why_left_out(watched, REFERENCE) == ""

    def fail(*args, **how):
        raise UserError("wrong for every row")

    monkeypatch.setattr(table, "prepare_one", fail)
    with pytest.raises(UserError, match="wrong for every row"):  # no reason to leave all of them out
        why_left_out(watched, REFERENCE)


def test_epochs_that_are_said_are_every_row_s_but_the_untrained_model_s():
    (dpo,) = (entry for entry in ENTRIES if entry.run.dataset)
    for flags, expected in ((Run(dataset="persona"), [2, 3, 0]), (Run(dataset="persona", num_epochs=1), [1, 1, 0])):
        (persona,) = comparisons_of(flags)
        jobs = [prepare_one(persona, entry, 1e-3, 1, False) for entry in (REFERENCE, dpo, UNTRAINED)]
        assert [job.run.num_epochs for job in jobs] == expected


def test_large_training_splits_are_cut_and_own_test_splits_are_kept():
    examples = [*range(6000)]
    parts = hold_out({"train": examples, "validation": [-1]})
    assert (len(parts["train"]), len(parts["validation"]), parts["test"]) == (5500, 500, [-1])
    own = {"train": examples, "validation": [-1], "test": [-2]}
    assert hold_out(own) == own
    with pytest.raises(UserError, match="needs a data set with labels to test on"):
        hold_out({"train": examples})
    assert prepared(Run(dataset="sentiment-pocket"), False).run.train_samples == 1576  # all of them
    assert prepared(Run(dataset="sentiment-pocket", train_samples=30), False).run.train_samples == 30


def test_a_small_model_gets_larger_rates():
    assert prepared(Run(dataset="persona"), False).run.learning_rate == pytest.approx(1e-2)


def test_windows_of_wikitext_have_a_target_at_each_place(tmp_path):
    job = prepared(Run(dataset="persona"), True)
    assert wikitext(job) == []
    (tmp_path / "text_corpus").mkdir()
    text = " ".join(f"The river {number} runs to the sea ." for number in range(4000))
    (tmp_path / "text_corpus" / "wikitext2_test.txt").write_text(text)
    job = prepared(Run(dataset="persona", data_dir=str(tmp_path)), True)
    windows = wikitext(job)
    assert len(windows) == 32 and len({tuple(one.ids) for one in windows}) == 32
    assert all(len(one.ids) == 128 and one.ids[1:] == one.label[:-1] for one in windows)
    assert job.inputs.tokenizer.decode([windows[0].ids[0]]) == "The"
