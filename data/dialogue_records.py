"""What a dialogue is, and the kinds of record that hold one:

    {"instruction": "...", "input": "...", "output": "...", "history": [["question", "answer"], ...], "system": "..."}
    {"messages": [{"role": "system", "content": "..."}, {"role": "user", ...}, {"role": "assistant", ...}, ...]}
    {"conversations": [{"from": "system", "value": "..."}, {"from": "human", ...}, {"from": "gpt", ...}, ...]}

All but the question and the last answer may be missing. A content may be a list of {"type": "text", "text": "..."}. A
message with "weight": 0 is an answer that isn't trained. A record may say which "split" it belongs to. A key that none of
this names isn't read, and is counted.
"""

from collections.abc import Iterable
from typing import NamedTuple

from data.files import shown

SPLITS = ("train", "validation", "test")
SPLIT_OF = {name: name for name in SPLITS} | {"held_out": "test"}  # what a record says -> the split
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ROLES = {
    **{SYSTEM: SYSTEM, USER: USER, ASSISTANT: ASSISTANT, "developer": SYSTEM},
    **{"human": USER, "gpt": ASSISTANT, "chatgpt": ASSISTANT, "bing": ASSISTANT, "bard": ASSISTANT, "model": ASSISTANT},
}
MESSAGES = ("messages", "conversations")
# The keys that are read: of a record with an instruction, of one with messages beside those, of a message, of its parts.
INSTRUCTION_KEYS = ("instruction", "input", "output", "history", SYSTEM, "split")
MESSAGES_KEYS = (SYSTEM, "split")
WHO_AND_WHAT = (("role", "content"), ("from", "value"))
WEIGHT = "weight"
PART_KEYS = ("type", "text")


class Turn(NamedTuple):
    """One question and its answer."""

    question: str
    input: str  # what the question is about, "" where it says all
    answer: str
    trained: bool = True  # whether the answer is to be learned; later turns see it in either case


class Dialogue(NamedTuple):
    """Turns in their order; each is asked with those before it in view. The last one's answer is trained."""

    turns: tuple[Turn, ...]
    system: str = ""  # what the record itself puts in front

    def content(self) -> list:
        """Return what a hash of the data depends on. Where all answers are trained, that goes without saying."""
        everything = all(turn.trained for turn in self.turns)
        return [[turn[:3] for turn in self.turns] if everything else self.turns, self.system]


class Malformed(ValueError):
    """What is wrong with one record."""


class Record(NamedTuple):
    """What was read of one record."""

    dialogue: Dialogue
    split: str | None  # None where the record doesn't say
    unread: set[str]  # keys that say nothing here, such as "id" or "messages.name"


def parse_record(record: object) -> Record:
    """Return the dialogue of a record of any kind. Raises Malformed."""
    if not isinstance(record, dict):
        raise Malformed(f"expected an object with instruction and output, or messages, got {shown(record)}")
    split = record.get("split")
    if split is not None and (not isinstance(split, str) or split not in SPLIT_OF):
        raise Malformed(f"the split is {shown(split)}; it must be one of {', '.join(SPLIT_OF)}")
    lists = [name for name in MESSAGES if record.get(name) is not None]
    if len(lists) > 1:
        raise Malformed(f"it has both {' and '.join(lists)}")
    dialogue, unread = from_messages(record, lists[0]) if lists else from_instruction(record)
    return Record(dialogue, SPLIT_OF.get(split), unread)


def from_instruction(record: dict) -> tuple[Dialogue, set[str]]:
    """Return the dialogue of a record of the first kind, and the keys that weren't read. `history` holds earlier turns.

    Where the instruction is empty, the input is the question. Raises Malformed.
    """
    if record and not {"instruction", "input", "output"} & record.keys():
        raise Malformed(f"expected instruction and output, messages, or conversations, got the keys {shown([*record])}")
    history = record.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise Malformed(f"expected a list of [question, answer] under history, got {shown(history)}")
    turns = [Turn(text_of(q, "a question in history"), "", text_of(a, "an answer in history")) for q, a in history]
    question, about = record.get("instruction"), text_or_blank(record.get("input"), "input").strip()
    if about and (question is None or (isinstance(question, str) and not question.strip())):
        question, about = record["input"], ""
    question, answer = text_of(question, "instruction"), text_of(record.get("output"), "output")
    unread = unread_keys(record, INSTRUCTION_KEYS)
    return Dialogue((*turns, Turn(question, about, answer)), one_system(record, [])), unread


