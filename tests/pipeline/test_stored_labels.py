"""A classifier with another number of labels than the task: its names say which are kept, or it is refused."""

import pytest
import torch
from safetensors.torch import load_file

from config import Run
from pipeline.build import build_model
from pipeline.job import prepare
from tests.helpers.classifiers import make_body, make_classifier
from utils.errors import UserError

KEPT = [
    ("sst2", ("negative", "neutral", "positive"), "0,2"),
    ("sst2", ("POSITIVE", "NEUTRAL", "NEGATIVE"), "2,0"),
    ("sst2", ("pos", "neg", "neu", "mixed"), "1,0"),
    ("spam", ("spam", "phishing", "ham"), "2,0"),
    ("rte", ("contradiction", "not entailment", "entailment"), "2,1"),
]
NOT_KEPT = [
    ("sst2", ("LABEL_0", "LABEL_1", "LABEL_2"), r"3 labels \(LABEL_0, LABEL_1, LABEL_2\), the task has 2 .*--head_labels"),
    ("sst2", ("entailment", "neutral", "contradiction"), "3 labels .entailment, neutral, contradiction.*--head_labels"),
    ("sst2", ("positive", "neutral", "mixed"), "--head_labels"),
    ("sst2", ("1", "2", "3", "4", "5"), "5 labels .1, 2, 3, 4, 5., the task has 2 .negative, positive.*--head_labels"),
    ("restaurant_sup", ("positive", "negative"), r"2 labels \(positive, negative\), the task has 3 \(.*\)$"),
]


@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
@pytest.mark.parametrize(("task", "names", "order"), KEPT)
def test_of_more_labels_those_of_the_task_are_kept(task, names, order, kind, small_data, encoder_data, alone):
    make_classifier(alone / "theirs", make_body(alone / "body", kind, small_data, encoder_data), kind, names)
    job = prepare(Run(checkpoint=str(alone / "theirs"), dataset=task))
    assert job.run.head_labels == order
    assert any(note.endswith(f"labels {', '.join(names)} those of the task are kept") for note in job.notes)
    name = "score.weight" if kind == "gpt2" else "classifier.out_proj.weight"
    stored = load_file(alone / "theirs" / "model.safetensors")[name]
    assert torch.equal(build_model(job.run, 2).head.classifier.weight, stored[[*map(int, order.split(","))]])


@pytest.mark.parametrize(("task", "names", "said"), NOT_KEPT)
def test_another_number_of_labels_is_refused_where_names_do_not_choose(task, names, said, small_data, encoder_data, alone):
    make_classifier(alone / "theirs", make_body(alone / "body", "bert", small_data, encoder_data), "bert", names)
    with pytest.raises(UserError, match=said):
        prepare(Run(checkpoint=str(alone / "theirs"), dataset=task))
