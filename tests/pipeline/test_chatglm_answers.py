"""How a ChatGLM answers: as the published chat in --generate and --chat, as the log's tool where answers are scored."""

import json
import re
from dataclasses import asdict, replace

import pytest
import torch

import experiments
from config import Run, resolve
from data.chat import RECIPE
from data.dialogues import Dialogue, Turn
from model import from_pretrained
from model.generation import generate, without_invalid
from model.registry import ARCHITECTURES
from pipeline import answers, chat, chatglm_scores
from tests.helpers.small import write_dialogues
from tools.chatglm_tiny import make
from utils.errors import UserError


@pytest.fixture(scope="module")
def tiny(shared, tmp_path_factory):
    """Return a drawn ChatGLM of 2 blocks with its tokenizer. Tests only read it."""
    folder = tmp_path_factory.mktemp("chatglm") / "tiny"
    make(shared / "golden/chatglm/small_ice", folder, dim=16, n_layers=2)
    return folder


@pytest.fixture
def score(tiny, experiment, tmp_path):
    """Return a function that trains for a step and answers two dialogues of each set."""
    file = write_dialogues(tmp_path / "dialogues.jsonl", 30)
    flags = ("--dataset", file, "--general_dataset", file, "--eval_generate", 2, "--max_target_length", 8)
    base = {"checkpoint": tiny, "data_dir": None, "max_steps": 1, "trainable_layers": "prefix"}
    return lambda *more, **replaced: experiment(*flags, *more, **base | replaced)


def samples(found) -> list[dict]:
    lines = (found.directory / answers.FILE).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


# --- scores


def test_a_run_is_scored_by_the_measures_of_the_tool(score):
    pytest.importorskip("jieba", reason="needs jieba: pip install jieba")
    found = score()
    of_test = [one for one in samples(found) if one["split"] == "test"]
    expected = chatglm_scores.scores_of(of_test)
    assert {f"test_{name}": value for name, value in expected.items()}.items() <= found.result.items()
    assert len(of_test) == 2 and "general_bleu4" in found.result
    assert f"bleu4    test {expected['bleu4']:.2%}" in found.out


def test_answers_are_drawn_and_repeat_with_the_seed(score, capsys):
    pytest.importorskip("jieba", reason="needs jieba: pip install jieba")
    found, again, other = (score("--seed", seed, output_dir=name) for seed, name in ((1, "one"), (1, "two"), (2, "three")))
    assert samples(found) == samples(again)
    assert [one["prompt"] for one in samples(found)] == [one["prompt"] for one in samples(other)]
    assert [one["answer"] for one in samples(found)] != [one["answer"] for one in samples(other)]
    (found.directory / answers.FILE).unlink()
    assert experiments.main(["--score", str(found.directory), "--eval_generate", "2"]) == 0
    assert samples(found) == samples(again) and "rougel   test " in capsys.readouterr().out


def test_without_jieba_the_error_says_so_before_anything_trains(score, monkeypatch):
    monkeypatch.setattr(chatglm_scores, "find_spec", lambda name: None)
    monkeypatch.setattr(answers, "find_spec", lambda name: True)  # what other models need doesn't help
    with pytest.raises(UserError, match="--eval_generate: ROUGE on Chinese words needs jieba: pip install jieba"):
        score()


def test_another_model_needs_no_jieba(experiment, alone, monkeypatch):
    pytest.importorskip("sacrebleu", reason="BLEU needs sacrebleu")
    pytest.importorskip("rouge_score", reason="ROUGE needs rouge-score")
    monkeypatch.setattr(chatglm_scores, "find_spec", lambda name: None)
    path = write_dialogues(alone / "some.json")
    assert "test_bleu4" in experiment("--dataset", path, "--eval_generate", 2).result


# --- what the scored answers are


@pytest.fixture
def asked(tiny, monkeypatch):
    """Return a function that answers questions of so many characters, and what `generate` was called with."""
    speaker = chat.make_speaker(Run(checkpoint=str(tiny)), None, {})
    calls = []

    def spy(model, ids, mask, **how):
        calls.append((ids.shape, how))
        return [[5]] * len(ids)

    monkeypatch.setattr(answers, "generate", spy)

    def ask(context: int, n_characters: int, **settings):
        calls.clear()
        model = speaker.model
        model.config = replace(model.config, context_length=context)
        recipe = RECIPE | ARCHITECTURES["chatglm"].recipe
        run = resolve(Run(**settings), recipe)
        answers.answers(model, run, [Dialogue((Turn("问" * n_characters, "", "x"),))] * 2, speaker.tokenizer)
        return calls

    return ask


