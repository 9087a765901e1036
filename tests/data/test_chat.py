"""From dialogues to batches: templates, what is trained on, what is cut, what is mixed in; and whole runs on dialogues."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

import train
from config import DEFAULTS, Run
from data.batching import IGNORED
from data.dialogue_encoder import DialogueEncoder
from data.dialogues import Dialogue, Turn
from data.registry import get_task
from data.templates import TEMPLATES
from model import fast_path
from model.tokenizers.bpe import GPT2Tokenizer
from utils.errors import UserError

EOT = "¶"  # how the end of the text is shown here


@pytest.fixture(scope="module")
def tokenizer(small_checkpoint):
    return GPT2Tokenizer.from_directory(small_checkpoint)


def encoder(tokenizer, length=250, **settings):
    return DialogueEncoder(tokenizer, Run(**{name: DEFAULTS[name] for name in DEFAULTS} | settings), length)


def shown(tokenizer, ids):
    return "".join(EOT if one == tokenizer.end_of_text else tokenizer.decode([one]) for one in ids)


def texts(tokenizer, example):
    """(what the model reads, what it is trained to say, with _ at the positions that have no target)"""
    assert len(example.ids) == len(example.label)
    for now, then in zip(example.label, example.ids[1:], strict=False):
        assert now in (IGNORED, then)  # a target is the next token
    trained = "".join("_" if one == IGNORED else shown(tokenizer, [one]) for one in example.label)
    return shown(tokenizer, example.ids), trained.replace("_" * (len(trained) - len(trained.lstrip("_"))), "_", 1)


def dialogue(*pairs, system=""):
    return Dialogue(tuple(Turn(question, "", answer) for question, answer in pairs), system)


# Templates


def test_the_plain_template(tokenizer):
    once = dialogue(("who?", "me"))
    assert texts(tokenizer, encoder(tokenizer).encode(once)) == ("who?\nme", f"_me{EOT}")
    about = Dialogue((Turn("who?", "a bus", "me"),))
    assert texts(tokenizer, encoder(tokenizer).encode(about))[0] == "who?\na bus\nme"
    prefixed = encoder(tokenizer, source_prefix="be kind")
    assert texts(tokenizer, prefixed.encode(once)) == ("be kind\nwho?\nme", f"_me{EOT}")
    assert texts(tokenizer, prefixed.encode(dialogue(("who?", "me"), system="be {bad}")))[0] == "be {bad}\nwho?\nme"


def test_the_alpaca_template(tokenizer):
    made = encoder(tokenizer, template="alpaca", source_prefix="P")
    about = Dialogue((Turn("who?", "a {bus}", "me"),))
    assert texts(tokenizer, made.encode(about)) == (
        "P\n\n### Instruction:\nwho?\n\n### Input:\na {bus}\n\n### Response:\nme",
        f"_me{EOT}",
    )
    opening = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    ids = encoder(tokenizer, template="alpaca").encode(dialogue(("who?", "me"))).ids
    assert shown(tokenizer, ids) == f"{opening}\n\n### Instruction:\nwho?\n\n### Response:\nme"


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_is_what_the_answer_was_trained_behind(tokenizer, name):
    made = encoder(tokenizer, template=name, source_prefix="be kind")
    one = dialogue(("who?", "me"), ("really?", "yes"))
    example, prompt = made.encode(one), made.prompt(one)
    answer = tokenizer.encode("yes")
    assert [*example.ids, tokenizer.end_of_text] == [*prompt, *answer, tokenizer.end_of_text]
    assert list(example.label[len(prompt) - 1 :]) == [*answer, tokenizer.end_of_text]


# What is trained on


def test_every_answer_and_its_end_are_targets_and_nothing_else(tokenizer):
    example = encoder(tokenizer).encode(dialogue(("who?", "me"), ("now?", "later"), ("why?", "tea")))
    read, _ = texts(tokenizer, example)
    assert read == f"who?\nme{EOT}now?\nlater{EOT}why?\ntea"
    targets = [one for one in example.label if one != IGNORED]
    assert shown(tokenizer, targets) == f"me{EOT}later{EOT}tea{EOT}"


def test_chinese_goes_byte_by_byte(tokenizer):
    example = encoder(tokenizer).encode(dialogue(("你好", "您好。")))
    assert tokenizer.decode(example.ids) == "你好\n您好。"
    targets = [one for one in example.label if one != IGNORED]
    assert targets[-1] == tokenizer.end_of_text and tokenizer.decode(targets[:-1]) == "您好。"
    assert len(targets) == 9 + 1  # three bytes each, none of which the learned merges know


def test_a_text_cannot_smuggle_in_the_end_of_text(tokenizer):
    example = encoder(tokenizer).encode(dialogue(("<|endoftext|>", "<|endoftext|>")))
    assert tokenizer.end_of_text not in example.ids and example.label.count(tokenizer.end_of_text) == 1


# What is cut. The letters q, z and x are single tokens: no merge was learned from them.

LONG = dialogue(("qqqq", "zzzz"), ("qqqqq", "zzzzz"), ("qqqqqq", "zzzzzz"))  # 10 + 12 + 14 tokens with newline and end


TURNS, QUESTION, ANSWER = "earlier turns", "the end of a question", "the end of an answer"


@pytest.mark.parametrize(
    "settings, expected, lost",
    [
        ({}, f"qqqq\nzzzz{EOT}qqqqq\nzzzzz{EOT}qqqqqq\nzzzzzz{EOT}", {}),
        ({"max_target_length": 5}, f"qqqq\nzzzz{EOT}qqqqq\nzzzzz{EOT}qqqqqq\nzzzzz{EOT}", {ANSWER}),
        ({"max_source_length": 29}, f"qqqq\nzzzz{EOT}qqqqq\nzzzzz{EOT}qqqqqq\nzzzzzz{EOT}", {}),
        ({"max_source_length": 28}, f"qqqqq\nzzzzz{EOT}qqqqqq\nzzzzzz{EOT}", {TURNS}),  # the oldest goes first
        ({"max_source_length": 18}, f"qqqqqq\nzzzzzz{EOT}", {TURNS}),
        ({"max_source_length": 5}, f"qqqq\nzzzzzz{EOT}", {TURNS, QUESTION}),
        ({"length": 35}, f"qqqq\nzzzz{EOT}qqqqq\nzzzzz{EOT}qqqqqq\nzzzzzz{EOT}", {}),  # the last end is only predicted
        ({"length": 34}, f"qqqqq\nzzzzz{EOT}qqqqqq\nzzzzzz{EOT}", {TURNS}),
        ({"length": 24}, f"qqqqqq\nzzzzzz{EOT}", {TURNS}),
        ({"length": 12}, f"qqqqq\nzzzzzz{EOT}", {TURNS, QUESTION}),
        ({"length": 9}, f"qqqq\nzzzz{EOT}", {TURNS, QUESTION, ANSWER}),
        ({"length": 3}, f"q\nz{EOT}", {TURNS, QUESTION, ANSWER}),
    ],
)
def test_the_rule_by_which_long_dialogues_are_cut(tokenizer, settings, expected, lost):
    made = encoder(tokenizer, **settings)
    example = made.encode(LONG)
    assert shown(tokenizer, [*example.ids, tokenizer.end_of_text]) == expected
    assert len(example.ids) <= made.length
    assert {what for what, n in made.counts.items() if n} == set(lost)


def test_the_prefix_stays(tokenizer):
    example = encoder(tokenizer, source_prefix="xx", max_source_length=10).encode(LONG)
    assert shown(tokenizer, example.ids) == "xx\nqqqqqq\nzzzzzz"
    with pytest.raises(UserError, match="prefix and template take 4 tokens, and no question fits beside them into 4"):
        encoder(tokenizer, source_prefix="xx", max_source_length=4).encode(LONG)
    with pytest.raises(UserError, match="choose a shorter --source_prefix"):
        encoder(tokenizer, 5, source_prefix="xx").encode(LONG)


def test_an_answer_that_lost_its_tail_does_not_end_there(tokenizer):
    example = encoder(tokenizer, max_target_length=5).encode(LONG)
    targets = [one for one in example.label if one != IGNORED]
    assert shown(tokenizer, targets) == f"zzzz{EOT}zzzzz{EOT}zzzzz" and example.label[-1] == IGNORED
    example = encoder(tokenizer, max_target_length=4).encode(LONG)
    assert shown(tokenizer, [one for one in example.label if one != IGNORED]) == f"zzzz{EOT}zzzzzzzz"
    assert example.ids.count(tokenizer.end_of_text) == 2  # it still parts the turns


# Whole runs


def records(n, seed=0, word="prize"):
    draw = torch.Generator().manual_seed(seed)
    numbers = torch.randint(100, (n, 2), generator=draw).tolist()
    return [
        {"instruction": f"see {a}?", "output": f"{word} {b}", "history": [["ok", f"{word}"]] if a % 2 else []}
        for a, b in numbers
    ]


@pytest.fixture
def chat(experiment, alone):
    """chat("--flag", value, ...): a run on 60 dialogues of a file, 48 to train, 6 to validate, 6 to test."""
    path = alone / "some.json"
    path.write_text(json.dumps(records(60)), encoding="utf-8")
    other = alone / "other.jsonl"
    other.write_text("".join(json.dumps(one) + "\n" for one in records(40, 1, "cash")), encoding="utf-8")

    def run(*flags, **replaced):
        return experiment(*flags, **({"dataset": path, "num_epochs": 1} | replaced))

    run.path, run.other = path, other
    return run


def test_a_run_on_a_file_of_dialogues(chat):
    found = chat(max_steps=0, num_epochs=3, learning_rate=1e-2)
    assert "dataset  " in found.out and "48 / 6 / 6 texts to train / validate / test" in found.out
    assert found.result["steps"] == 3 * 6 and found.result["method"] == "lora"
    assert {name.split(".")[3] for name in found.tensors} == {"q", "k", "v"}
    for split in ("train", "validation", "test"):
        loss, perplexity = (found.result[f"{split}_{name}"] for name in ("loss", "perplexity"))
        assert perplexity == pytest.approx(math.exp(loss)) and 0 < found.result[f"{split}_accuracy"] < 1
    assert found.result["general_loss"] is None
    before = chat(num_epochs=0, max_steps=0).result["test_loss"]
    assert found.result["test_loss"] < before - 1
    assert f"perplexity train {found.result['train_perplexity']:.4g}, validation" in found.out


def test_a_general_set_is_measured_too(chat):
    found = chat("--general_dataset", chat.other)
    alone = chat(dataset=chat.other)
    assert "48 / 6 / 6 / 4 texts to train / validate / test / test what is kept" in found.out
    assert found.logged("targets", "final general") == alone.logged("targets", "final test")
    assert found.result["general_loss"] > 0 and "general" in found.out.split("perplexity")[1]
    assert found.logged("loss") == chat().logged("loss")  # it is measured and nothing else


def test_auxiliary_dialogues_are_mixed_in(chat, monkeypatch):
    seen, score = [], fast_path.loss

    def spy(model, batch, ignore_index):
        seen.append((model.training, batch))
        return score(model, batch, ignore_index)

    monkeypatch.setattr(fast_path, "loss", spy)

    def kinds(*flags):
        """For each training batch the dialogues of the auxiliary set among its own."""
        seen.clear()
        found = chat(*flags, max_steps=0)
        tokenizer = GPT2Tokenizer.from_directory(found.result["tokenizer"])
        return found, [["cash" in tokenizer.decode(row.tolist()) for row in b.input_ids] for trains, b in seen if trains]

    found, batches = kinds("--auxiliary_dataset", chat.other, "--auxiliary_samples", 16)
    assert sum(map(sum, batches)) == 16 and sum(map(len, batches)) == 48 + 16
    assert sum(0 < sum(batch) < len(batch) for batch in batches) > len(batches) / 2  # not one after the other
    assert "16 auxiliary dialogues are mixed in" in found.out and found.result["notes"]
    assert sum(map(sum, kinds("--auxiliary_dataset", chat.other)[1])) == 32  # all of its training part
    with pytest.raises(UserError, match=r"--auxiliary_samples is 33; .*other\.jsonl has 32 training dialogues"):
        chat("--auxiliary_dataset", chat.other, "--auxiliary_samples", 33)


def test_packing_changes_the_rows_and_nothing_else(chat):
    plain = chat("--batch_size", 48, "--lora_dropout", 0, max_steps=3)
    packed = chat("--batch_size", 48, "--lora_dropout", 0, "--packing", max_steps=3)
    assert packed.sizes(True)[0] < 12 and plain.sizes(True)[0] == 48
    assert packed.logged("loss") == pytest.approx(plain.logged("loss"), rel=1e-4)
    for split in ("train", "test"):
        assert packed.result[f"{split}_loss"] == pytest.approx(plain.result[f"{split}_loss"], rel=1e-4)
    assert "48 dialogues share" in packed.out


def test_accumulation_is_weighted_by_targets(chat):
    losses = [
        chat("--batch_size", size, "--accumulation_steps", n, "--lora_dropout", 0, max_steps=3).result["test_loss"]
        for size, n in ((16, 1), (4, 4), (1, 16))
    ]
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-4)


def test_malformed_records_are_told_of(chat):
    lines = [*map(json.dumps, records(30)), '{"instruction": "a"}', "nonsense"]
    chat.other.write_text("\n".join(lines))
    found = chat(dataset=chat.other)
    what = "other.jsonl: 2 of 32 records skipped: line 31: expected a text under output, got None; line 32: no JSON"
    assert what in found.out and what in found.result["notes"][0]
    chat.other.write_text('{"instruction": "a"}\n')
    with pytest.raises(UserError, match="none of 1 records can be used: line 1: expected a text under output"):
        chat(dataset=chat.other)


def test_early_stopping_goes_back_to_the_best(chat):
    flags = ("--early_stopping_patience", 2, "--lr_scheduler_type", "constant")
    found = chat(*flags, max_steps=0, num_epochs=30, learning_rate=0.3)
    losses, steps = found.logged("loss", "validation"), found.logged("step", "validation")
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 30 and found.result["steps"] == steps[-1] and not found.result["interrupted"]
    assert found.result["stages"][0]["best_step"] == steps[best]
    assert found.result["validation_loss"] == pytest.approx(losses[best], rel=1e-3)
    with pytest.raises(UserError, match="--early_stopping_patience is 2, but the data set has no validation part"):
        chat(*flags, "--test_share", 0)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [4, 7])
def test_a_killed_run_goes_on_from_where_it_last_saved(chat, monkeypatch, at):
    flags = ("--save_steps", 3, "--early_stopping_patience", 9)
    whole = chat(*flags, max_steps=8, num_epochs=2)
    calls, update = [], train.update

    def killed(*arguments):
        calls.append(0)
        if len(calls) == at + 1:
            raise Killed
        update(*arguments)

    directory = whole.directory
    for file in directory.iterdir():
        file.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(train, "update", killed)
        with pytest.raises(Killed):
            chat(*flags, max_steps=8, num_epochs=2)
    assert json.loads((directory / "result.json").read_text())["interrupted"] is True
    rest = chat(*flags, "--resume", max_steps=8, num_epochs=2)
    assert len(calls) == at + 1 and rest.logged("step") == list(range(1, 9))
    for name in ("loss", "learning_rate"):
        assert rest.logged(name) == whole.logged(name)
    assert rest.logged("loss", "validation") == whole.logged("loss", "validation")
    kept = load_file(directory / "trained.safetensors")
    assert all(torch.equal(kept[name], whole.tensors[name]) for name in whole.tensors)
    assert not (directory / "states").exists()


@pytest.mark.parametrize(
    "flags, what",
    [
        (("--template", "x"), "--template is 'x'; choose default, plain, alpaca, chatml, smollm2"),
        (("--auxiliary_samples", 3), "--auxiliary_samples is 3, but no --auxiliary_dataset is named"),
        (("--auxiliary_dataset", "spam"), "--auxiliary_dataset is 'spam', which has no dialogues; choose persona, general"),
        (
            ("--general_dataset", "nothing"),
            "--general_dataset is 'nothing', which has no dialogues; choose persona, general or",
        ),
        (("--disable_causal_mask",), "--disable_causal_mask would show each token the one that it has to predict"),
        (("--ignore_index", 3), "--ignore_index is about classification"),
        (("--average_embeddings",), "--average_embeddings is about classification"),
        (("--context_length", 300), "--context_length is 300, the model's context 256"),
        (("--test_share", 0.5), "--test_share is 0.5; it must be below 0.5"),
    ],
)
def test_what_a_run_on_dialogues_refuses(chat, flags, what):
    with pytest.raises(UserError, match=what):
        chat(*flags)


def test_classification_has_no_use_for_dialogues_flags(experiment):
    with pytest.raises(UserError, match="--packing is about dialogues, and spam has none"):
        experiment("--packing")


def test_a_file_is_known_by_its_path(chat):
    assert get_task(str(chat.path)).path == chat.path
    names = {chat(dataset=one, output_dir=None).directory for one in (chat.path, f"{chat.path.parent}/./some.json")}
    assert len(names) == 1 and names.pop().name.startswith("some-tiny-lora-seed123-")
    with pytest.raises(UserError, match=r"missing\.json can't be read"):
        chat(dataset=chat.path.parent / "missing.json")
