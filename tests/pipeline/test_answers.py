"""Answers to held-out dialogues, and their scores."""

import json
import math
import re

import pytest
import torch

import experiments
from config import DEFAULTS, Run
from data.dialogue_encoder import DialogueEncoder
from data.dialogues import Dialogue, Turn
from model.tokenizers.bpe import GPT2Tokenizer
from pipeline import answers
from pipeline.reload import load_run
from tests.helpers.small import write_dialogues
from utils.errors import UserError


@pytest.fixture
def scorers():
    pytest.importorskip("sacrebleu", reason="BLEU needs sacrebleu")
    pytest.importorskip("rouge_score", reason="ROUGE needs rouge-score")


@pytest.fixture
def without_scorers(monkeypatch):
    monkeypatch.setattr(answers, "find_spec", lambda name: None)


@pytest.fixture
def answered(experiment, alone, scorers):
    """A run on dialogues in two files, with three answers of each."""
    path, other = write_dialogues(alone / "some.json"), write_dialogues(alone / "other.json", 20, "cash")
    flags = ("--dataset", path, "--general_dataset", other, "--eval_generate", 3, "--eval_batch_size", 2)
    return experiment(*flags, "--num_epochs", 6, max_steps=None, learning_rate=0.02)


def read(directory):
    return [json.loads(line) for line in (directory / answers.FILE).read_text(encoding="utf-8").splitlines()]


# --- scores, by hand


def sample(answer, reference):
    return {"answer": answer, "reference": reference}


def test_the_same_words_score_one_and_others_nought(scorers):
    assert answers.scores_of([sample("a b c d e", "a b c d e")]) == pytest.approx(dict.fromkeys(answers.SCORES, 1.0))
    assert answers.scores_of([sample("", "a b c d e")]) == dict.fromkeys(answers.SCORES, 0.0)


def test_scores_of_english_by_hand(scorers):
    found = answers.scores_of([sample("a b c d e", "a b c d f")])
    assert found["bleu4"] == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert (found["rouge1"], found["rouge2"], found["rougel"]) == pytest.approx((4 / 5, 3 / 4, 4 / 5))
    found = answers.scores_of([sample("The cat sat on the mat.", "the cat is on the mat")])
    assert (found["rouge1"], found["rouge2"], found["rougel"]) == pytest.approx((5 / 6, 3 / 5, 5 / 6))
    # In another order the longest common subsequence is shorter; an answer too short pays BLEU's brevity penalty.
    assert answers.scores_of([sample("on the mat the cat", "the cat on the mat")])["rougel"] == pytest.approx(3 / 5)
    assert answers.bleu4(["a b c d e"], ["a b c d e f"]) == pytest.approx(math.exp(1 - 6 / 5))


def test_bleu_counts_over_all_answers_and_rouge_is_their_mean(scorers):
    some = [sample("a b c d e", "a b c d f"), sample("g h i j", "g h i j")]
    found = answers.scores_of(some)
    assert found["bleu4"] == pytest.approx((8 / 9 * 6 / 7 * 4 / 5 * 2 / 3) ** 0.25)
    assert found["rouge1"] == pytest.approx((4 / 5 + 1) / 2)


def test_scores_of_chinese_count_characters(scorers):
    found = answers.scores_of([sample("今天天气好", "今天天气坏")])
    assert found["bleu4"] == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert (found["rouge1"], found["rouge2"], found["rougel"]) == pytest.approx((4 / 5, 3 / 4, 4 / 5))


KANA = {
    "hiragana": ("ひらがなで", "ひらがなと"),
    "katakana": ("カタカナー", "カタカナン"),
    "katakana of half width": ("ｶﾀｶﾅｱ", "ｶﾀｶﾅｲ"),
    "kana and kanji": ("私は猫です", "私は猫だす"),
    "an iteration mark": ("人々の国で", "人々の国へ"),
    "rare ideographs": ("\U00020000\U00020001\U00020002\U00020003\U00020004", "\U00020000\U00020001\U00020002\U00020003国"),
}


