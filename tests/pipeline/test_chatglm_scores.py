"""The chat log's measures give what its tool logged, pair by pair, and need `jieba` for words alone."""

import json
import statistics
import sys

import pytest

from pipeline import chatglm_scores
from pipeline.chatglm_scores import (
    SCORES,
    bleu4,
    counted_words,
    longest_common,
    rouge,
    scores_of,
    scores_of_answer,
    words_of,
)
from tests.helpers.paths import SHARED
from utils.errors import UserError

GOLDEN = SHARED / "golden" / "chatglm" / "metrics_tool.json"
LOGGED = {"bleu4": "bleu-4", "rouge1": "rouge-1", "rouge2": "rouge-2", "rougel": "rouge-l"}


@pytest.fixture(scope="module")
def pairs() -> list[dict]:
    """Return pairs of texts with what the tool made of them, or skip."""
    if not GOLDEN.is_file():
        pytest.skip(f"needs {GOLDEN}")
    found = json.loads(GOLDEN.read_text(encoding="utf-8"))["pairs"]
    assert len(found) == 15
    return found


def written(words: list[str]) -> list[str]:
    """Return words without white space, as they are counted."""
    return " ".join(words).split()


def test_rouge_of_words_is_the_published_one(pairs):
    for pair in pairs:
        found = rouge(written(pair["jieba_pred"]), written(pair["jieba_label"]))
        for name, value in found.items():
            assert value == pytest.approx(pair["rouge_jieba"][LOGGED[name]]["f"], abs=1e-12)
            assert round(100 * value, 4) == pair["scores_as_logged"][LOGGED[name]]


def test_rouge_of_characters_is_the_published_one(pairs):
    compared = [pair for pair in pairs if pair["rouge_chars"]]
    assert len(compared) > 10
    for pair in compared:
        texts = ("".join(pair[key].split()) for key in ("pred", "label"))
        for name, value in rouge(*texts).items():
            assert value == pytest.approx(pair["rouge_chars"][LOGGED[name]]["f"], abs=1e-12)


def test_bleu_of_characters_is_the_published_one(pairs):
    for pair in pairs:
        value = bleu4(pair["pred"], pair["label"])
        assert value == pytest.approx(pair["bleu4_chars_method3"], abs=1e-12)
        assert round(100 * value, 4) == pair["scores_as_logged"]["bleu-4"]


def test_texts_are_scored_as_logged(pairs):
    pytest.importorskip("jieba", reason="needs jieba: pip install jieba")
    for pair in pairs:
        assert words_of(pair["pred"]) == written(pair["jieba_pred"])
        found = scores_of_answer(pair["pred"], pair["label"])
        assert {LOGGED[name]: value for name, value in found.items()} == pair["scores_as_logged"]
    samples = [{"answer": pair["pred"], "reference": pair["label"]} for pair in pairs]
    for name, value in scores_of(samples).items():
        logged = statistics.mean(pair["scores_as_logged"][LOGGED[name]] for pair in pairs)
        assert value == pytest.approx(logged / 100, abs=1e-12)


# Words with spaces between, and the F-measures times 100 that rouge_chinese 1.0.3 gives: it counts blank sentences.
IN_LINES = [
    ("你好 。 \n 再见 。", "你好 。 \n 谢谢 。", (75.0, 50.0, 80.0)),
    ("甲 \n \n 乙", "甲 \n \n 丙", (66.6667, 50.0, 66.6667)),
    ("甲 \n 乙", "甲 \n 丙", (50.0, 0.0, 50.0)),
    ("\n \n 甲 ？ ” \n 乙 \n \n", "甲 ？ ” \n 丙 …… \n 丁", (66.6667, 40.0, 50.0)),
]


@pytest.mark.parametrize(("answer", "reference", "published"), IN_LINES)
def test_blank_sentences_count_as_published(answer, reference, published):
    found = rouge(counted_words(answer), counted_words(reference))
    assert [100 * value for value in found.values()] == pytest.approx(published, abs=1e-4)


def test_without_jieba_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(chatglm_scores, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(UserError, match="needs jieba: pip install jieba"):
        scores_of([{"answer": "你好", "reference": "你好"}])


def test_by_hand():
    assert (*sorted(SCORES),) == SCORES
    assert longest_common("abcde", "xaycze") == 3
    assert longest_common("", "a") == longest_common("a", "") == 0
    assert rouge([], ["a"]) == rouge(["a"], []) == rouge([], []) == {"rouge1": 0.0, "rouge2": 0.0, "rougel": 0.0}
    assert rouge("aab", "ab") == pytest.approx({"rouge1": 1.0, "rouge2": 2 / 3, "rougel": 0.8}, abs=1e-7)
    assert bleu4("", "a") == bleu4("a", "") == bleu4("b", "a") == 0.0
    # precisions 1, 1/2, then half of 1 in 1 and a quarter of 1 in 1; and the answer is one character short
    assert bleu4("abd", "abcd") == pytest.approx((1 * (1 / 2) * (1 / 2) * (1 / 4)) ** 0.25 * 2.718281828 ** (1 - 4 / 3))
