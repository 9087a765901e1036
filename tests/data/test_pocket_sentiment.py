"""The shipped sentiment sentences: how many, how balanced, how distinct, and how far counting words gets."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers.paths import ROOT

FILE = ROOT / "data" / "pocket" / "sentiment" / "sentences.tsv"
SPLITS = {"train": 1576, "validation": 168, "test": 358}
LABELS = ("negative", "positive")


class Sentence(NamedTuple):
    split: str
    label: str
    text: str


@pytest.fixture(scope="module")
def sentences() -> list[Sentence]:
    return [Sentence(*line.split("\t")) for line in FILE.read_text(encoding="utf-8").splitlines()]


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[\w']+", text.lower()))


def likeness(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)


def test_the_file_is_plain_tab_separated_text():
    content = FILE.read_bytes().decode("utf-8")
    assert content.endswith("\n") and "\r" not in content
    assert '"' not in content  # so readers that know csv's quotes and readers that don't see the same
    for line in content.removesuffix("\n").split("\n"):
        split, label, text = line.split("\t")
        assert split in SPLITS and label in LABELS, line
        assert text == " ".join(text.split()), line  # no space at the ends, none doubled
        assert 3 <= len(text.split()) <= 35, line


@pytest.mark.parametrize("split", SPLITS)
def test_each_split_has_its_size_and_is_balanced(sentences: list[Sentence], split: str):
    labels = [one.label for one in sentences if one.split == split]
    assert len(labels) == SPLITS[split]
    assert 2 * labels.count("positive") == len(labels)


def test_no_sentence_comes_twice(sentences: list[Sentence]):
    """Nor one that differs only in case, spaces or punctuation; so no two splits share one either."""
    texts = [re.sub(r"[\W_]", "", one.text.lower()) for one in sentences]
    assert len(set(texts)) == len(texts) == sum(SPLITS.values())


def test_no_sentence_of_one_split_is_nearly_one_of_another(sentences: list[Sentence]):
    assert likeness(words("It isn't perfect."), words("It ISN'T perfect!")) == 1.0
    train = [words(one.text) for one in sentences if one.split == "train"]
    others = [one for one in sentences if one.split != "train"]
    near = [one.text for one in others if any(likeness(words(one.text), seen) > 0.7 for seen in train)]
    assert not near


def test_the_sentences_hold_none_of_the_real_ones(sentences: list[Sentence], shared: Path):
    real = set()
    for name in ("train", "dev", "test"):
        for line in (shared / "data" / "glue_sst2" / f"{name}.tsv").read_text(encoding="utf-8").splitlines():
            real |= {" ".join(re.findall(r"\w+", field.lower())) for field in line.split("\t")}
    assert len(real) > 10_000
    assert not real & {" ".join(re.findall(r"\w+", one.text.lower())) for one in sentences}


@pytest.mark.parametrize("longest", [1, 2], ids=["words", "words-and-pairs"])
def test_counting_words_gets_somewhere_but_not_far(sentences: list[Sentence], longest: int):
    """If it solved the set, models that read the order of words couldn't show it; nor may it be beyond learning."""
    text = pytest.importorskip("sklearn.feature_extraction.text", reason="the baseline is scikit-learn's")
    from sklearn.linear_model import LogisticRegression

    counts, classifier = text.CountVectorizer(ngram_range=(1, longest)), LogisticRegression(max_iter=2000)
    train, test = ([one for one in sentences if one.split == split] for split in ("train", "test"))
    classifier.fit(counts.fit_transform([one.text for one in train]), [one.label for one in train])
    accuracy = classifier.score(counts.transform([one.text for one in test]), [one.label for one in test])
    assert 0.65 < accuracy <= 0.92
