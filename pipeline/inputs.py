"""What goes into a run: its model's configuration and weights, a tokenizer, data, perhaps an adapter."""

from functools import cached_property
from pathlib import Path
from typing import Any

from config import Run
from data.dialogue_records import Dialogue
from data.preferences import DPO, Pair
from data.task import Task
from model import hub
from model.registry import architecture_of
from model.tokenizers.base import Tokenizer
from model.tokenizers.bpe import BytePairTokenizer
from model.tokenizers.chatglm import ChatGLMTokenizer
from model.tokenizers.ends import set_chatglm_ends, set_ends
from model.tokenizers.files import TOKENIZER_FILES, has_tokenizer_files, library_files, refuse_sentencepiece
from model.tokenizers.load import tokenizer_beside
from peft.huggingface.read import adapter_folder
from pipeline.result import data_sha256, files_sha256
from training.checkpoints import TRAINED
from utils.errors import UserError


class Inputs:
    """The inputs of a complete run. Each is found once, when it is first asked for; a UserError says why it can't be."""

    def __init__(self, run: Run, task: Task, model_config: Any):
        self.run, self.task, self.model_config = run, task, model_config

    @cached_property
    def splits(self) -> dict[str, list]:
        """Return all texts by split."""
        return self.task.splits(self.run)

    @property
    def trained_too(self) -> list[str]:
        """Return notes on held-out dialogues that are in the training part too; of pairs of answers, on their prompts."""
        if not self.task.has_dialogues or not self.run.num_epochs:
            return []
        keys = {name: [key_of(one) for one in some] for name, some in self.splits.items()}
        trained = {*keys.get("train", ()), *keys.get("auxiliary", ())}
        counts = {name: sum(key in trained for key in keys.get(name, ())) for name in ("validation", "test", "general")}
        what = "prompts" if self.run.objective == DPO else "dialogues"
        return [f"{n} of {len(keys[name])} {name} {what} are in the training part too" for name, n in counts.items() if n]

    @cached_property
    def tokenizer_folder(self) -> Path:
        """Return where the tokenizer's files lie."""
        return find_tokenizer_folder(self.run, self.model_config)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer. The model has an embedding for each of its tokens."""
        return read_tokenizer(self.tokenizer_folder, self.model_config)

    @cached_property
    def weights_sha256(self) -> str | None:
        """Return a hash of the weights that the run begins with; None where it draws them."""
        if self.run.weights == "random":
            return None
        files = hub.locate(self.run.source).glob("*.safetensors")
        return files_sha256(file for file in files if file.name != TRAINED)  # a run may have its model's directory

    @cached_property
    def adapter_sha256(self) -> str:
        """Return a hash of the files of --adapter."""
        return files_sha256(map(adapter_folder(self.run.adapter).joinpath, hub.ADAPTER_FILES))

    @cached_property
    def hashes(self) -> dict[str, str | None]:
        """Return a hash of each input: an earlier result is one of this run only if they are the same."""
        hashes = {
            "weights_sha256": self.weights_sha256,
            "data_sha256": data_sha256(self.splits),
            "tokenizer_sha256": files_sha256(library_files(self.tokenizer_folder).values()),
        }
        return hashes | ({"adapter_sha256": self.adapter_sha256} if self.run.adapter else {})


def key_of(one: Dialogue | Pair) -> tuple:
    """Return what makes two dialogues, or the prompts of two pairs of answers, equal."""
    if isinstance(one, Pair):
        return one.system, one.prompt
    return one.system, tuple(turn[:3] for turn in one.turns)


def find_tokenizer_folder(run: Run, model_config: Any) -> Path:
    """Return where the run's vocabulary lies: in --tokenizer, else beside the model or the data, else in the hub's cache.

    A published model's vocabulary, and that of a checkpoint that comes without one, is also looked for in `tokenizers/`, in
    the data directory and beside it. Raises UserError where there is none.
    """
    if run.tokenizer:
        return Path(run.tokenizer)
    own = Path(run.checkpoint) if run.checkpoint else hub.local(run.model) or hub.cached(run.model, TOKENIZER_FILES)
    if own and has_tokenizer_files(own):
        return own
    if own:
        refuse_sentencepiece(own)
    others = _other_folders(run, model_config)
    for folder in others:
        if has_tokenizer_files(folder):
            return _of_the_same_size(folder, model_config)
    try:
        if run.model:
            return hub.locate(run.model, files=TOKENIZER_FILES)
        found = hub.locate(architecture_of(model_config).vocabulary_model, files=TOKENIZER_FILES)
    except UserError as error:
        looked = ", ".join(map(str, [own, *others] if own else others)) or "the cache"
        raise UserError(f"no tokenizer files in {looked}: pass --tokenizer DIR ({error})") from None
    return _of_the_same_size(found, model_config)


def _other_folders(run: Run, model_config: Any) -> list[Path]:
    """Return where the vocabulary of the model's kind may lie beside the data."""
    if not run.data_dir or not (run.checkpoint or run.model in hub.REPOSITORIES):
        return []
    name = architecture_of(model_config).vocabulary_folder
    return [Path(folder) / "tokenizers" / name for folder in (run.data_dir, Path(run.data_dir).parent)]


def _of_the_same_size(folder: Path, model_config: Any) -> Path:
    """Return the folder. Raises UserError where its vocabulary, which isn't the model's own, is of another size."""
    size = read_tokenizer(folder, model_config).vocab_size
    if size != model_config.vocab_size:
        raise UserError(
            f"the model has {model_config.vocab_size} tokens and no tokenizer beside it, and the tokenizer in {folder} has "
            f"{size}, so it is another one: pass --tokenizer DIR"
        )
    return folder


def read_tokenizer(folder: Path, model_config: Any) -> Tokenizer:
    """Return the tokenizer in a folder. Raises UserError, also where it has more tokens than the model has embeddings."""
    tokenizer = tokenizer_beside(folder, architecture_of(model_config).tokenizer).from_directory(folder)
    if tokenizer.vocab_size > model_config.vocab_size:
        raise UserError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens, the model only {model_config.vocab_size}"
        )
    if isinstance(tokenizer, BytePairTokenizer) and hasattr(tokenizer, "end_of_text") and hasattr(model_config, "end_ids"):
        set_ends(tokenizer, model_config)
    if isinstance(tokenizer, ChatGLMTokenizer):
        set_chatglm_ends(tokenizer, model_config)
    return tokenizer
