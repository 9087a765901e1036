"""Talking to a language model: `--generate` answers one question, `--chat` goes on until it is told to stop."""

import sys
from collections.abc import Iterator
from dataclasses import asdict, replace

import torch
from torch import nn

from config import Run, explicit, override, resolve
from data.chatglm_encoder import make_encoder
from data.dialogues import Dialogue, Turn
from data.registry import get_task
from model import from_pretrained
from model.generation import NOTHING, Sampling, stream
from model.kv_cache import KVCache
from model.registry import ARCHITECTURES, architecture_of
from model.tokenizers.base import Tokenizer
from pipeline.flags import typed
from pipeline.inputs import find_tokenizer_folder, read_tokenizer
from pipeline.job import check_adapter_is_named, choose_model
from pipeline.reload import load_run
from training.device import pick_device
from utils.errors import UserError

MODEL_FLAGS = ("model", "checkpoint", "tokenizer", "data_dir", "weights")
ANSWER_FLAGS = ("template", "source_prefix", "device", "seed")  # these change the answers of a trained model too


class Speaker:
    """A model, its prompt template, and the dialogue so far.

    What is too long for the context is cut by one rule: the oldest turns go, until the answer has room for its
    `max_new_tokens`, or for half the context where that is less. A question that is too long by itself is an error.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Tokenizer, run: Run, description: str, sampling: dict, device: torch.device
    ):
        """`sampling` are fields of `Sampling`; the others are as the model's kind has them (model/registry.py)."""
        if getattr(model.head, "kind", None) != "lm" or not hasattr(tokenizer, "end_of_text"):
            raise UserError(f"{description} doesn't write; choose a GPT-2, a Llama, or a run on dialogues")
        self.model, self.tokenizer = model.to(device), tokenizer
        own = architecture_of(model.config).sampling
        self.sampling, self.seed = replace(own, **sampling), run.seed
        for name in () if self.sampling.temperature else ("top_k", "top_p"):
            if name in sampling and sampling[name] != getattr(Sampling, name):
                raise UserError(
                    f"--{name} {sampling[name]} changes nothing where the likeliest token is always taken "
                    "(--temperature 0); choose a --temperature too, such as 1"
                )
        self.description = description + ("" if own == Sampling() else f"; {described(self.sampling)}")
        self.device, self.context_length = device, model.config.context_length
        self.encoder = make_encoder(tokenizer, run, self.context_length)
        self.turns: tuple[Turn, ...] = ()
        self.cache = KVCache(model)  # of the dialogue: each turn goes on from the last one

    def prompt(self, question: str) -> list[int]:
        """Return the token ids of the dialogue up to where the answer begins. Forgets turns that there is no room for."""
        new_turn = Turn(question, "", "")
        room = min(self.sampling.max_new_tokens, self.context_length // 2)
        ids = self.encoder.prompt(Dialogue((*self.turns, new_turn)))
        while self.turns and len(ids) + room > self.context_length:
            self.turns = self.turns[1:]
            ids = self.encoder.prompt(Dialogue((*self.turns, new_turn)))
        if len(ids) >= self.context_length:
            raise UserError(
                f"the question takes {len(ids)} tokens with its template; the context is {self.context_length} tokens"
            )
        return ids

    def answer(self, question: str) -> Iterator[str]:
        """Yield the answer piece by piece as it is written. At its end the turn becomes part of the dialogue."""
        ids = torch.tensor([self.prompt(question)], device=self.device)  # [1, T]
        written, shown = [], ""
        seed = self.seed + len(self.turns)
        how = {"eos_id": self.encoder.end_ids, "seed": seed, "cache": self.cache, **asdict(self.sampling)}
        for tokens in stream(self.model, ids, **how):
            token = int(tokens[0])
            assert token != NOTHING, "the stream of one text ends with it"
            written.append(token)
            text = self.tokenizer.decode(written)
            if not text.endswith("\ufffd"):  # else a character of several tokens isn't complete yet
                text = self.encoder.shown(text, is_complete=False)
                yield text[len(shown) :]
                shown = text
        text = self.encoder.shown(self.tokenizer.decode(written), is_complete=True)
        if len(text) > len(shown):
            yield text[len(shown) :]
        self.turns = (*self.turns, Turn(question, "", text))


def described(sampling: Sampling) -> str:
    """Return in words how an answer is chosen."""
    return ", ".join(f"{name} {value:g}" for name, value in asdict(sampling).items() if value != getattr(Sampling, name))


def make_speaker(overrides: Run, directory: str | None, sampling: dict) -> Speaker:
    """Return a speaker with the model of an earlier run, else with the model that was named, else with the default one.

    overrides   what the flags say; directory: the --output_dir of the earlier run; sampling: fields of `Sampling`
    """
    possible = ANSWER_FLAGS if directory else MODEL_FLAGS + ANSWER_FLAGS
    if useless := [name for name in explicit(overrides) if name not in possible]:
        where = f"a trained model ({directory})" if directory else "a model as it is"
        raise UserError(f"--{useless[0]} changes no answer of {where}; what does: --{', --'.join(possible)}")
    Sampling(**sampling)  # what it refuses is refused before a model is read
    device = pick_device(overrides.device or "auto")
    if directory is None:
        return untrained_speaker(overrides, sampling, device)
    trained = load_run(directory)
    run = override(trained.run, overrides)
    return Speaker(trained.model, trained.inputs.tokenizer, run, trained.description, sampling, device)


def untrained_speaker(overrides: Run, sampling: dict, device: torch.device) -> Speaker:
    """Return a speaker with a model as it comes. Raises UserError."""
    check_adapter_is_named(overrides)
    run, reason = choose_model(overrides, get_task(ARCHITECTURES["gpt2"].default_dataset))
    run = resolve(run, {"seed": 123})
    model = from_pretrained(run.source, head="lm", random_weights=run.weights == "random", seed=run.seed)
    tokenizer = read_tokenizer(find_tokenizer_folder(run, model.config), model.config)
    return Speaker(model.eval(), tokenizer, run, f"{run.source} ({reason})", sampling, device)


def print_pieces(pieces: Iterator[str]) -> None:
    """Print the pieces of an answer as they come."""
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)


def generate_once(question: str, overrides: Run, directory: str | None, sampling: dict) -> int:
    """Print the answer to one question on standard output, and on standard error what gave it."""
    if not question.strip():
        raise UserError("--generate is empty; write a question behind it")
    speaker = make_speaker(overrides, directory, sampling)
    print(f"model    {speaker.description}", file=sys.stderr, flush=True)
    if speaker.encoder.note:
        print(f"note     {speaker.encoder.note}", file=sys.stderr, flush=True)
    print_pieces(speaker.answer(question))
    return 0


def talk(overrides: Run, directory: str, sampling: dict) -> int:
    """Answer questions from standard input, until /quit, the end of the input, or Ctrl-C."""
    speaker = make_speaker(overrides, directory, sampling)
    print(f"model    {speaker.description}; /quit, Ctrl-D or Ctrl-C ends this", flush=True)
    if speaker.encoder.note:
        print(f"note     {speaker.encoder.note}", flush=True)
    while True:
        try:
            question = typed(input("> "), "the question").strip()
            if question == "/quit":
                return 0
            if question:
                print_pieces(speaker.answer(question))
        except UserError as error:  # a question that is too long, say, is no reason to end
            print(f"error: {error}", flush=True)
        except (EOFError, KeyboardInterrupt):
            print(flush=True)
            return 0
