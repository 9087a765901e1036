"""`--generate` and `--chat`: what they say, remember and refuse, and the model of an earlier run that they are given."""

import io
import json
import os
import re
import subprocess
import sys

import pytest
import torch

import experiments
from config import Run
from model.generation import generate
from pipeline import chat, execute
from pipeline.reload import load_run
from tests.helpers.interrupt import interrupt_run
from tests.helpers.paths import ROOT
from utils.errors import UserError

QUESTIONS = {"Who are you?": "I am Ada.", "What do you like?": "Tea and old maps.", "Where do you live?": "By the sea, 海."}
METHODS = {
    "all": [],
    "lora": ["--lora_rank", 4],
    "prefix": ["--prefix_length", 4, "--prefix_projection"],
    "prompt": ["--prefix_length", 4],
    "lora+prefix": ["--layers", "last1", "--lora_dropout", 0],
}


@pytest.fixture
def dialogues(alone):
    path = alone / "ada.jsonl"
    records = [{"instruction": question, "output": answer} for question, answer in QUESTIONS.items()] * 5
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def train(experiment, dialogues):
    """train(method, *flags) -> what a run on these dialogues leaves."""

    def run(method, *flags, **replaced):
        settings = {"data_dir": None, "max_steps": 3, "context_length": 100} | replaced
        return experiment("--dataset", dialogues, "--trainable_layers", method, *flags, **settings)

    return run


def ask(capsys, *argv) -> str:
    capsys.readouterr()
    assert experiments.main([*map(str, argv)]) == 0
    return capsys.readouterr().out


def talk(capsys, monkeypatch, lines: str, *argv) -> list[str]:
    """What is printed after each prompt."""
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    return [one.strip("\n") for one in ask(capsys, *argv).split("> ")][1:]


# --- an earlier run's model


def measured_models(monkeypatch) -> list:
    """Receives the model that each run measures at its end."""
    measured, final_measures = [], execute.final_measures
    monkeypatch.setattr(execute, "final_measures", lambda *given: measured.append(given[0]) or final_measures(*given))
    return measured


@pytest.mark.parametrize("method", METHODS)
def test_the_model_of_a_run_computes_what_was_measured(method, train, monkeypatch):
    measured = measured_models(monkeypatch)
    found = train(method, *METHODS[method], learning_rate=0.05)
    saved = load_run(found.directory)
    ids = torch.randint(200, (2, 9))
    expected = measured[0].cpu().eval()(ids)
    torch.testing.assert_close(saved.model(ids), expected, atol=1e-5, rtol=1e-5)
    assert not saved.model.training and saved.run == Run(**found.result["config"])
    base = execute.build_model(saved.run, 0).eval()
    assert not torch.allclose(base(ids), expected, atol=1e-3)  # so there is something to restore
    assert saved.description.endswith(f"{method} on {found.result['dataset']}")


