"""Talking to a language model: `--generate` answers one question, `--chat` goes on until it is told to stop."""

import sys
from collections.abc import Iterator
from dataclasses import asdict, replace

import torch

import model as models
from config import Run, explicit, override, resolve
from data.chat import Encoder
from data.dialogues import Dialogue, Turn
from data.registry import get_task
from model.generation import NOTHING, Sampling, stream
from pipeline.job import DEFAULT_DATASET, choose_model, find_tokenizer
from pipeline.reload import Saved, load_run
from train import pick_device
from utils.errors import UserError

OF_THE_MODEL = ("model", "checkpoint", "tokenizer", "data_dir", "weights")
OF_THE_ANSWER = ("template", "source_prefix", "device", "seed")  # with a trained model too


class Speaker:
    """A model, its prompt template, and the dialogue so far.

    What is too long for the context is cut by one rule: the oldest turns go, until the answer has room for its
    `max_new_tokens`, or for half the context where that is less. A question that is too long by itself is an error.
    """

    def __init__(self, saved: Saved, how: dict, device: torch.device):
        self.saved, self.sampling = saved, Sampling(**how)
        self.model = saved.model.to(device)
        self.device, self.context = device, saved.model.config.context_length
        if getattr(saved.model.head, "kind", None) != "lm" or not hasattr(saved.tokenizer, "end_of_text"):
            raise UserError(f"{saved.source} doesn't write; choose a GPT-2, or a run that was trained on dialogues")
        self.encoder = Encoder(saved.tokenizer, saved.run, self.context)
        self.turns: tuple[Turn, ...] = ()

    def prompt(self, question: str) -> list[int]:
        """Token ids of the dialogue up to where the answer begins. Forgets what there is no room for."""
        asked, room = Turn(question, "", ""), min(self.sampling.max_new_tokens, self.context // 2)
        while True:
            ids = self.encoder.prompt(Dialogue((*self.turns, asked)))
            if len(ids) + room <= self.context or not self.turns:
                break
            self.turns = self.turns[1:]
        if len(ids) >= self.context:
            raise UserError(f"the question takes {len(ids)} tokens with its template; the context is {self.context} tokens")
        return ids

    def answer(self, question: str) -> Iterator[str]:
        """Yields the answer piece by piece as it is written, and then keeps the turn."""
        ids = torch.tensor([self.prompt(question)], device=self.device)
        tokenizer, written, shown = self.saved.tokenizer, [], ""
        seed = self.saved.run.seed + len(self.turns)
        for tokens in stream(self.model, ids, eos_id=tokenizer.end_of_text, seed=seed, **asdict(self.sampling)):
            token = int(tokens[0])
            assert token != NOTHING, "the stream of one text ends with it"
            written.append(token)
            text = tokenizer.decode(written)
            if not text.endswith("\ufffd"):  # else a character of several tokens isn't complete yet
                yield text[len(shown) :]
                shown = text
        text = tokenizer.decode(written)
        if len(text) > len(shown):
            yield text[len(shown) :]
        self.turns = (*self.turns, Turn(question, "", text))


def speaker(wanted: Run, directory: str | None, how: dict) -> Speaker:
    """Of an earlier run, or of the model that was named, or else of the default one."""
    possible = OF_THE_ANSWER if directory else OF_THE_MODEL + OF_THE_ANSWER
    if useless := [name for name in explicit(wanted) if name not in possible]:
        where = f"a trained model ({directory})" if directory else "a model as it is"
        raise UserError(f"--{useless[0]} changes no answer of {where}; what does: --{', --'.join(possible)}")
    device = pick_device(wanted.device or "auto")
    saved = load_run(directory) if directory else untrained(wanted)
    return Speaker(replace(saved, run=override(saved.run, wanted)), how, device)


def untrained(wanted: Run) -> Saved:
    """The model as it comes: the one that was named, else the default one. Raises UserError."""
    run, reason = choose_model(wanted, get_task(DEFAULT_DATASET["gpt2"]))
    run = resolve(run, {"seed": 123})
    model = models.from_pretrained(run.source, head="lm", random_weights=run.weights == "random", seed=run.seed)
    tokenizer, _ = find_tokenizer(run, model.config.vocab_size)
    return Saved(run, model.eval(), tokenizer, f"{run.source} ({reason})")


def write(pieces: Iterator[str]) -> None:
    """Pieces of an answer to standard output, as they come."""
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)


def generate_once(question: str, wanted: Run, directory: str | None, how: dict) -> int:
    """The answer goes to standard output, what gave it to standard error."""
    if not question.strip():
        raise UserError("--generate is empty; write a question behind it")
    one = speaker(wanted, directory, how)
    print(f"model    {one.saved.source}", file=sys.stderr, flush=True)
    write(one.answer(question))
    return 0


def talk(wanted: Run, directory: str, how: dict) -> int:
    """Questions from standard input, until /quit, the end of the input, or Ctrl-C."""
    one = speaker(wanted, directory, how)
    print(f"model    {one.saved.source}; /quit, Ctrl-D or Ctrl-C ends this", flush=True)
    while True:
        try:
            question = input("> ").strip()
            if question == "/quit":
                return 0
            if question:
                write(one.answer(question))
        except UserError as error:  # one question too long, say, is no reason to end
            print(f"error: {error}", flush=True)
        except (EOFError, KeyboardInterrupt):
            print(flush=True)
            return 0