def test_a_prompt_and_its_answer_have_768_tokens_together(asked):
    ((shape, how),) = asked(2048, 3000)
    assert shape == (2, 512)  # --max_source_length, with the marks
    assert how["max_length"] == 768 and how["max_new_tokens"] == 512  # --max_target_length
    assert (how["top_p"], how["temperature"], how["seed"]) == (0.7, 0.95, 123)
    ((shape, how),) = asked(256, 3000, max_target_length=0, seed=9)  # what a small model has
    assert shape[1] + 128 == 256 == how["max_length"] and how["max_new_tokens"] == 768 and how["seed"] == 9
    ((shape, how),) = asked(2048, 3000, max_target_length=40, max_source_length=0)
    assert shape[1] + 40 == 768 and how["max_new_tokens"] == 40


def test_generation_ends_at_the_length(tiny):
    model, prompt = from_pretrained(tiny).eval(), torch.tensor([[9, 8, 7, 2001, 2004]])
    prompt[0, -2:] = torch.tensor([model.config.gmask_id, model.config.start_id])
    assert [len(one) for one in generate(model, prompt, max_new_tokens=50, max_length=20)] == [15]
    assert [len(one) for one in generate(model, prompt, max_new_tokens=7, max_length=20)] == [7]
    whole = generate(model, prompt, max_new_tokens=15)
    assert generate(model, prompt, max_new_tokens=50, max_length=20) == whole
    with pytest.raises(UserError, match="a prompt of 5 tokens leaves no room for an answer in 5 tokens"):
        generate(model, prompt, max_length=5)


# --- the published chat


def test_the_sampling_is_that_of_the_published_chat(shared):
    published = json.loads((shared / "golden/chatglm/chat.json").read_text(encoding="utf-8"))["chat_generate_kwargs"]
    assert published.pop("num_beams") == 1 and published.pop("do_sample") is True
    own = asdict(ARCHITECTURES["chatglm"].sampling)
    assert own.pop("max_new_tokens") == published.pop("max_length")  # the context ends it no later
    assert own == {"top_k": 0, "repetition_penalty": 1.0, **published}


def test_generate_samples_by_itself_and_says_so(tiny, capsys):
    def ask(*flags):
        words = ["--generate", "你好", "--checkpoint", str(tiny), *flags]
        assert experiments.main(words) == 0
        return capsys.readouterr()

    short = ("--max_new_tokens", "12")
    found = ask(*short)
    assert re.match(r"model    \S+ \(.*\); max_new_tokens 12, temperature 0.95, top_p 0.7\n", found.err)
    assert ask(*short).out == found.out != ask(*short, "--seed", "5").out
    assert ask(*short, "--temperature", "0.95", "--top_p", "0.7").out == found.out
    greedy = ask(*short, "--temperature", "0")
    assert greedy.out == ask(*short, "--temperature", "0", "--seed", "5").out != found.out
    with pytest.raises(UserError, match="--top_p is 2"):
        experiments.main(["--generate", "Hi", "--checkpoint", str(tiny), "--top_p", "2"])


def test_an_answer_goes_on_to_the_end_of_the_context(tiny, monkeypatch):
    speaker = chat.make_speaker(Run(checkpoint=str(tiny)), None, {})
    speaker.encoder.end_ids = ()
    prompt = speaker.prompt("你好")
    lengths = []
    monkeypatch.setattr(speaker.tokenizer, "decode", lambda ids: lengths.append(len(ids)) or "")
    assert "".join(speaker.answer("你好")) == "" and lengths[-1] == 256 - len(prompt)


def test_a_streamed_answer_is_cleaned_and_remembered_so(tiny, monkeypatch):
    speaker = chat.make_speaker(Run(checkpoint=str(tiny)), None, {})
    ids = speaker.tokenizer.encode("你好,hello;再见? [[训练时间]]!")
    monkeypatch.setattr(chat, "stream", lambda *given, **how: (torch.tensor([token]) for token in ids))
    pieces = [*speaker.answer("q")]
    assert "".join(pieces) == "你好，hello；再见？ 2023年！" == speaker.turns[-1].answer and len(pieces) > 5


def test_scores_that_are_no_numbers(shared, tiny):
    published = json.loads((shared / "golden/chatglm/chat.json").read_text(encoding="utf-8"))["invalid_score"]
    logits = torch.randn(2, 8)
    assert without_invalid(logits, 5) is logits
    logits[published["in_has_nan_only_in_row"], 3] = torch.nan
    assert without_invalid(logits, 5).tolist() == published["out"]
    assert without_invalid(logits, None) is logits
    model = from_pretrained(tiny).eval()
    with torch.no_grad():
        model.final_norm.weight.fill_(torch.inf)
    prompt = torch.tensor([[9, model.config.gmask_id, model.config.start_id]])
    assert generate(model, prompt, max_new_tokens=3, temperature=0.95, top_p=0.7) == [[5, 5, 5]]