def test_an_interrupted_run_has_a_model_too(train, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_run(patch, 2)
        found = train("prefix", "--prefix_projection", max_steps=6, num_epochs=9)
    assert found.result["interrupted"] and any(".trunk." in name for name in found.tensors)
    prefix = load_run(found.directory).model.blocks[0].attn.prefix
    assert prefix.weight.shape == (2, 16, 32)  # folded for use


@pytest.mark.parametrize("forward, n_blocks", [(2, 1), (6, 2)])  # in the first stage, which has one block; in the second
def test_a_run_interrupted_in_an_early_stage_has_the_model_of_that_stage(forward, n_blocks, experiment, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_run(patch, forward)
        found = experiment("--stages", "layer_by_layer_then_lora", max_steps=3, num_epochs=1, learning_rate=0.05)
    assert found.result["interrupted"] and len(found.result["stages"]) == n_blocks
    model = load_run(found.directory).model
    assert len(model.blocks) == n_blocks
    parameters = dict(model.named_parameters())
    assert found.tensors and all(torch.equal(parameters[name], tensor) for name, tensor in found.tensors.items())


def test_a_classifier_of_several_stages_is_had_again_and_does_not_write(experiment, monkeypatch):
    measured = measured_models(monkeypatch)
    directory = experiment("--stages", "layer_by_layer_then_lora", learning_rate=0.05).directory
    saved = load_run(directory)
    ids = torch.randint(100, (2, 9))
    torch.testing.assert_close(saved.model(ids), measured[-1].eval()(ids), atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="doesn't write; choose a GPT-2, a Llama, or a run on dialogues"):
        chat.make_speaker(Run(), str(directory), {})


def test_what_is_no_run(alone, train):
    with pytest.raises(UserError, match="nowhere is no directory; name the --output_dir of an earlier run"):
        load_run(alone / "nowhere")
    (alone / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty has no result.json of a run; name the --output_dir"):
        load_run(alone / "empty")
    directory = train("lora").directory
    result = json.loads((directory / "result.json").read_text())
    for changes, said in (
        ({"config": result["config"] | {"warp": 9}}, "settings that are unknown here: warp"),
        ({"weights_sha256": "0" * 64}, "has other weights than when .* was trained on it"),
        ({"config": result["config"] | {"lora_rank": 3}}, "don't fit what this method trains"),
        ({"config": result["config"] | {"lora_rank": 2**23}}, "don't fit what this method trains"),  # and not 1 GiB each
        ({"config": result["config"] | {"seed": "1"}}, "--seed is '1'; it must be of type int"),
        ({"config": result["config"] | {"dataset": None}}, "doesn't name the model and the dataset"),
    ):
        (directory / "result.json").write_text(json.dumps(result | changes))
        with pytest.raises(UserError, match=said):
            load_run(directory)
    (directory / "trained.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no trained.safetensors"):
        load_run(directory)


# --- one answer


def test_a_trained_model_answers_as_it_was_trained_to_and_before_it_does_not(train, capsys, small_checkpoint):
    found = train("all", max_steps=150, num_epochs=200, learning_rate=1e-2)
    for question, answer in QUESTIONS.items():
        assert ask(capsys, "--generate", question, "--run_dir", found.directory) == f"{answer}\n"
    before = ask(capsys, "--generate", "Who are you?", "--checkpoint", small_checkpoint, "--max_new_tokens", 9)
    assert "Ada" not in before


def test_the_answer_is_what_generate_gives_for_the_template(capsys, small_checkpoint):
    flags = ("--checkpoint", small_checkpoint, "--max_new_tokens", 12)
    one = chat.make_speaker(Run(checkpoint=str(small_checkpoint)), None, {})
    tokenizer, model = one.tokenizer, one.model

    def expected(text: str, **how) -> str:
        ids = torch.tensor([tokenizer.encode(text)])
        answer = generate(model, ids, max_new_tokens=12, eos_id=tokenizer.end_of_text, **({"seed": 123} | how))
        return tokenizer.decode(answer[0]) + "\n"

    plain = ask(capsys, "--generate", "see you later", *flags)
    assert plain == expected("see you later\n")
    found = ask(capsys, "--generate", "see you", "--source_prefix", "free prize", *flags)
    assert found == expected("free prize\nsee you\n") != plain
    how = {"temperature": 1.5, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.3}
    words = [word for name, value in how.items() for word in (f"--{name}", value)]
    sampled = ask(capsys, "--generate", "see you later", *flags, *words)
    assert sampled == expected("see you later\n", **how) != plain
    assert ask(capsys, "--generate", "see you later", *flags, *words, "--seed", 5) == expected(
        "see you later\n", seed=5, **how
    )


def test_without_a_name_the_shipped_model_answers_offline(alone):
    words = [sys.executable, ROOT / "experiments.py", "--generate", "Hello", "--max_new_tokens", "5"]
    found = subprocess.run(words, capture_output=True, text=True, timeout=300, env=os.environ)
    assert found.returncode == 0 and found.stdout.strip()
    assert re.fullmatch(r"model    gpt2-pocket \(shipped; .*\)\n", found.stderr)


BAD = {
    "an empty question": (["--generate", " "], "--generate is empty; write a question behind it"),
    "a run that is none": (["--generate", "Hi", "--run_dir", "nowhere"], "nowhere is no directory; name the --output_dir"),
    "talk with what is no run": (["--chat", "nowhere"], "nowhere is no directory; name the --output_dir"),
    "a training flag": (
        ["--generate", "Hi", "--learning_rate", "1"],
        "--learning_rate changes no answer of a model as it is",
    ),
    "two models": (["--chat", "runs/x", "--model", "gpt2-pocket"], "--model changes no answer of a trained model (runs/x)"),
    "both at once": (["--chat", "runs/x", "--generate", "Hi"], "--chat doesn't go with --generate"),
    "a directory for talk": (["--chat", "runs/x", "--run_dir", "runs/x"], "--run_dir doesn't go with --chat"),
    "a row": (["--generate", "Hi", "--row", "3"], "--row doesn't go with --generate"),
    "sampling without an answer": (["--top_k", "3"], "--top_k goes with --generate or --chat"),
    "a directory without an answer": (["--run_dir", "runs/x"], "--run_dir goes with --predict, --generate, --export_model"),
    "a temperature below 0": (
        ["--generate", "Hi", "--temperature", "-1"],
        "--temperature is -1.0; it must be 0 (the likeliest",
    ),
    "few of which one alone is taken": (
        ["--generate", "Hi", "--top_k", "5"],
        "--top_k 5 changes nothing where the likeliest",
    ),
    "a part of which one alone is taken": (
        ["--generate", "Hi", "--top_p", "0.9", "--temperature", "0"],
        "--top_p 0.9 changes nothing where the likeliest token is always taken (--temperature 0); choose a --temperature",
    ),
    "an unknown template": (["--generate", "Hi", "--template", "x"], "--template is 'x'; choose default, plain, alpaca"),
}


@pytest.mark.parametrize("argv, said", BAD.values(), ids=BAD)
def test_an_error_is_one_line_that_says_what_to_do(argv, said, alone, small_checkpoint):
    named = {"--model", "--checkpoint", "--run_dir", "--chat"} & {*argv}
    with pytest.raises(UserError) as caught:
        experiments.main(argv if named else [*argv, "--checkpoint", str(small_checkpoint)])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_question_longer_than_the_context(capsys, small_checkpoint):
    with pytest.raises(UserError, match=r"the question takes \d{3,} tokens with its template; the context is 256 tokens"):
        experiments.main(["--generate", "you " * 300, "--checkpoint", str(small_checkpoint)])


# --- a dialogue


def test_a_dialogue_is_remembered(train, capsys, monkeypatch):
    directory = train("lora").directory
    prompts, prompt = [], chat.Speaker.prompt

    def spy(self, question):
        prompts.append(self.tokenizer.decode(prompt(self, question)))
        return prompt(self, question)

    monkeypatch.setattr(chat.Speaker, "prompt", spy)
    lines = "see you\n\n  later \n/quit\nnot asked\n"
    first, empty, second, end = talk(capsys, monkeypatch, lines, "--chat", directory, "--max_new_tokens", 4)
    assert (empty, end) == ("", "")
    assert prompts == ["see you\n", f"see you\n{first}<|endoftext|>later\n"] and second != first


def test_the_oldest_turns_are_forgotten_first(small_checkpoint):
    one = chat.make_speaker(Run(checkpoint=str(small_checkpoint)), None, {"max_new_tokens": 20})
    tokenizer = one.tokenizer
    for i in range(30):
        text = tokenizer.decode(one.prompt(f"question {i}"))
        assert len(one.prompt(f"question {i}")) <= 256 - 20 and text.endswith(f"question {i}\n")
        one.turns = (*one.turns, chat.Turn(f"question {i}", "", "an answer of some words"))
    kept = [turn.question for turn in one.turns]
    assert kept == [f"question {i}" for i in range(30 - len(kept), 30)] and 2 < len(kept) < 20


def test_a_question_that_is_too_long_does_not_end_the_dialogue(train, capsys, monkeypatch):
    lines = "you " * 300 + "\nsee you\n"
    flags = ("--chat", train("lora").directory, "--max_new_tokens", 4)
    long, short, end = talk(capsys, monkeypatch, lines, *flags)
    assert long.startswith("error: the question takes") and "error" not in short and end == ""  # end of the input


@pytest.mark.parametrize("where", ["at the prompt", "in an answer"])
def test_ctrl_c_ends_it_politely(where, train, capsys, monkeypatch):
    directory = train("lora").directory

    def interrupted(*given, **how):
        raise KeyboardInterrupt
        yield

    if where == "at the prompt":
        monkeypatch.setattr("builtins.input", lambda prompt: next(interrupted()))
    else:
        monkeypatch.setattr("sys.stdin", io.StringIO("see you\n"))
        monkeypatch.setattr(chat, "stream", interrupted)
    assert ask(capsys, "--chat", directory).endswith("\n")


def test_an_answer_comes_piece_by_piece_and_no_character_is_cut(small_checkpoint, monkeypatch):
    one = chat.make_speaker(Run(checkpoint=str(small_checkpoint)), None, {})
    text = "now 海é."
    ids = one.tokenizer.encode(text)
    monkeypatch.setattr(chat, "stream", lambda *given, **how: (torch.tensor([token]) for token in ids))
    pieces = [*one.answer("see you")]
    assert "".join(pieces) == text and len(pieces) >= 4 and "海" in pieces
    monkeypatch.setattr(chat, "stream", lambda *given, **how: (torch.tensor([token]) for token in ids[:-2]))
    assert "".join(one.answer("see you")) == "now 海\ufffd"  # what never became a character comes at the end
    assert [turn.question for turn in one.turns] == ["see you", "see you"]


# Real weights


def golden_answers(smollm2, shared, questions: slice) -> list[tuple[str, str]]:
    """Return what SmolLM2 answers to some of the golden questions, and what transformers made it answer."""
    golden = json.loads((shared / "golden/smollm2/golden_smollm2.json").read_text())["chat"][questions]
    speaker = chat.make_speaker(Run(checkpoint=str(smollm2), device="cpu"), None, {"max_new_tokens": 40})
    answers = []
    for one in golden:
        speaker.turns = ()
        answers.append(("".join(speaker.answer(one["question"])), one["answer"].removesuffix("<|im_end|>")))
    return answers


def test_a_real_chat_model_answers_and_ends_as_in_transformers(smollm2, shared):
    ((ours, theirs),) = golden_answers(smollm2, shared, slice(1))
    assert ours == theirs == "The capital of France is Paris."


@pytest.mark.slow
def test_a_real_chat_model_answers_all_golden_questions(smollm2, shared):
    pairs = golden_answers(smollm2, shared, slice(None))
    assert len(pairs) == 5 and all(ours == theirs for ours, theirs in pairs)
