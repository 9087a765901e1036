"""Dialogues -> texts, by a template -> token ids. The loss of an example is on the answers alone, those to be trained."""

from collections import Counter
from dataclasses import dataclass, replace

from config import Run
from data.batching import IGNORED, Example
from data.dialogues import Dialogue, Turn
from model.tokenizers.base import Tokenizer, longest_first
from utils.errors import UserError


@dataclass(frozen=True)
class Template:
    """How a dialogue becomes text. The answer follows right after a turn, the end-of-text token right after the answer."""

    turn: str  # around {question}
    about: str = "{question}\n{input}"  # stands for the question where there is an input too
    opening: str = "{prefix}\n"  # in front of the first turn, where there is a prefix
    prefix: str = ""  # the prefix where neither the dialogue nor --source_prefix has one

    def question(self, turn: Turn) -> str:
        """Return what a turn asks, its input included."""
        return self.about.format(question=turn.question, input=turn.input) if turn.input else turn.question


TEMPLATES = {
    # As gpt2-pocket saw instructions in its pretraining: line by line, then the end of the text.
    "default": Template(turn="{question}\n"),
    # Taori et al. (2023), "Stanford Alpaca", with its shorter preamble for both kinds of record.
    "alpaca": Template(
        turn="### Instruction:\n{question}\n\n### Response:\n",
        about="{question}\n\n### Input:\n{input}",
        opening="{prefix}\n\n",
        prefix="Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    ),
}


def find_template(name: str) -> Template:
    """Return a template by its name. Raises UserError for a name that isn't in TEMPLATES."""
    if name not in TEMPLATES:
        raise UserError(f"--template is {name!r}; choose {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


@dataclass(frozen=True)
class EncodedTurn:
    """One turn in token ids. `before` and `after` are the template's words around the question."""

    before: list[int]
    question: list[int]
    after: list[int]
    answer: list[int]
    trained: bool = True

    def prompt(self) -> list[int]:
        """Return all that stands before the answer."""
        return self.before + self.question + self.after

    def size(self) -> int:
        """Return the number of tokens, with the end-of-text token behind the answer."""
        return len(self.prompt()) + len(self.answer) + 1


class DialogueEncoder:
    """Turns dialogues into examples of at most `length` tokens.

    What is too long is cut by this rule (the end-of-text tokens don't count as part of an answer):
    1. an answer keeps its first `max_target_length` tokens;
    2. the oldest turns are dropped while what stands before the last answer has more than `max_source_length` tokens, or
       the whole more than `length`; the prefix stays;
    3. if the last turn alone is too long, its question loses its tail: first down to `max_source_length`, then, the
       longer of question and answer first, until the whole fits.
    An answer that lost its tail doesn't end there, so the end-of-text token behind it is no target. A limit of 0 is none.
    `counts` says how many dialogues lost what, `n_cut` how many lost anything.
    """

    def __init__(self, tokenizer: Tokenizer, run: Run, length: int):
        self.tokenizer, self.length = tokenizer, length
        self.template, self.prefix = find_template(run.template), run.source_prefix or ""
        self.max_source, self.max_target = run.max_source_length or length, run.max_target_length or length
        before, after = self.template.turn.split("{question}")
        self.before, self.after = tokenizer.encode(before), tokenizer.encode(after)
        self.counts: Counter[str] = Counter()
        self.n_cut = 0

    def opening(self, system: str) -> list[int]:
        """Return the ids of the prefix: the dialogue's own, else the run's, else the template's."""
        prefix = system or self.prefix or self.template.prefix
        return self.tokenizer.encode(self.template.opening.format(prefix=prefix)) if prefix else []

    def encode_turn(self, turn: Turn) -> EncodedTurn:
        """Return a turn in token ids, nothing cut."""
        question = self.tokenizer.encode(self.template.question(turn))
        return EncodedTurn(self.before, question, self.after, self.tokenizer.encode(turn.answer), turn.trained)

    def prompt(self, dialogue: Dialogue) -> list[int]:
        """Return what a model gets to answer the last question: all but that turn's answer, and nothing is cut."""
        turns = [self.encode_turn(turn) for turn in dialogue.turns]
        return self.opening(dialogue.system) + self.joined(turns[:-1]) + turns[-1].prompt()

    def prompt_with_room(self, dialogue: Dialogue, room: int) -> list[int]:
        """Return the same, cut by the rules of the class as if the answer had `room` tokens."""
        opening = self.opening(dialogue.system)
        turns = [self.with_short_answer(self.encode_turn(turn)) for turn in dialogue.turns]
        turns[-1] = replace(turns[-1], answer=[0] * room)
        turns = self.cut(len(opening), turns)
        return opening + self.joined(turns[:-1]) + turns[-1].prompt()

    def joined(self, turns: list[EncodedTurn]) -> list[int]:
        """Return whole turns one after the other, each with the end of its text."""
        return [token for turn in turns for token in (*turn.prompt(), *turn.answer, self.tokenizer.end_of_text)]

    def with_short_answer(self, turn: EncodedTurn) -> EncodedTurn:
        """Return the turn after rule 1 of the class."""
        return replace(turn, answer=turn.answer[: self.max_target])

    def encode(self, dialogue: Dialogue) -> Example:
        """Return the example of a dialogue: ids [T], and targets [T], which are IGNORED outside the answers."""
        opening = self.opening(dialogue.system)
        uncut_turns = [self.encode_turn(turn) for turn in dialogue.turns]
        turns = self.cut(len(opening), [self.with_short_answer(turn) for turn in uncut_turns])
        self.count_cuts(uncut_turns, turns)
        ids, is_target = list(opening), [False] * len(opening)
        for turn, uncut in zip(turns, uncut_turns[-len(turns) :], strict=True):
            ids += self.joined([turn])
            is_target += [False] * len(turn.prompt())
            is_target += [turn.trained] * len(turn.answer)
            is_target += [turn.trained and len(turn.answer) == len(uncut.answer)]  # the end of the text
        targets = [token if counts else IGNORED for token, counts in zip(ids, is_target, strict=True)]
        return Example(ids[:-1], targets[1:])  # each position predicts the next token

    def cut(self, n_opening: int, turns: list[EncodedTurn]) -> list[EncodedTurn]:
        """Return the turns after rules 2 and 3 of the class, behind an opening of so many tokens. Raises UserError."""
        length = self.length + 1  # the last end of the text is only predicted
        last = turns[-1]
        while len(turns) > 1:
            total = n_opening + sum(turn.size() for turn in turns)
            if total <= length and total - len(last.answer) - 1 <= self.max_source:
                return turns
            turns = turns[1:]
        fixed = n_opening + len(last.before) + len(last.after)
        if min(self.max_source - fixed, length - fixed - 2) < 1:
            raise UserError(
                f"prefix and template take {fixed} tokens, and no question fits beside them into "
                f"{min(self.max_source, self.length - 1)}: choose a shorter --source_prefix, a longer --max_source_length "
                "or --context_length, or another --template"
            )
        question = last.question[: self.max_source - fixed]
        n_question, n_answer = longest_first(len(question), len(last.answer), length - fixed - 1)
        return [replace(last, question=question[:n_question], answer=last.answer[:n_answer])]

    def count_cuts(self, uncut_turns: list[EncodedTurn], turns: list[EncodedTurn]) -> None:
        """Add to `counts` what a dialogue has lost."""
        pairs = list(zip(turns, uncut_turns[-len(turns) :], strict=True))
        lost = {
            "earlier turns": len(turns) < len(uncut_turns),
            "the end of a question": any(len(turn.question) < len(uncut.question) for turn, uncut in pairs),
            "the end of an answer": any(len(turn.answer) < len(uncut.answer) for turn, uncut in pairs),
        }
        self.counts.update(lost)
        self.n_cut += any(lost.values())
