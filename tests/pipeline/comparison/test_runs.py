"""One run: what it measures example by example is what `evaluate` measures of all."""

from dataclasses import replace
from statistics import mean

import pytest
import torch

from config import Run
from model import from_pretrained
from pipeline.comparison.jobs import comparisons_of, prepare_one, scored_job
from pipeline.comparison.methods import ENTRIES, REFERENCE, UNTRAINED
from pipeline.comparison.runs import config_of_run, hashes_of, measure, scores
from pipeline.execute import set_up
from train import evaluate
from training.early_stopping import EarlyStopping


def prepared(entry=REFERENCE, seed: int = 1, **flags):
    (comparison,) = comparisons_of(Run(**({"device": "cpu", "amp": "off", "max_steps": 2} | flags)))
    return prepare_one(comparison, entry, 1e-3, seed, with_test=True)


def test_labels_add_up_to_the_accuracy_and_keep_their_order():
    job = prepared(dataset="sentiment-pocket")
    setup = set_up(job)
    found = scores(setup.model, setup.batches, job)["test"]
    assert mean(found) == pytest.approx(evaluate(setup.model, setup.batches["test"])["accuracy"])
    examples = setup.batches["test"].examples[:20]  # in the file's order, not sorted by length
    with torch.no_grad():
        plain = [setup.model.eval()(torch.tensor([one.ids])).argmax().item() == one.label for one in examples]
    assert found[:20] == plain and len({*plain}) == 2


def test_losses_of_dialogues_add_up_to_the_loss():
    job = prepared(dataset="persona")
    setup = set_up(job)
    found = scores(setup.model, setup.batches, job)
    assert found.keys() == {"test", "general"}
    for name, losses in found.items():
        targets = [sum(label != -100 for label in one.label) for one in setup.batches[name].examples]
        total = sum(loss * n for loss, n in zip(losses, targets, strict=True)) / sum(targets)
        assert total == pytest.approx(evaluate(setup.model, setup.batches[name])["loss"], abs=1e-4)


def test_what_is_scored_has_the_lowest_validation_loss(monkeypatch):
    job = prepared(dataset="persona", max_steps=4, eval_steps=1)
    evaluations = iter([3.0, 1.0, 2.0, 4.0])
    states, real = [], EarlyStopping.update

    def update(self, step, loss):
        states.append({name: one.detach().clone() for name, one in self.trained.items()})
        real(self, step, next(evaluations))

    monkeypatch.setattr(EarlyStopping, "update", update)
    seen = {}
    monkeypatch.setattr(
        "pipeline.comparison.runs.scores",
        lambda model, batches, job: seen.update(model.named_parameters()) or {},
    )
    record = measure(job)
    assert record["best_step"] == 2 and record["steps"] == 4
    assert all(torch.equal(seen[name], one) for name, one in states[1].items())


def test_untrained_is_the_model_as_it_is():
    record = measure(prepared(UNTRAINED, seed=0, dataset="persona"))
    assert record["steps"] == 0 and record["validation_loss"] is None
    model = from_pretrained("gpt2-pocket", head="lm").eval()
    job = prepared(dataset="persona")
    example = set_up(job).batches["test"].examples[0]
    with torch.no_grad():
        logits = model(torch.tensor([example.ids]))
    loss = torch.nn.functional.cross_entropy(logits[0], torch.tensor(example.label))
    assert record["test"][0] == pytest.approx(loss.item(), abs=1e-4)


def test_preferences_are_learned_from_pairs_and_tested_like_all_others():
    (dpo,) = (entry for entry in ENTRIES if entry.run.objective)
    (comparison,) = comparisons_of(Run(device="cpu", amp="off", dataset="persona", max_steps=2))
    untrained = measure(prepared(UNTRAINED, seed=0, dataset="persona"))
    scored = {}
    for steps in (0, 2):
        entry = replace(dpo, run=replace(dpo.run, num_epochs=steps))
        job = prepare_one(comparison, entry, 1e-3, 1, with_test=True)
        tests = scored_job(comparison, dpo, job)
        scored[steps] = measure(job, tests)
        assert scored[steps]["trained_on"] == "preferences" and len(scored[steps]["general"]) == len(untrained["general"])
    assert scored[0]["test"] == untrained["test"] != scored[2]["test"]
    assert scored[2]["steps"] == 2 and 0 <= scored[2]["validation_accuracy"] <= 1
    assert hashes_of(job, tests)["test_data_sha256"] == hashes_of(tests, None)["data_sha256"]
    assert hashes_of(job, tests)["data_sha256"] != hashes_of(tests, None)["data_sha256"]


def test_the_same_run_gives_the_same_numbers():
    one, two = (measure(prepared(dataset="persona")) for _ in range(2))
    assert one["test"] == two["test"] and one["validation"] == two["validation"]
    assert measure(prepared(dataset="persona", seed=2))["test"] != one["test"]


def test_where_the_inputs_lie_is_no_part_of_a_run():
    config = config_of_run(prepared(dataset="persona").run)
    assert not {"dataset", "model", "checkpoint", "data_dir", "output_dir"} & config.keys()
    assert config["learning_rate"] == 1e-2 and config["seed"] == 1
    assert config != config_of_run(prepared(ENTRIES[0], dataset="persona").run)


def test_other_windows_of_wikitext_make_a_result_stale_but_no_search(tmp_path):
    def hashes(with_test: bool) -> dict:
        (comparison,) = comparisons_of(Run(device="cpu", dataset="persona", data_dir=str(tmp_path)))
        return hashes_of(prepare_one(comparison, REFERENCE, 1e-3, 1, with_test), None)

    searched, tested = hashes(False), hashes(True)
    (tmp_path / "text_corpus").mkdir()
    for text in ("The river runs to the sea. ", "The sea runs to the river. "):
        (tmp_path / "text_corpus" / "wikitext2_test.txt").write_text(text * 4000)
        assert hashes(False) == searched and hashes(True) != tested
        tested = hashes(True)
