"""Hold ChatGLM's dialogues to the ids and labels of the chat log's tool."""

import json

import pytest
import torch

from config import Run, resolve
from data.batching import collate
from data.chat import RECIPE
from data.chatglm_encoder import ChatGLMEncoder, make_encoder
from data.dialogues import Dialogue, Turn
from model.generation import left_padded
from model.tokenizers.load import load_tokenizer
from utils.errors import UserError

RUNS = [f"{kind}.{case}" for kind in ("ice", "small") for case in ("default", "prefix", "truncated")]


@pytest.fixture(scope="module")
def published(shared) -> dict:
    return json.loads((shared / "golden/chatglm/preprocess_tool.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizers(shared):
    folders = {"ice": "tokenizers/chatglm-6b", "small": "golden/chatglm/small_ice"}
    return {name: load_tokenizer(shared / folder, "chatglm") for name, folder in folders.items()}


def encoder(tokenizer, case: dict, **flags) -> ChatGLMEncoder:
    limits = {name: case[name] for name in ("source_prefix", "max_source_length", "max_target_length")}
    made = make_encoder(tokenizer, resolve(Run(**limits, **flags), RECIPE), 2048)
    assert isinstance(made, ChatGLMEncoder)
    return made


def dialogues(published: dict) -> list[Dialogue]:
    """Return the dialogues of the rows that the tool doesn't skip."""
    found = []
    for row in published["rows"]:
        earlier = [Turn(question, "", answer) for question, answer in row["history"] or []]
        if row["prompt"] and row["response"]:
            found.append(Dialogue((*earlier, Turn(row["prompt"], row["query"], row["response"]))))
    return found


@pytest.mark.parametrize("name", RUNS)
def test_examples(name, published, tokenizers):
    case, tokenizer = published["runs"][name], tokenizers[name.split(".")[0]]
    made = encoder(tokenizer, case)
    examples = [made.encode(one) for one in dialogues(published)]
    assert len(examples) == len(case["train"]) == 5
    for example, expected in zip(examples, case["train"], strict=True):
        assert example.ids == expected["input_ids"][:-1]  # each position predicts the next token
        assert example.label == expected["labels"][1:]
    batch = collate(examples[:3], tokenizer.pad_id, None)
    width = len(case["collated_first3"]["input_ids"][0])
    whole = torch.nn.functional.pad(batch.input_ids, (0, width - batch.input_ids.shape[1]), value=tokenizer.pad_id)
    ends = whole == torch.tensor(case["collated_first3"]["input_ids"])
    assert ((~ends).sum(1) <= 1).all()  # nothing but <eop>, which is only predicted
    assert bool(made.n_cut) == (name.endswith("truncated"))


@pytest.mark.parametrize("name", [name for name in RUNS if not name.endswith("prefix")])
def test_prompts_of_an_evaluation(name, published, tokenizers):
    case, tokenizer = published["runs"][name], tokenizers[name.split(".")[0]]
    made = encoder(tokenizer, case)
    prompts = [made.prompt_with_room(one, 100) for one in dialogues(published)]
    assert left_padded(prompts, tokenizer.pad_id)[0].tolist() == case["eval"]["input_ids"]


def test_later_tools_did_not_train_on_sop(published, tokenizers):
    case = published["runs"]["small.default"]
    first = encoder(tokenizers["small"], case, train_on_sop="no").encode(dialogues(published)[0])
    as_logged = encoder(tokenizers["small"], case).encode(dialogues(published)[0])
    sop = as_logged.label.index(tokenizers["small"].start_id)
    assert first.ids == as_logged.ids
    assert first.label == [-100 if place == sop else token for place, token in enumerate(as_logged.label)]


def test_what_is_longer_than_the_context_loses_the_beginning_of_its_prompt(published, tokenizers):
    tokenizer, dialogue = tokenizers["small"], dialogues(published)[2]
    run = resolve(Run(), RECIPE)
    whole, short = (make_encoder(tokenizer, run, length).encode(dialogue) for length in (2048, 40))
    assert len(short.ids) == 40 and short.ids == whole.ids[-40:]
    prompt = make_encoder(tokenizer, run, 40).prompt_with_room(dialogue, 20)
    assert len(prompt) == 20 and prompt[-2:] == [tokenizer.gmask_id, tokenizer.start_id]


def test_settings_that_leave_no_room_or_make_no_sense(tokenizers):
    for flags in ({"max_source_length": 3}, {"max_target_length": 2}):
        with pytest.raises(UserError, match="leaves no room"):
            make_encoder(tokenizers["small"], resolve(Run(**flags), RECIPE), 2048)
    with pytest.raises(UserError, match="--packing"):
        make_encoder(tokenizers["small"], resolve(Run(packing=True), RECIPE), 2048)
