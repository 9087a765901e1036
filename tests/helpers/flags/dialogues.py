"""Check the flags of dialogues and of long runs."""

import pytest
import torch

from tests.helpers.flags.register import check
from tests.helpers.paths import SHARED
from tests.helpers.small import write_dialogues
from tools.chatglm_tiny import make as make_chatglm
from utils.errors import UserError


def widest(found):
    return max(found.widths(True) + found.widths(False))


@check("template", "source_prefix", "max_source_length", "max_target_length", "packing")
def how_dialogues_become_rows(experiment, fixtures):
    def run(*flags):
        return experiment("--dataset", path, "--num_epochs", 1, *flags, max_steps=None)

    path = write_dialogues(fixtures["alone"] / "some.json")
    plain = run()
    assert widest(run("--template", "alpaca")) > widest(plain) + 40
    prefixed = run("--source_prefix", "qqqqq")
    assert widest(prefixed) == widest(plain) + 6  # and the newline
    shorter = run("--max_source_length", 12)
    assert widest(shorter) < widest(plain) and "32 dialogues" not in plain.out and "lost earlier turns" in shorter.out
    cut = run("--max_target_length", 1)
    assert cut.logged("targets", "final test")[0] < plain.logged("targets", "final test")[0]
    assert "lost the end of an answer" in cut.out
    packed = run("--packing")
    assert sum(packed.sizes(True)) < 16 and sum(plain.sizes(True)) == 32


@check("train_on_sop")
def train_on_sop(experiment, fixtures):
    path = write_dialogues(fixtures["alone"] / "some.json")
    with pytest.raises(UserError, match="--train_on_sop is about ChatGLM"):
        experiment("--dataset", path, "--train_on_sop", "no")
    if not SHARED.is_dir():
        pytest.skip(f"needs a ChatGLM's tokenizer, such as the one in {SHARED}")
    make_chatglm(SHARED / "golden/chatglm/small_ice", fixtures["alone"] / "chatglm", dim=16, n_layers=2)
    flags = ("--dataset", path, "--num_epochs", 1, "--trainable_layers", "all", "--train_on_sop")
    with_sop, without = (
        experiment(*flags, how, checkpoint=fixtures["alone"] / "chatglm", max_steps=None) for how in ("yes", "no")
    )
    split = "final test"
    assert with_sop.logged("targets", split)[0] - without.logged("targets", split)[0] == 4  # one of each dialogue


@check("auxiliary_dataset", "auxiliary_samples", "general_dataset", "test_share")
def which_dialogues(experiment, fixtures):
    def run(*flags):
        return experiment("--dataset", path, "--num_epochs", 1, *flags, max_steps=None)

    path = write_dialogues(fixtures["alone"] / "some.json")
    other = write_dialogues(fixtures["alone"] / "other.json", 20, "cash")
    assert sum(run().sizes(True)) == 32 and run().result["general_loss"] is None
    assert sum(run("--auxiliary_dataset", other).sizes(True)) == 32 + 16
    assert sum(run("--auxiliary_dataset", other, "--auxiliary_samples", 5).sizes(True)) == 32 + 5
    assert run("--general_dataset", other).result["general_loss"] > 0
    assert run("--general_dataset", "none").result["general_loss"] is None
    assert "24 / 8 / 8 texts" in run("--test_share", 0.2).out
    assert run("--test_share", 0).result["test_loss"] is None


@check("eval_generate")
def eval_generate(experiment, fixtures):
    pytest.importorskip("sacrebleu", reason="BLEU needs sacrebleu")
    pytest.importorskip("rouge_score", reason="ROUGE needs rouge-score")
    path = write_dialogues(fixtures["alone"] / "some.json")
    plain = experiment("--dataset", path)
    assert "test_bleu4" not in plain.result and not (plain.directory / "samples.jsonl").exists()
    found = experiment("--dataset", path, "--eval_generate", 3)
    assert len((found.directory / "samples.jsonl").read_text().splitlines()) == 3 and "test_bleu4" in found.result


@check("early_stopping_patience")
def early_stopping_patience(experiment, fixtures):
    flags = ("--eval_steps", 1, "--lr_scheduler_type", "constant")
    plain = experiment(*flags, max_steps=12, learning_rate=0)
    assert plain.result["steps"] == 12 and plain.result["stages"][0]["best_step"] is None
    stopped = experiment(*flags, "--early_stopping_patience", 3, max_steps=12, learning_rate=0)
    assert stopped.result["steps"] == 1 + 3 and stopped.result["stages"][0]["best_step"] == 1


@check("save_steps")
def save_steps(experiment, fixtures):
    saved = fixtures["save_state"]
    plain = experiment(max_steps=7)
    assert not saved
    found = experiment("--save_steps", 3, max_steps=7)
    assert saved == [3, 6] and all(torch.equal(plain.tensors[name], found.tensors[name]) for name in plain.tensors)


@check("objective", "dpo_beta")
def objective(experiment, fixtures):
    def run(*flags):
        return experiment("--objective", "dpo", "--num_epochs", 1, *flags, data_dir=None, max_steps=None)

    found, held = run(), run("--dpo_beta", 2.0)
    assert "DPO with beta 0.1" in found.out and "DPO with beta 2" in held.out
    assert found.result["dataset"] == "preferences" and found.result["test_gap"] > found.result["test_gap_before"]
    assert found.result["test_gap_before"] == held.result["test_gap_before"]
    for one, beta in ((found, 0.1), (held, 2.0)):
        moved = one.result["test_gap"] - one.result["test_gap_before"]
        assert one.result["test_margin"] == pytest.approx(beta * moved)
    with pytest.raises(UserError, match="--dpo_beta is not used by --objective supervised; it belongs to dpo"):
        experiment("--dataset", "persona", "--dpo_beta", 0.2, data_dir=None)
