"""Two tasks of GLUE (Wang et al. 2018), and the shipped stand-in for the first of them.

SST-2 is the sentiment of film reviews, RTE whether one text follows from another. GLUE keeps the labels of its test sets to
itself, so both end at the validation split.
"""

from functools import partial
from pathlib import Path

from data.download import download_from_zip, find, has_sha256
from data.files import TextExample, at_least_one, has_labels, make_example, read_lines, read_tsv, shown
from data.task import DISTILBERT_POCKET, Task
from utils.errors import UserError

SENTIMENTS = ("negative", "positive")
ENTAILMENTS = ("entailment", "not_entailment")
FILES = {"train": "train.tsv", "validation": "dev.tsv"}
SST2_FOLDER, RTE_FOLDER = "glue_sst2", "glue_rte"
SENTIMENT_FILE = Path("sentiment") / "sentences.tsv"  # below data/pocket

read_sst2_file = partial(read_tsv, columns=("sentence",), labels=("0", "1"))
read_rte_file = partial(read_tsv, columns=("sentence1", "sentence2"), labels=ENTAILMENTS)

SST2_URLS = ("https://dl.fbaipublicfiles.com/glue/data/SST-2.zip",)
SST2_MEMBERS = {
    "SST-2/train.tsv": has_sha256("48eac26399f8456935f81dd9e3a745c1430adb6c62e233ccfe22db4a0d15d1d1"),
    "SST-2/dev.tsv": has_sha256("54a9c12c77e402fc14d6a66a506f24d999f596b0176eb777c972cccc2f9cc4b0"),
}
RTE_URLS = ("https://dl.fbaipublicfiles.com/glue/data/RTE.zip",)
RTE_MEMBERS = {
    "RTE/train.tsv": has_labels(read_rte_file, (1249, 1241)),
    "RTE/dev.tsv": has_labels(read_rte_file, (146, 131)),
}


def read_sst2(data_dir: Path | None) -> dict[str, list[TextExample]]:
    """Return 67,349 phrases and sentences to train, 872 sentences to validate. Most texts end in a space, which stays."""
    download = partial(download_from_zip, SST2_URLS, SST2_MEMBERS)
    return {split: read_sst2_file(find(data_dir, Path(SST2_FOLDER) / name, download)) for split, name in FILES.items()}


def read_rte(data_dir: Path | None) -> dict[str, list[TextExample]]:
    """Return 2,490 pairs of a text and a statement to train, 277 to validate."""
    download = partial(download_from_zip, RTE_URLS, RTE_MEMBERS)
    return {split: read_rte_file(find(data_dir, Path(RTE_FOLDER) / name, download)) for split, name in FILES.items()}


def read_pocket(data_dir: Path | None) -> dict[str, list[TextExample]]:
    """Return the shipped, synthetic sentences."""
    return read_sentences(Path(__file__).parent / "pocket" / SENTIMENT_FILE)


def read_sentences(path: Path) -> dict[str, list[TextExample]]:
    """Return the splits of a file with lines of split, tab, label, tab, sentence. Raises UserError."""
    splits: dict[str, list[TextExample]] = {"train": [], "validation": [], "test": []}
    names = ("split", "label", "sentence")
    for place, line in read_lines(path):
        row = line.split("\t")
        if len(row) != len(names) or row[0] not in splits:
            raise UserError(
                f"{place}: expected {', '.join(splits)}, a tab, a label, a tab and a sentence, got {shown(row)}"
            )
        record = dict(zip(names, row, strict=True))
        splits[row[0]].append(make_example(place, record, ("sentence",), "label", SENTIMENTS))
    for name, examples in splits.items():
        at_least_one(f"{path}: the split {name}", examples)
    return splits


# The logs tell how many steps of how many texts were taken. What they don't tell is taken to be the default of the Hugging
# Face Trainer, whose output they are: AdamW, 5e-5 falling linearly to 0, no weight decay, gradients clipped at norm 1, seed
# 42; and of its library peft: alpha 8. Each limit on the length cuts no text, in tokens of BERT, SciBERT or RoBERTa.
TRAINER = {
    "learning_rate": 5e-5,
    "weight_decay": 0.0,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.0,
    "max_grad_norm": 1.0,
    "dropout": 0.1,
    "no_padding": True,
    "data_order": "bucketed",
    "trainable_layers": "all",
    "lora_rank": 8,
    "lora_alpha": 8.0,
    "lora_scaling": "alpha/r",
    "lora_init": "kaiming",
    "lora_target": "attn.q,attn.v",
    "lora_dropout": 0.0,
    "seed": 42,
}
# The DistilBERT log: 4.24 steps a second for 496.6 seconds are two epochs in batches of 64. Its first LoRA has alpha 32.
SST2_RECIPE = TRAINER | {"num_epochs": 2, "batch_size": 64, "lora_alpha": 32.0, "context_length": "128"}
# The RoBERTa notes: 468 steps, three epochs of batches of 16.
RTE_RECIPE = TRAINER | {"num_epochs": 3, "batch_size": 16, "context_length": "320"}

STAND_IN, POCKET_MODEL = "sentiment-pocket", "distilbert-pocket"
# Chosen on the shipped validation split, for all layers: a model this small wants larger steps (at 1e-3 some seeds fail).
MODEL_RECIPES = {DISTILBERT_POCKET: {"learning_rate": 5e-4}}
MORE_EPOCHS = {"num_epochs": 6}  # of 1,576 sentences; two are 50 steps
DISTILBERT, ROBERTA = ("distilbert-base-uncased", POCKET_MODEL), ("roberta-base", POCKET_MODEL)
# Of 67,349 training texts the accuracy in training says enough.
SST2_TRAINING = SST2_RECIPE | {"eval_train": "no"}
SST2 = Task("sst2", SENTIMENTS, read_sst2, SST2_TRAINING, MODEL_RECIPES, SST2_FOLDER, shipped=STAND_IN, models=DISTILBERT)
SENTIMENT_POCKET = Task(STAND_IN, SENTIMENTS, read_pocket, SST2_RECIPE | MORE_EPOCHS, MODEL_RECIPES, models=DISTILBERT)
RTE = Task("rte", ENTAILMENTS, read_rte, RTE_RECIPE, MODEL_RECIPES, RTE_FOLDER, shipped=STAND_IN, models=ROBERTA)
TASKS = (SST2, SENTIMENT_POCKET, RTE)
