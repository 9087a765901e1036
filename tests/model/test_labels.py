"""Names of classes: matched to those of a task, and read from config.json as the library writes them."""

import json

import pytest
import transformers

from model.config_file import read_labels
from model.labels import match_labels

SENTIMENTS, POLARITIES = ("negative", "positive"), ("positive", "negative", "neutral")
ENTAILMENTS, TOPICS = ("entailment", "not_entailment"), ("World", "Sports", "Business", "Sci/Tech")

MATCHED = [
    (("negative", "positive"), SENTIMENTS, (0, 1)),
    (("POSITIVE", "NEGATIVE"), SENTIMENTS, (1, 0)),
    ((" Positive ", "Negative"), SENTIMENTS, (1, 0)),
    (("POS", "NEG"), SENTIMENTS, (1, 0)),
    (("LABEL_0", "LABEL_1"), SENTIMENTS, (0, 1)),
    (("LABEL_1", "LABEL_0"), SENTIMENTS, (1, 0)),
    (("1", "0"), SENTIMENTS, (1, 0)),
    (("1", "2"), SENTIMENTS, (0, 1)),  # counted from 1
    (("class 2", "class 1"), SENTIMENTS, (1, 0)),
    (("not entailment", "Entailment"), ENTAILMENTS, (1, 0)),
    (("neutral", "positive", "negative"), POLARITIES, (1, 2, 0)),
    (("neg", "neu", "pos"), POLARITIES, (2, 0, 1)),
    (("sci_tech", "WORLD", "business", "sports"), TOPICS, (1, 3, 2, 0)),
    (("4", "1", "3", "2"), TOPICS, (1, 3, 2, 0)),
    (("1.0", "0.0"), SENTIMENTS, (1, 0)),
    (("1 POSITIVE", "0 NEGATIVE"), SENTIMENTS, (1, 0)),
    (("label_positive", "negative"), SENTIMENTS, (1, 0)),
    (("Neutral tone", "positive tone", "negative tone"), POLARITIES, (1, 2, 0)),
    (("ｐｏｓｉｔｉｖｅ", "ｎｅｇａｔｉｖｅ"), SENTIMENTS, (1, 0)),
]
ASSUMED = [
    (("spam", "not spam"), ("ham", "spam"), (1, 0), "label 'not spam' is taken to be 'ham', the only one that is left"),
    (("spam", "it is not spam"), ("ham", "spam"), (1, 0), "label 'it is not spam' is taken to be 'ham', the only one"),
    (("not spam", "not ham"), ("ham", "spam"), (0, 1), "the labels not spam, not ham aren't"),
    (("ham or spam", "ham, not spam"), ("ham", "spam"), (0, 1), "the labels ham or spam, ham, not spam aren't"),
    (("ham", "junk"), ("ham", "spam"), (0, 1), "label 'junk' is taken to be 'spam', the only one that is left"),
    (("good", "bad"), SENTIMENTS, (0, 1), "the labels good, bad aren't those of the task (negative, positive)"),
    (("-1", "0"), SENTIMENTS, (0, 1), "the labels -1, 0 aren't"),
    (("5", "7"), SENTIMENTS, (0, 1), "the labels 5, 7 aren't"),
    (("positive", "Positive"), SENTIMENTS, (0, 1), "the labels positive, Positive aren't"),
    (("World", "Sports", "x", "y"), TOPICS, (0, 1, 2, 3), "the labels World, Sports, x, y aren't"),
    (("n", "p"), SENTIMENTS, (0, 1), "the labels n, p aren't"),
]


@pytest.mark.parametrize(("names", "wanted", "order"), MATCHED)
def test_names_that_say_an_order(names, wanted, order):
    assert match_labels(names, wanted) == (order, "")


@pytest.mark.parametrize(("names", "wanted", "order", "said"), ASSUMED)
def test_names_that_say_less(names, wanted, order, said):
    found, assumed = match_labels(names, wanted)
    assert found == order and assumed.startswith(said)


STORED = [
    ({"id2label": {"0": "b", "1": "a"}, "label2id": {"b": 0, "a": 1}}, ("b", "a"), False),
    ({"id2label": {"1": "a", "0": "b"}}, ("b", "a"), False),
    ({"id2label": {"0": "b", "1": "a"}, "label2id": {"a": 0, "b": 1}}, ("b", "a"), True),  # the library goes by id2label
    ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"b": 0, "a": 1}}, ("b", "a"), False),
    ({"label2id": {"a": 2, "b": 0, "c": "1"}}, ("b", "c", "a"), False),
    ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"a": 0, "b": 7}}, ("LABEL_0", "LABEL_1"), False),
    ({"num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2"), False),
    ({}, None, False),
]


@pytest.mark.parametrize(("settings", "names", "contradicted"), STORED)
def test_names_in_config_json(settings, names, contradicted, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert read_labels(tmp_path) == (names, contradicted)


@pytest.mark.parametrize("labels", [("b", "a"), ("no", "yes", "perhaps")])
def test_names_that_the_library_wrote(labels, tmp_path):
    numbered = dict(enumerate(labels))
    config = transformers.BertConfig(id2label=numbered, label2id={name: number for number, name in numbered.items()})
    config.save_pretrained(tmp_path)
    assert read_labels(tmp_path) == (labels, False)
