"""What the rest of the program has to know about a kind of model."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from model.generation import Sampling
from model.names import Entry
from model.tokenizers.base import Tokenizer
from model.transformer import Transformer

LIKELIEST = Sampling()


@dataclass(frozen=True)
class Answering:
    """How held-out dialogues are answered, to be scored (`pipeline/answers.py`)."""

    sampling: Sampling = LIKELIEST  # an answer is as long as that where --max_target_length doesn't say
    max_length: int = sys.maxsize  # tokens of a prompt and its answer together, within the context
    room: int = sys.maxsize  # tokens that a long prompt leaves free for its answer; half of all at most
    measures: str = "words"  # by which answers are scored: a name of MEASURES in pipeline/answers.py


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One kind of model, the `model_type` of config.json."""

    model_type: str
    model: Callable[[Any], Transformer]  # the class, called with a configuration
    config: type
    names: list[Entry]
    prefix: str  # of the body's tensors in a published file
    settings: dict[str, str]  # fields of the configuration here -> settings in config.json
    written_settings: Callable[[Any], dict[str, Any]]  # settings of config.json that are written and not read
    fixed_settings: Callable[[Any], dict[str, tuple]]  # settings -> the values that are allowed, the one to write first
    hf_classes: dict[str | None, str | None]  # kind of head -> the published library's class; None: there is none
    lm_head: Callable[[Any], nn.Module]  # (model)
    classifier_head: Callable[..., nn.Module]  # (config, num_labels, position, average); not called where there is none
    position: str  # which token a classifier reads, unless --trainable_token_pos says otherwise
    tokenizer: type[Tokenizer]  # with its special tokens
    vocabulary_model: str  # the published model whose vocabulary a checkpoint without one gets
    vocabulary_folder: str  # where that vocabulary lies below `tokenizers/` in a data directory
    default_dataset: str  # what a model of this kind is trained on where no --dataset is given
    read_settings: Callable[[dict], dict[str, Any]] = lambda settings: {}  # -> fields that follow from several settings
    settings_read: tuple[str, ...] = ()  # what that function reads
    recipe: dict[str, Any] = field(default_factory=dict)  # settings of runs that go before those of any task's recipe
    sampling: Sampling = LIKELIEST  # of --generate and --chat, where no flag says otherwise
    answering: Answering = field(default_factory=Answering)
    always_tied: bool = False  # whether a head in the files is left unread, as the published code does, equal or not

    @property
    def reads_last(self) -> bool:
        """Return whether the published classifiers read the last real token."""
        return self.position != "first"
