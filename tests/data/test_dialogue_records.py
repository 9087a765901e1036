"""Forms of dialogues that other tools write: what is read, what isn't, and what is said of it."""

import json

import pytest

from data.dialogue_records import Malformed, parse_record
from data.dialogues import Dialogue, Turn, read_records
from utils.errors import UserError

HI = Dialogue((Turn("Hi", "", "Hello."),))
TWO = Dialogue((Turn("a", "", "b"), Turn("c", "", "d")))
PIRATE = Dialogue((Turn("Hi", "", "Hello."),), "You are a pirate.")


def messages(*said, name="messages", who="role", what="content", **more):
    """Return a record: each of `said` is a speaker, a text, and perhaps more of the message."""
    return {name: [{who: one[0], what: one[1], **(one[2] if len(one) > 2 else {})} for one in said], **more}


def sharegpt(*said, **more):
    return messages(*said, name="conversations", who="from", what="value", **more)


def parts(*texts, **more):
    return [{"type": "text", "text": text, **more} for text in texts]


ALPACA = {"instruction": "Hi", "output": "Hello."}
READ = {
    "a system column": (ALPACA | {"system": "You are a pirate."}, PIRATE),
    "an empty system column": (ALPACA | {"system": ""}, HI),
    "no system": (ALPACA | {"system": None, "input": None, "history": None, "messages": None}, HI),
    "a system column beside messages": (messages(("user", "Hi"), ("assistant", "Hello."), system=PIRATE.system), PIRATE),
    "a system column that the messages repeat": (
        messages(("system", PIRATE.system), ("user", "Hi"), ("assistant", "Hello."), system=PIRATE.system),
        PIRATE,
    ),
    "an empty system message": (messages(("system", ""), ("user", "Hi"), ("assistant", "Hello.")), HI),
    "a developer's message": (messages(("developer", PIRATE.system), ("user", "Hi"), ("assistant", "Hello.")), PIRATE),
    "the question under input": ({"instruction": "", "input": "Hi", "output": "Hello."}, HI),
    "the question under input alone": ({"input": "Hi", "output": "Hello."}, HI),
    "ShareGPT": (sharegpt(("human", "Hi"), ("gpt", "Hello.")), HI),
    "ShareGPT, several turns": (sharegpt(("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")), TWO),
    "ShareGPT, a system message": (sharegpt(("system", PIRATE.system), ("human", "Hi"), ("gpt", "Hello.")), PIRATE),
    "ShareGPT, a system column": (sharegpt(("human", "Hi"), ("gpt", "Hello."), system=PIRATE.system), PIRATE),
    "ShareGPT, other names": (sharegpt(("user", "Hi"), ("chatgpt", "Hello.")), HI),
    "ShareGPT, capital letters": (sharegpt(("Human", "Hi"), ("GPT", "Hello.")), HI),
    "messages, capital letters": (messages(("System", PIRATE.system), ("User", "Hi"), ("ASSISTANT", "Hello.")), PIRATE),
    "conversations with roles": (messages(("user", "Hi"), ("assistant", "Hello."), name="conversations"), HI),
    "messages with from": (messages(("human", "Hi"), ("gpt", "Hello."), who="from", what="value"), HI),
    "parts": (messages(("user", parts("Hi")), ("assistant", parts("Hello."))), HI),
    "several parts": (messages(("user", parts("H", "", "i")), ("assistant", parts("Hel", "lo."))), HI),
    "a part and a text": (messages(("system", parts(PIRATE.system)), ("user", "Hi"), ("assistant", "Hello.")), PIRATE),
    "parts in ShareGPT": (sharegpt(("human", parts("Hi")), ("gpt", "Hello.")), HI),
}


@pytest.mark.parametrize("record, dialogue", READ.values(), ids=READ)
def test_what_is_read(record, dialogue):
    found = parse_record(record)
    assert (found.dialogue, found.split, found.unread) == (dialogue, None, set())
    assert parse_record(record | {"split": "held_out"}).split == "test"


