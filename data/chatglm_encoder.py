"""Dialogues -> token ids as ChatGLM was fine-tuned on them, by the tool of the chat log (docs/chatglm.md).

The whole prompt is one text, cut and encoded as such: earlier turns, in rounds, and the question. Then come [gMASK], <sop>,
the answer and <eop>. Only the last answer is learnt, and <sop> before it.
"""

import re
import sys
from collections import Counter
from collections.abc import Sequence

from config import DEFAULTS, Run
from data.batching import IGNORED, Example
from data.dialogue_encoder import DialogueEncoder
from data.dialogues import Dialogue, Turn
from model.tokenizers.base import Tokenizer
from model.tokenizers.chatglm import ChatGLMTokenizer
from utils.errors import UserError

TRAINING_TIME = "[[训练时间]]"  # the model was taught to write this where its answer is about when it was trained
CHINESE = "\u4e00-\u9fff"
WIDE = dict(zip(",!:;?", "，！：；？", strict=True))
ROUND = "[Round {number}]\n问：{question}\n答："


class ChatGLMEncoder:
    """Turns dialogues into examples, as `DialogueEncoder` does for other models.

    A prompt keeps its first `max_source_length` - 1 tokens (one less where it is to be answered), an answer its first
    `max_target_length` - 2, as in that tool; an answer that is cut ends all the same. What is still too long for `length`
    tokens loses the beginning of its prompt.
    `counts` says how many dialogues lost what, `n_cut` how many lost anything.
    """

    note = "the template is ChatGLM's own: a question as it is, earlier turns in rounds"

    def __init__(self, tokenizer: ChatGLMTokenizer, run: Run, length: int):
        if run.template != DEFAULTS["template"]:
            raise UserError(f"--template is {run.template}; a ChatGLM has only its own")
        if run.packing:
            raise UserError("--packing can't be used with a ChatGLM: a row has one context, which all of it sees")
        self.tokenizer, self.length = tokenizer, length
        self.prefix = run.source_prefix or ""
        self.max_source, self.max_target = run.max_source_length or sys.maxsize, run.max_target_length or sys.maxsize
        self.train_on_sop = run.train_on_sop == "yes"
        self.between = [*tokenizer.end]  # [gMASK] <sop>, which the tokenizer puts behind a text
        self.end_ids: Sequence[int] = tokenizer.end_ids
        self.counts: Counter[str] = Counter()
        self.n_cut = 0
        if min(self.max_source, length) < 4 or self.max_target < 3:
            raise UserError(
                f"--max_source_length {run.max_source_length} or --max_target_length {run.max_target_length} leaves no "
                "room: ChatGLM's marks take 3 tokens"
            )

    def text(self, dialogue: Dialogue) -> str:
        """Return the prompt as text: a question as it is, or behind earlier turns as the next round."""
        *earlier, last = dialogue.turns
        prompt = question_of(last)
        if earlier:
            rounds = [ROUND.format(number=i, question=question_of(turn)) + turn.answer for i, turn in enumerate(earlier)]
            prompt = "\n".join([*rounds, ROUND.format(number=len(earlier), question=prompt)])
        return (dialogue.system or self.prefix) + prompt

    def prompt(self, dialogue: Dialogue) -> list[int]:
        """Return what a model gets to answer the last question, nothing cut: the prompt, [gMASK], <sop>."""
        return self.tokenizer.encode(self.text(dialogue)) + self.between

    def prompt_with_room(self, dialogue: Dialogue, room: int) -> list[int]:
        """Return the same, cut so that an answer of `room` tokens fits."""
        source = self.tokenizer.encode(self.text(dialogue))[: self.max_source - 2]
        return source[-max(1, self.length - room - len(self.between)) :] + self.between

    def said(self, tokens: list[int]) -> str:
        """Return the text of an answer that was written, as that tool scored it."""
        return self.tokenizer.decode(tokens, skip_special=True)

    def reference(self, dialogue: Dialogue) -> str:
        """Return what an answer to the last question is compared with: the data's, cut to `max_target_length` and decoded.

        Its commas are then as narrow as those that the model can write.
        """
        return self.said(self.tokenizer.encode(dialogue.turns[-1].answer)[: self.max_target - 2])

    def shown(self, text: str, is_complete: bool) -> str:
        """Return what is shown of an answer that is being written: of one that goes on, what that can't change any more."""
        return cleaned(text if is_complete else without_open_end(text))

    def encode(self, dialogue: Dialogue) -> Example:
        """Return the example of a dialogue: ids [T], and targets [T], IGNORED before the answer.

        With `train_on_sop` the <sop> before the answer is a target too.
        """
        whole, answer = self.tokenizer.encode(self.text(dialogue)), self.tokenizer.encode(dialogue.turns[-1].answer)
        source, target = whole[: self.max_source - 1], answer[: self.max_target - 2]
        target = target[: self.length - len(self.between) - 1]
        source = source[-max(1, self.length + 1 - len(target) - len(self.between) - 1) :]
        lost = {
            "the end of a question": len(whole) > self.max_source - 1,
            "the beginning of a question": len(source) < min(len(whole), self.max_source - 1),
            "the end of an answer": len(target) < len(answer),
        }
        self.counts.update(lost)
        self.n_cut += any(lost.values())
        ids = [*source, *self.between, *target, self.end_ids[0]]
        n_ignored = len(source) + len(self.between) - int(self.train_on_sop)
        targets = [IGNORED] * n_ignored + ids[n_ignored:]
        return Example(ids[:-1], targets[1:])  # each position predicts the next token


def cleaned(text: str) -> str:
    """Return an answer as the published chat shows it: punctuation beside Chinese is wide, and its stock phrase is filled.

    No other punctuation is changed, such as that behind a wide comma.
    """
    text = text.strip().replace(TRAINING_TIME, "2023年")
    return re.sub(f"(?<=[{CHINESE}])[,!:;?]|[,!:;?](?=[{CHINESE}])", lambda found: WIDE[found[0]], text)


def without_open_end(text: str) -> str:
    """Return a text without those characters at its end of which `cleaned` makes what follows them says."""
    begun = next((n for n in range(len(TRAINING_TIME) - 1, 0, -1) if text.endswith(TRAINING_TIME[:n])), 0)
    return re.sub(r"[,!:;?\s]+$", "", text[: len(text) - begun])


def make_encoder(tokenizer: Tokenizer, run: Run, length: int) -> DialogueEncoder | ChatGLMEncoder:
    """Return what turns dialogues into token ids for the model of a tokenizer."""
    if isinstance(tokenizer, ChatGLMTokenizer):
        return ChatGLMEncoder(tokenizer, run, length)
    return DialogueEncoder(tokenizer, run, length)


def question_of(turn: Turn) -> str:
    """Return the question and what it is about, one behind the other."""
    return turn.question + turn.input