def from_messages(record: dict, name: str) -> tuple[Dialogue, set[str]]:
    """Return the dialogue of a record with a list of messages under `name`, and the keys that weren't read.

    There is at most one system message, which comes first; then user and assistant by turns, the assistant last. Turns
    behind the last answer that is trained are left out: nothing can be learned from them. Raises Malformed.
    """
    if not isinstance(record[name], list) or not all(isinstance(one, dict) for one in record[name]):
        raise Malformed(f"expected a list of objects with role and content under {name}, got {shown(record[name])}")
    messages = [parse_message(one, number) for number, one in enumerate(record[name], start=1)]
    unread = unread_keys(record, (name, *MESSAGES_KEYS))
    unread |= {f"{name}.{key}" for one in messages for key in one.unread}
    opening = [one.text for one in messages[:1] if one.role == SYSTEM]
    spoken = messages[len(opening) :]
    pairs = list(zip(spoken[::2], spoken[1::2], strict=False))
    if not pairs or [one.role for one in spoken] != [USER, ASSISTANT] * len(pairs):
        roles = [one.get(who_and_what(one)[0]) for one in record[name]]
        raise Malformed(f"the roles must be user and assistant by turns, the assistant last, got {shown(roles)}")
    while pairs and not pairs[-1][1].trained:
        pairs.pop()
    if not pairs:
        raise Malformed("each answer has the weight 0, so none is trained")
    turns = tuple(Turn(question.text, "", answer.text, answer.trained) for question, answer in pairs)
    return Dialogue(turns, one_system(record, opening)), unread


class Message(NamedTuple):
    """What one speaker says."""

    role: object  # SYSTEM, USER, ASSISTANT, or what the file says instead
    text: str
    trained: bool  # if it is an answer
    unread: set[str]  # keys that weren't read


def parse_message(message: dict, number: int) -> Message:
    """Return a message of either spelling. Raises Malformed."""
    who, what = who_and_what(message)
    said, weight, place = message.get(who), message.get(WEIGHT), f"{what} of message {number}"
    role = ROLES.get(said.strip().lower(), said) if isinstance(said, str) else said
    unread = unread_keys(message, (who, what, WEIGHT))
    text = message.get(what)
    if isinstance(text, list):
        parts, text = text, "".join(text_of_part(part, place) for part in text)
        unread |= {f"{what}.{key}" for part in parts for key in unread_keys(part, PART_KEYS)}
    text = text_or_blank(text, place) if role == SYSTEM else text_of(text, place)
    if weight is not None and (not isinstance(weight, int | float) or weight not in (0, 1)):
        raise Malformed(f"the weight of message {number} is {shown(weight)}; it must be 0 or 1")
    if weight and role != ASSISTANT:
        unread.add(f"weight 1 of {role}")
    return Message(role, text, weight is None or bool(weight), unread)


def who_and_what(message: dict) -> tuple[str, str]:
    """Return the keys under which a message has its speaker and its text."""
    usual, other = WHO_AND_WHAT
    return other if other[0] in message and usual[0] not in message else usual


def text_of_part(part: object, place: str) -> str:
    """Return the text of one part of a content. Raises Malformed."""
    if not isinstance(part, dict) or part.get("type") != "text":
        raise Malformed(f"expected parts with the type 'text' under {place}, got {shown(part)}")
    return text_or_blank(part.get("text"), place)


def one_system(record: dict, messages: list[str]) -> str:
    """Return what a record puts in front: in a column of its own, or as its first message. Raises Malformed where both
    say something, and not the same."""
    said = [text for text in (text_or_blank(record.get(SYSTEM), SYSTEM), *messages) if text.strip()]
    if len({*said}) > 1:
        raise Malformed(f"it has two texts for the system, {shown(said[0])} and {shown(said[1])}")
    return said[0] if said else ""


def unread_keys(record: dict, read: Iterable[str]) -> set[str]:
    """Return the keys of a record that say something and aren't among those that are read."""
    return {key for key, value in record.items() if value is not None} - {*read}


def text_or_blank(value: object, name: str) -> str:
    """Return the value where it is a text in valid Unicode, "" where it is None. Raises Malformed."""
    return "" if value is None or value == "" else text_of(value, name, may_be_blank=True)


def text_of(value: object, name: str, may_be_blank: bool = False) -> str:
    """Return the value where it is a text in valid Unicode that isn't blank. Raises Malformed."""
    if not isinstance(value, str) or not (may_be_blank or value.strip()):
        raise Malformed(f"expected a text under {name}, got {shown(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # JSON can name half of a surrogate pair, which no tokenizer takes
        raise Malformed(f"the text under {name} isn't valid Unicode: {shown(value)}") from None
    return value