WEIGHTS = {
    "the first answer": ((0, 1), TWO._replace(turns=(TWO.turns[0]._replace(trained=False), TWO.turns[1]))),
    "numbers with a point": ((0.0, 1.0), TWO._replace(turns=(TWO.turns[0]._replace(trained=False), TWO.turns[1]))),
    "none": ((None, 1), TWO),
    "the last answer, which nothing is behind": ((1, 0), Dialogue(TWO.turns[:1])),
}


@pytest.mark.parametrize("form", [messages, sharegpt])
@pytest.mark.parametrize("weights, dialogue", WEIGHTS.values(), ids=WEIGHTS)
def test_an_answer_with_the_weight_0_is_not_trained(weights, dialogue, form):
    one, two = ({} if weight is None else {"weight": weight} for weight in weights)
    user, assistant = ("user", "assistant") if form is messages else ("human", "gpt")
    record = form((user, "a", {"weight": 0}), (assistant, "b", one), (user, "c"), (assistant, "d", two))
    assert parse_record(record).dialogue == dialogue and parse_record(record).unread == set()


REFUSED = {
    "two lists": (messages(("user", "a")) | sharegpt(("human", "a")), "it has both messages and conversations"),
    "two systems": (
        messages(("system", "one"), ("user", "Hi"), ("assistant", "Hello."), system="two"),
        "it has two texts for the system, 'two' and 'one'",
    ),
    "a system that is no text": (ALPACA | {"system": 3}, "expected a text under system, got 3"),
    "a picture": (
        messages(("user", [{"type": "image_url", "image_url": {}}]), ("assistant", "b")),
        "expected parts with the type 'text' under content of message 1, got {'type': 'image_url'",
    ),
    "a part that is a text": (messages(("user", ["Hi"]), ("assistant", "b")), "expected parts with the type 'text'"),
    "no parts": (messages(("user", []), ("assistant", "b")), "expected a text under content of message 1, got ''"),
    "a tool": (
        sharegpt(("human", "Hi"), ("function_call", "{}"), ("observation", "{}"), ("gpt", "Hello.")),
        "the roles must be user and assistant by turns, the assistant last, got ['human', 'function_call', 'observation',",
    ),
    "no answer": (sharegpt(("human", "Hi")), "the roles must be user and assistant by turns"),
    "values under other names": (
        messages(("human", "Hi"), ("gpt", "b"), who="from"),
        "expected a text under value of message 1, got None",
    ),
    "half a weight": (
        messages(("user", "a"), ("assistant", "b", {"weight": 0.5})),
        "the weight of message 2 is 0.5; it must be 0 or 1",
    ),
    "a weight in words": (
        messages(("user", "a"), ("assistant", "b", {"weight": "no"})),
        "the weight of message 2 is 'no'; it must be 0 or 1",
    ),
    "no weight at all": (
        messages(("user", "a"), ("assistant", "b", {"weight": 0})),
        "each answer has the weight 0, so none is trained",
    ),
    "other columns": (
        {"prompt": "a", "completion": "b"},
        "expected instruction and output, messages, or conversations, got the keys ['prompt', 'completion']",
    ),
}


@pytest.mark.parametrize("record, said", REFUSED.values(), ids=REFUSED)
def test_what_is_refused(record, said):
    with pytest.raises(Malformed) as error:
        parse_record(record)
    assert str(error.value).startswith(said)


UNREAD = {
    "columns": (ALPACA | {"id": 3, "lang": "en", "tools": ""}, {"id", "lang", "tools"}),
    "nulls, which say nothing": (ALPACA | {"id": None}, set()),
    "a weight of a record": (ALPACA | {"weight": 0}, {"weight"}),
    "an instruction beside messages": (messages(("user", "a"), ("assistant", "b"), **ALPACA), {"instruction", "output"}),
    "of a message": (
        messages(("user", "a", {"name": "Ann"}), ("assistant", "b", {"tool_calls": []})),
        {"messages.name", "messages.tool_calls"},
    ),
    "of ShareGPT": (sharegpt(("human", "a", {"markdown": 1}), ("gpt", "b")), {"conversations.markdown"}),
    "of a part": (messages(("user", parts("a", cache_control=1)), ("assistant", "b")), {"messages.content.cache_control"}),
    "a trained question": (messages(("user", "a", {"weight": 1}), ("assistant", "b")), {"messages.weight 1 of user"}),
}