@pytest.mark.parametrize("answer, reference", KANA.values(), ids=KANA)
def test_scores_of_japanese_count_characters(scorers, answer, reference):
    same = next(i for i, (a, b) in enumerate(zip(answer, reference, strict=True)) if a != b)
    if same != 4:  # one of the middle: fewer sequences are the same
        expected = {"rouge1": 4 / 5}
    else:
        expected = {"bleu4": (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25, "rouge1": 4 / 5, "rouge2": 3 / 4, "rougel": 4 / 5}
    found = answers.scores_of([sample(answer, reference)])
    assert found["bleu4"] > 0 and {name: found[name] for name in expected} == pytest.approx(expected)
    assert answers.scores_of([sample(reference, reference)]) == pytest.approx(dict.fromkeys(answers.SCORES, 1.0))


@pytest.mark.parametrize(
    "answer, reference",
    [
        ("今天天气很好，是吗？", "今天的天气好，对吗？"),
        ("价格是 5,000 元（GPT-2）。", "价格为5,000元 (GPT-2)。"),
        ("没有 words 在这里 3.5%", "没有words在这儿 3.5%"),
    ],
)
def test_bleu_of_chinese_is_that_of_the_library(scorers, answer, reference):
    from sacrebleu import corpus_bleu

    theirs = corpus_bleu([answer], [[reference]], tokenize="zh").score / 100
    assert 0 < answers.bleu4([answer], [reference]) == pytest.approx(theirs)


def test_words_are_those_of_the_library_in_english_and_characters_in_chinese(scorers):
    from rouge_score.tokenizers import DefaultTokenizer

    text = "It's 3 o'clock: the Cat_sat, twice-over!"
    assert answers.Words().tokenize(text) == DefaultTokenizer(use_stemmer=False).tokenize(text)
    assert answers.Words().tokenize("我用 GPT-2。Été") == ["我", "用", "gpt", "2", "été"]


# --- answers


def test_a_run_writes_its_answers_and_scores(answered):
    found = read(answered.directory)
    assert [one["split"] for one in found] == ["test"] * 3 + ["general"] * 2  # all there are
    for split in answers.SPLITS:
        scores = answers.scores_of([one for one in found if one["split"] == split])
        assert scores == pytest.approx({name: answered.result[f"{split}_{name}"] for name in scores})
    assert answered.result["test_rouge1"] > 0.3  # it learned to say "prize", at least
    assert all(re.fullmatch(r"prize \d", one["reference"]) for one in found[:3])
    assert all(re.fullmatch(r"ok\nlater.*see \d+\nhome\n", one["prompt"], re.DOTALL) for one in found)
    assert f"rouge1   test {answered.result['test_rouge1']:.2%}, general" in answered.out


def test_answers_in_a_batch_are_those_one_by_one(answered):
    saved, found = load_run(answered.directory), [one for one in read(answered.directory) if one["split"] == "test"]
    for one in found:
        ids = torch.tensor([saved.inputs.tokenizer.encode(one["prompt"])])
        if saved.inputs.tokenizer.end_of_text in ids or "<|endoftext|>" in one["prompt"]:
            parts = [saved.inputs.tokenizer.encode(part) for part in one["prompt"].split("<|endoftext|>")]
            ids = torch.tensor([[*parts[0], saved.inputs.tokenizer.end_of_text, *parts[1]]])
        answer = []
        for _ in range(100):
            token = int(saved.model(ids)[0, -1].argmax())
            if token == saved.inputs.tokenizer.end_of_text:
                break
            answer.append(token)
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        assert one["answer"] == saved.inputs.tokenizer.decode(answer)


def test_a_finished_run_is_scored_later(answered, capsys):
    before = read(answered.directory)
    (answered.directory / answers.FILE).unlink()
    assert experiments.main(["--score", str(answered.directory), "--eval_generate", "2"]) == 0
    assert "bleu4    test " in capsys.readouterr().out
    assert read(answered.directory) == before[:2] + before[3:5]
    result = json.loads((answered.directory / "result.json").read_text())
    assert result["config"]["eval_generate"] == 2 and result["test_loss"] == answered.result["test_loss"]
    assert experiments.main(["--score", str(answered.directory)]) == 0  # 100, or what there is
    assert len(read(answered.directory)) == 4 + 2


def test_a_complete_run_answers_when_it_is_asked_to(experiment, alone, scorers):
    flags = ("--dataset", write_dialogues(alone / "some.json"), "--general_dataset", "none", "--num_epochs", 1)
    experiment(*flags)
    found = experiment(*flags, "--resume", "--eval_generate", 2)
    assert "the run is complete" in found.out and "bleu4" in found.out and len(read(found.directory)) == 2
    assert "test_bleu4" in found.result and found.result["config"]["eval_generate"] == 2


def test_long_dialogues_leave_room_for_an_answer(small_checkpoint):
    tokenizer = GPT2Tokenizer.from_directory(small_checkpoint)
    encoder = DialogueEncoder(tokenizer, Run(**DEFAULTS), 60)
    turns = tuple(Turn("q" * 30, "", "a" * 9) for _ in range(3))
    alone, whole = encoder.prompt(Dialogue(turns[-1:])), encoder.prompt_with_room(Dialogue(turns), 20)
    assert whole == alone and len(alone) + 20 <= 60  # the older turns go
    long = encoder.prompt_with_room(Dialogue((Turn("q" * 90, "", "a"),)), 20)
    assert len(long) + 20 == 60 and long[-1] == alone[-1]  # the question's tail
    short = Dialogue((Turn("who?", "", "me"),))
    assert encoder.prompt_with_room(short, 20) == encoder.prompt(short)


# --- what is refused


def test_without_the_libraries_the_error_says_how_to_install_them(experiment, alone, without_scorers):
    path = write_dialogues(alone / "some.json")
    with pytest.raises(UserError, match="sacrebleu and rouge_score: pip install sacrebleu rouge-score"):
        experiment("--dataset", path, "--eval_generate", 3)
    assert not (alone / "out" / "trained.safetensors").exists()  # before any time is spent
    assert "test_bleu4" not in experiment("--dataset", path).result


@pytest.mark.parametrize(
    "argv, what",
    [
        (["--score", "nowhere"], "nowhere is no directory"),
        (["--score", "x", "--eval_generate", "0"], "--eval_generate is 0; with --score it must be at least 1"),
        (["--score", "x", "--learning_rate", "1"], "--learning_rate doesn't go with --score; what does: --eval_generate"),
        (["--score", "x", "--table", "chat"], "--table doesn't go with --score"),
        (["--eval_generate", "-1"], "--eval_generate is -1; it must be at least 0"),
    ],
)
def test_what_is_refused(argv, what, alone, monkeypatch):
    monkeypatch.setattr(answers, "find_spec", lambda name: True)
    with pytest.raises(UserError, match=re.escape(what)):
        experiments.main(argv)


def test_a_classifier_has_no_answers(experiment, monkeypatch):
    monkeypatch.setattr(answers, "find_spec", lambda name: True)
    found = experiment()
    with pytest.raises(UserError, match="which has no dialogues to answer"):
        experiments.main(["--score", str(found.directory)])
    with pytest.raises(UserError, match="--eval_generate is about dialogues, and spam has none"):
        experiment("--eval_generate", 3)
