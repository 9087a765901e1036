"""Exports of decoders of Llama's family: the same model here and to the library."""

import pytest
import torch

import experiments
from model import config_of, from_pretrained
from pipeline.reload import load_run
from tests.helpers.small import make_llama, write_dialogues

MEMBERS = {
    "llama": {},
    "qwen2": {"tied": True},
    "qwen3": {"tied": False, "head_dim": 16, "window": 6, "window_layers": (0, 2)},
    "smollm3": {"layers_without_rotation": (1,)},
}
LORA = ["--trainable_layers", "lora", "--lora_alpha", 2]


@pytest.fixture(params=MEMBERS)
def run(request, experiment, tmp_path):
    """Return a function that runs the command line with a member of the family, each in turn."""
    checkpoint = make_llama(tmp_path / "checkpoint", request.param, **MEMBERS[request.param])
    return lambda *flags, **replaced: experiment(*flags, **{"checkpoint": checkpoint} | replaced)


@pytest.fixture
def dialogues(alone):
    return {"data_dir": None, "dataset": write_dialogues(alone / "dialogues.json")}


def test_a_trained_model_answers_and_is_exported(run, dialogues, alone, capsys):
    found = run(*LORA, **dialogues, max_steps=10, learning_rate=1e-3)
    ask = ["--generate", "see 3", "--max_new_tokens", "8", "--device", "cpu"]
    answers = []
    assert experiments.main(["--export_model", "exported", "--run_dir", str(found.directory)]) == 0
    for source in (["--run_dir", str(found.directory)], ["--checkpoint", "exported"]):
        capsys.readouterr()
        assert experiments.main([*ask, *source]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] and answers[0].strip()
    again = run(**dialogues | {"checkpoint": "exported", "num_epochs": 0}, output_dir=alone / "again")
    for split in ("final validation", "final test"):
        assert again.logged("loss", split) == pytest.approx(found.logged("loss", split), rel=1e-5)


def test_an_exported_classifier_means_the_same_here_and_to_the_library(run, alone):
    import transformers

    found = run(*LORA, max_steps=10, learning_rate=1e-3)
    assert experiments.main(["--export_model", "exported", "--run_dir", str(found.directory)]) == 0
    ids = torch.randint(3, 300, (3, 12))
    with torch.no_grad():
        expected = load_run(found.directory).model(ids)
        ours = from_pretrained("exported", head="classifier").eval()
        torch.testing.assert_close(ours(ids), expected, rtol=1e-5, atol=1e-5)
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained("exported", dtype=torch.float32).eval()
        torch.testing.assert_close(theirs(ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert theirs.config.pad_token_id == config_of("exported").pad_id
    again = run(checkpoint="exported", num_epochs=0, output_dir=alone / "again")
    assert again.result["test_accuracy"] == found.result["test_accuracy"]
    assert again.logged("loss", "final test") == pytest.approx(found.logged("loss", "final test"), rel=1e-5)


def test_labels_of_the_checkpoints_own_classifier(run, alone):
    found = run(*LORA, max_steps=10, learning_rate=1e-3)
    assert experiments.main(["--export_model", "exported", "--run_dir", str(found.directory)]) == 0
    same, swapped = (
        run("--head_labels", labels, checkpoint="exported", num_epochs=0, output_dir=alone / labels)
        for labels in ("ham,spam", "1,0")
    )
    assert same.result["test_accuracy"] == found.result["test_accuracy"] == 1 - swapped.result["test_accuracy"]