@pytest.mark.parametrize("record, keys", UNREAD.values(), ids=UNREAD)
def test_keys_that_say_nothing_are_named(record, keys):
    assert parse_record(record).unread == keys


def test_each_unread_key_is_named_once_with_its_count(tmp_path):
    path = tmp_path / "some.jsonl"
    records = [ALPACA | {"id": i} | ({"lang": "en"} if i < 3 else {}) for i in range(20)]
    path.write_text("\n".join(map(json.dumps, records)))
    found = read_records(path)
    assert found.report_unread() == "keys that aren't read: id (20), lang (3)" and found.report() == ""
    assert found.counts == "20 lines in, 20 examples out, keys that aren't read: id (20), lang (3)"
    path.write_text(json.dumps(ALPACA | {f"key{i}": i for i in range(30)}))
    assert read_records(path).report_unread().endswith(" and 22 more")


def test_dialogues_that_are_trained_whole_keep_their_hash():
    assert json.dumps(TWO.content()) == json.dumps([[["a", "", "b"], ["c", "", "d"]], ""])
    other = TWO._replace(turns=(TWO.turns[0]._replace(trained=False), TWO.turns[1]))
    assert json.dumps(other.content()) != json.dumps(TWO.content())


# --- lists, lines, and what is neither

LINES = [json.dumps({"instruction": f"q{i}", "output": "a"}) for i in range(5)]
TEXTS = {
    "lines": ("\n".join(LINES), "lines"),
    "lines with commas": (",\n".join(LINES), "lines"),
    "a list": ("[" + ", ".join(LINES) + "]", "records"),
    "a list of lines": ("[\n" + ",\n".join(LINES) + "\n]\n", "records"),
    "a list of lines with carriage returns": ("\ufeff[\r\n" + ",\r\n".join(LINES) + "\r\n]\r\n", "records"),
    "an indented list": (json.dumps([json.loads(line) for line in LINES], indent=2), "records"),
}


@pytest.mark.parametrize("name", ["some.json", "some.jsonl", "SOME.JSONL", "some.txt"])
@pytest.mark.parametrize("text, kind", TEXTS.values(), ids=TEXTS)
def test_lists_and_lines_whatever_the_file_is_called(tmp_path, name, text, kind):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    found = read_records(path)
    assert [one.turns[0].question for one, _ in found.dialogues] == [f"q{i}" for i in range(5)]
    assert found.counts == f"5 {kind} in, 5 examples out" and not found.problems


def test_a_list_as_the_first_line_costs_that_line_alone(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text("\n".join(['["a", "b"]', *LINES]))
    assert read_records(path).counts == "6 lines in, 5 examples out"


BROKEN = {
    "a list that is cut": ("[\n" + ",\n".join(LINES), ", line 6: no JSON: Expecting ',' delimiter"),
    "a comma too many": ("[\n" + ",\n".join(LINES) + ",\n]", ", line "),
    "no comma": ("[\n" + "\n".join(LINES) + "\n]", ", line 3: no JSON: Expecting ',' delimiter"),
    "a record over lines": (
        json.dumps(ALPACA, indent=1),
        ": none of 4 records can be used: line 1: no JSON: Expecting property name enclosed in double quotes; expected one",
    ),
    "two values in a list": ('[{"instruction": "a", "output": "b", "output": "c"}]', ": no JSON: the key output has two"),
}


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("text, said", BROKEN.values(), ids=BROKEN)
def test_what_is_neither_list_nor_lines_is_refused(tmp_path, text, said, suffix):
    path = tmp_path / f"some{suffix}"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_records(path)
    assert str(error.value).startswith(f"{path}{said}")


def test_a_key_with_two_values_costs_its_line(tmp_path):
    path = tmp_path / "some.jsonl"
    same, other = '{"instruction": "a", "output": "b", "output": "b"}', '{"instruction": "a", "output": "b", "output": "c"}'
    path.write_text(f"{same}\n{other}\n")
    assert len(read_records(path).dialogues) == 1
    assert read_records(path).report().endswith("1 of 2 records skipped: line 2: no JSON: the key output has two values")
