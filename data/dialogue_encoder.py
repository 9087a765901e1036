"""Dialogues -> texts, by a template of `data/templates.py` -> token ids.

The loss of an example is on the answers alone, those to be trained.
"""

import re
from collections import Counter
from copy import copy
from dataclasses import dataclass, replace

from config import DEFAULTS, Run
from data.batching import IGNORED, Example
from data.chat_templates import own_template
from data.dialogues import Dialogue, Turn
from data.templates import find_template
from model.tokenizers.base import Tokenizer, longest_first
from utils.errors import UserError


@dataclass(frozen=True)
class EncodedTurn:
    """One turn in token ids. `before` and `after` are the template's words around the question."""

    before: list[int]
    question: list[int]
    after: list[int]
    answer: list[int]
    end: list[int]  # the token that ends the answer, and what the template writes behind it
    trained: bool = True

    def prompt(self) -> list[int]:
        """Return all that stands before the answer."""
        return self.before + self.question + self.after

    def size(self) -> int:
        """Return the number of tokens, with the end behind the answer."""
        return len(self.prompt()) + len(self.answer) + len(self.end)


class DialogueEncoder:
    """Turns dialogues into examples of at most `length` tokens.

    What is too long is cut by this rule (what ends an answer doesn't count as part of it):
    1. an answer keeps its first `max_target_length` tokens;
    2. the oldest turns are dropped while what stands before the last answer has more than `max_source_length` tokens, or
       the whole more than `length`; the prefix stays;
    3. if the last turn alone is too long, its question loses its tail: first down to `max_source_length`, then, the
       longer of question and answer first, until the whole fits.
    An answer that lost its tail doesn't end there, so the token behind it is no target. A limit of 0 is none.
    `counts` says how many dialogues lost what, `n_cut` how many lost anything.
    """

    def __init__(self, tokenizer: Tokenizer, run: Run, length: int):
        if run.train_on_sop != DEFAULTS["train_on_sop"]:
            raise UserError(f"--train_on_sop is about ChatGLM, and the tokenizer is a {type(tokenizer).__name__}")
        self.length = length
        self.template, self.note = find_template(run.template), ""
        if run.template == DEFAULTS["template"]:
            self.template, self.note = own_template(tokenizer)
        self.prefix = run.source_prefix or ""
        self.special_ids = ids_of(tokenizer, self.template.special)
        self.tokenizer = copy(tokenizer)  # one that finds no mark in a text, which files may list as any added token
        self.tokenizer.added = tokenizer.added.without({*self.special_ids.values(), *tokenizer.end_ids})
        self.max_source, self.max_target = run.max_source_length or length, run.max_target_length or length
        before, after = self.template.turn.split("{question}")
        self.before, self.asks, self.after = self.write(before), before + "{question}", self.write(after)
        ends = tokenizer.end_ids if self.template.end is None else (self.special_ids[self.template.end],)
        self.end = [tokenizer.end_of_text if self.template.end is None else ends[0], *self.write(self.template.behind)]
        self.end_ids = tuple(dict.fromkeys((*ends, *tokenizer.end_ids)))  # any of them ends an answer that is written
        self.counts: Counter[str] = Counter()
        self.n_cut = 0

    def write(self, text: str, **values: str) -> list[int]:
        """Return the ids of a text of the template, with values for its {names}. The marks of a turn are such in the
        template's own text alone, not in a value."""
        parts = re.split(f"({'|'.join(map(re.escape, self.special_ids))})", text) if self.special_ids else [text]
        ids: list[int] = []
        for part in parts:
            ids += [self.special_ids[part]] if part in self.special_ids else self.tokenizer.encode(part.format(**values))
        return ids

    def opening(self, system: str) -> list[int]:
        """Return the ids of what begins a dialogue, and of the prefix: its own, else the run's, else the template's."""
        start = self.tokenizer.start if self.template.start is None else self.write(self.template.start)
        prefix = self.template.stripped(system or self.prefix or self.template.prefix)
        opens = bool(prefix) or self.template.always_opens
        return [*start, *(self.write(self.template.opening, prefix=prefix) if opens else [])]

    def encode_turn(self, turn: Turn, is_last: bool = True) -> EncodedTurn:
        """Return a turn in token ids, nothing cut. White space that begins a question may join what stands before it."""
        written = self.write(self.asks, question=self.template.question(turn))
        n_before = len(self.before) if written[: len(self.before)] == self.before else 0
        answer = self.tokenizer.encode(self.template.answer(turn.answer, is_last))
        return EncodedTurn(written[:n_before], written[n_before:], self.after, answer, self.end, turn.trained)

    def encode_turns(self, dialogue: Dialogue) -> list[EncodedTurn]:
        """Return the turns of a dialogue, nothing cut."""
        last = len(dialogue.turns) - 1
        return [self.encode_turn(turn, number == last) for number, turn in enumerate(dialogue.turns)]

    def prompt(self, dialogue: Dialogue) -> list[int]:
        """Return what a model gets to answer the last question: all but that turn's answer, and nothing is cut."""
        turns = self.encode_turns(dialogue)
        return self.opening(dialogue.system) + self.joined(turns[:-1]) + turns[-1].prompt()

    def prompt_with_room(self, dialogue: Dialogue, room: int) -> list[int]:
        """Return the same, cut by the rules of the class as if the answer had `room` tokens."""
        opening = self.opening(dialogue.system)
        turns = [self.with_short_answer(turn) for turn in self.encode_turns(dialogue)]
        turns[-1] = replace(turns[-1], answer=[0] * room)
        turns = self.cut(len(opening), turns)
        return opening + self.joined(turns[:-1]) + turns[-1].prompt()

    def said(self, tokens: list[int]) -> str:
        """Return the text of an answer that was written, without a thought in front."""
        return self.template.answer(self.tokenizer.decode(tokens))

    def reference(self, dialogue: Dialogue) -> str:
        """Return what an answer to the last question is compared with: the data's, without a thought in front too."""
        return self.template.answer(dialogue.turns[-1].answer)

    def shown(self, text: str, is_complete: bool) -> str:
        """Return what is shown of an answer that is being written."""
        return text

    def joined(self, turns: list[EncodedTurn]) -> list[int]:
        """Return whole turns one after the other, each with its end."""
        return [token for turn in turns for token in (*turn.prompt(), *turn.answer, *turn.end)]

    def with_short_answer(self, turn: EncodedTurn) -> EncodedTurn:
        """Return the turn after rule 1 of the class."""
        return replace(turn, answer=turn.answer[: self.max_target])

    def encode(self, dialogue: Dialogue) -> Example:
        """Return the example of a dialogue: ids [T], and targets [T], which are IGNORED outside the answers."""
        opening = self.opening(dialogue.system)
        uncut_turns = self.encode_turns(dialogue)
        turns = self.cut(len(opening), [self.with_short_answer(turn) for turn in uncut_turns])
        self.count_cuts(uncut_turns, turns)
        return self.example(opening, turns, uncut_turns)

    def example(self, opening: list[int], turns: list[EncodedTurn], uncut_turns: list[EncodedTurn]) -> Example:
        """Return the example of turns of which something may have been cut, behind what begins the dialogue."""
        ids, is_target = list(opening), [False] * len(opening)
        for turn, uncut in zip(turns, uncut_turns[-len(turns) :], strict=True):
            ids += self.joined([turn])
            is_target += [False] * len(turn.prompt())
            is_target += [turn.trained] * len(turn.answer)
            is_target += [turn.trained and len(turn.answer) == len(uncut.answer)]  # the token that ends it
            is_target += [False] * (len(turn.end) - 1)
        targets = [token if counts else IGNORED for token, counts in zip(ids, is_target, strict=True)]
        return Example(ids[:-1], targets[1:])  # each position predicts the next token

    def cut(self, n_opening: int, turns: list[EncodedTurn]) -> list[EncodedTurn]:
        """Return the turns after rules 2 and 3 of the class, behind an opening of so many tokens. Raises UserError."""
        length = self.length + 1  # the last token is only predicted
        last = turns[-1]
        while len(turns) > 1:
            total = n_opening + sum(turn.size() for turn in turns)
            if total <= length and total - len(last.answer) - len(last.end) <= self.max_source:
                return turns
            turns = turns[1:]
        fixed = n_opening + len(last.before) + len(last.after)
        if min(self.max_source - fixed, length - fixed - len(last.end) - 1) < 1:
            raise UserError(
                f"prefix and template take {fixed} tokens, and no question fits beside them into "
                f"{min(self.max_source, self.length - len(last.end))}: choose a shorter --source_prefix, a longer "
                "--max_source_length or --context_length, or another --template"
            )
        question = last.question[: self.max_source - fixed]
        n_question, n_answer = longest_first(len(question), len(last.answer), length - fixed - len(last.end))
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


def ids_of(tokenizer: Tokenizer, tokens: tuple[str, ...]) -> dict[str, int]:
    """Return token -> id of the special tokens that a template writes. Raises UserError where the tokenizer lacks one."""
    known = getattr(tokenizer, "special_tokens", {})
    if missing := [token for token in tokens if token not in known]:
        raise UserError(f"--template writes {missing[0]}, a token that the tokenizer lacks; choose another, such as plain")
    return {token: known[token] for token in tokens}
