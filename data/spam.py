"""SMS spam (Almeida et al. 2011, UCI data set 228): 5,572 messages, balanced to 747 ham + 747 spam, split 70/10/20."""

from functools import partial
from pathlib import Path

import numpy as np

from data.download import download_from_zip, find, has_sha256
from data.files import TextExample, read_quoted
from data.task import GPT2_POCKET, Task
from utils.errors import UserError

FILE = Path("sms_spam") / "SMSSpamCollection"  # within a data directory, and within our cache
SHA256 = "7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d"
URLS = (
    "https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
    "https://f001.backblazeb2.com/file/LLMs-from-scratch/sms%2Bspam%2Bcollection.zip",
)
LABELS = ("ham", "spam")
BEGINNINGS = ("ham\t", "spam\t")
PUBLISHED_QUOTE = 'ham\t"Keep ur problems in ur heart, '  # whose text runs over two more lines in the published split
SPLIT_SEED = 123  # of the published split, whatever the seed of the run


def read_spam(data_dir: Path | None) -> dict[str, list[TextExample]]:
    """Return the published split of the real messages, from `data_dir`, else from our cache (downloaded once)."""
    download = partial(download_from_zip, URLS, {FILE.name: has_sha256(SHA256)})
    return split(read_collection(find(data_dir, FILE, download)))


def read_pocket(data_dir: Path | None) -> dict[str, list[TextExample]]:
    """Return the shipped, synthetic messages, split in the same way."""
    return split(read_collection(Path(__file__).parent / "pocket" / FILE))


def read_collection(path: Path) -> list[TextExample]:
    """Return the examples of a file with lines of label, tab, text. Raises UserError.

    It is read with csv's default quoting, as the published split was (5,572 of 5,574 lines).
    """
    examples = []
    for place, row in read_quoted(path, swallows, delimiter="\t"):
        if len(row) != 2 or row[0] not in LABELS or not row[1].strip():
            raise UserError(f"{place}: expected ham or spam, a tab and a text, got {str(row)[:80]}")
        examples.append(TextExample(row[1], LABELS.index(row[0])))
    spam = sum(example.label for example in examples)
    ham = len(examples) - spam
    if not 5 <= spam <= ham:
        raise UserError(f"{path} has {ham} ham and {spam} spam messages: needed are at least 5 spam, and no fewer ham")
    return examples


def swallows(lines: list[str]) -> bool:
    """Return whether a quote joined several messages. In the collection itself one does, and stays as published."""
    published = len(lines) == 3 and lines[0].startswith(PUBLISHED_QUOTE)
    return not published and any(line.startswith(BEGINNINGS) for line in lines[1:])


def split(examples: list[TextExample]) -> dict[str, list[TextExample]]:
    """Return as many ham as spam messages, split into 70, 10 and 20 per cent.

    The published split was made with pandas: sample(random_state=123) draws `RandomState(123).choice` without
    replacement, once for the ham and twice, each time afresh, to shuffle.
    """
    ham = [example for example in examples if example.label == 0]
    spam = [example for example in examples if example.label == 1]

    def sample(pool: list[TextExample], size: int) -> list[TextExample]:
        return [pool[i] for i in np.random.RandomState(SPLIT_SEED).choice(len(pool), size, replace=False)]

    balanced = sample(ham, len(spam)) + spam
    for _ in range(2):
        balanced = sample(balanced, len(balanced))
    train_end = int(len(balanced) * 0.7)
    validation_end = train_end + int(len(balanced) * 0.1)
    return {
        "train": balanced[:train_end],
        "validation": balanced[train_end:validation_end],
        "test": balanced[validation_end:],
    }


# The published script's settings; its LoRA multiplies by alpha and draws A wide, on every Linear layer, the head's too.
RECIPE = {
    "learning_rate": 5e-5,
    "weight_decay": 0.1,
    "lr_scheduler_type": "constant",
    "warmup_ratio": 0.0,
    "num_epochs": 5,
    "batch_size": 8,
    "trainable_layers": "last_block",
    "context_length": "longest_training_example",
    "lora_rank": 8,
    "lora_alpha": 8.0,
    "lora_scaling": "alpha",
    "lora_init": "wide",
    "lora_target": "all",
    "lora_dropout": 0.0,
    "seed": 123,
}
# Chosen on the shipped validation split, for row 1: a model this small wants larger steps, and steps this large a decay.
MODEL_RECIPES = {GPT2_POCKET: {"learning_rate": 1e-3, "lr_scheduler_type": "linear"}}

SPAM = Task("spam", LABELS, read_spam, RECIPE, MODEL_RECIPES, FILE.parent.name, shipped="spam-pocket")
SPAM_POCKET = Task("spam-pocket", LABELS, read_pocket, RECIPE, MODEL_RECIPES)
TASKS = (SPAM, SPAM_POCKET)
