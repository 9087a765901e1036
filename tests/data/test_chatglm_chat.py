"""ChatGLM's prompts of several rounds and what is shown of its answers, against the published chat."""

import json

import pytest

from config import Run, resolve
from data.chat import RECIPE
from data.chatglm_encoder import ChatGLMEncoder, cleaned, make_encoder
from data.dialogues import Dialogue, Turn
from model.tokenizers.load import load_tokenizer


@pytest.fixture(scope="module")
def published(shared) -> dict:
    return json.loads((shared / "golden/chatglm/chat.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def encoder(shared) -> ChatGLMEncoder:
    tokenizer = load_tokenizer(shared / "golden/chatglm/small_ice", "chatglm")
    made = make_encoder(tokenizer, resolve(Run(max_target_length=512), RECIPE), 2048)
    assert isinstance(made, ChatGLMEncoder)
    return made


def test_prompts(published, encoder):
    assert len(published["prompts"]) == 5
    for case in published["prompts"]:
        earlier = [Turn(question, "", answer) for question, answer in case["history"] or ()]
        assert encoder.text(Dialogue((*earlier, Turn(case["query"], "", "")))) == case["prompt"]


def test_an_answer_is_cleaned(published):
    assert len(published["process_response"]) == 15
    for case in published["process_response"]:
        assert cleaned(case["in"]) == case["out"]


def test_what_has_been_shown_is_not_taken_back(published, encoder):
    more = ["你,", "a,", " 你好 \n ", "[[训练", "[[训练时间]],你", "x[[[训练时间]]", "，,", "a !你"]
    for text in [*(case["in"] for case in published["process_response"]), *more]:
        shown = [encoder.shown(text[:length], is_complete=False) for length in range(len(text) + 1)]
        for one, longer in zip(shown, [*shown[1:], encoder.shown(text, is_complete=True)], strict=True):
            assert longer.startswith(one), (text, one, longer)
        assert len(shown[-1]) >= len(cleaned(text)) - 6  # so it does come piece by piece
        assert encoder.shown(text, is_complete=True) == cleaned(text)


def test_answers_are_compared_with_what_the_tool_decoded(encoder, shared):
    comma = Dialogue((Turn("q", "", "你好，我们。\n  好"),))
    assert encoder.reference(comma) == "你好,我们。\n  好"  # as the model writes it
    assert encoder.said([*encoder.tokenizer.encode("你好，"), encoder.tokenizer.end_of_text]) == "你好,"
    short = make_encoder(encoder.tokenizer, resolve(Run(max_target_length=5), RECIPE), 2048)
    ids = encoder.tokenizer.encode("one two three four five six")
    assert short.reference(Dialogue((Turn("q", "", "one two three four five six"),))) == encoder.tokenizer.decode(ids[:3])
