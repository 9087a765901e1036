"""Three tasks from as many domains, as Ke et al. (2022) use them, in full and few-shot.

They are the sentiment of restaurant reviews towards one aspect (SemEval-2014), the intent of citations (ACL-ARC), and the
topic of news (AG News).
"""

import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from data.download import download_file, find, has_sha256
from data.files import TextExample, make_example, parse_json, read_jsonl, read_quoted, read_text, shown
from data.glue import MODEL_RECIPES, POCKET_MODEL, SENTIMENTS, STAND_IN, TRAINER, read_pocket
from data.task import Task
from utils.errors import UserError

RAW = "https://raw.githubusercontent.com"

POLARITIES = ("positive", "negative", "neutral")
RESTAURANT_URL = f"{RAW}/shuitatata/24Fall-NLPDL/252d2e148a0e1aeb067b5eebc17468cc8343f4fc/hw2/data/SemEval14-res"
RESTAURANT_SHA256 = {
    "train.json": "c0834a0a8f02e9a328c166cbb61671615c8adbd0952f3d6b1dd5b9aa876f236b",
    "dev.json": "d8ff887eb051e8a7d8aae2356162533c801bbad1b70bb3aab107bccf8f2756ba",
    "test.json": "588d3f04badf0b4515686346f663cd8f541b3e15adc801e9968255b80d595a9e",
}

INTENTS = ("Background", "Uses", "CompareOrContrast", "Motivation", "Extends", "Future")
ACL_URL = f"{RAW}/allenai/scibert/06793f77d7278898159ed50da30d173cdc8fdea9/data/text_classification/citation_intent"
ACL_SHA256 = {
    "train.jsonl": "58eef60d2bbfdabefc3de25191714f769db03134523ef67e87d864112c67908c",
    "dev.jsonl": "bc456ac8caf40829dc2d3a44801a385ad8463c80682cbf002c19329b35812b5f",
    "test.jsonl": "749d083cc3141d54a2bf1475c02a5a1c020c664601d55fe2829bdf85f06db4bb",
}

TOPICS = ("World", "Sports", "Business", "Sci/Tech")  # 1 to 4 in the file
AGNEWS_FILE = Path("agnews_sup") / "test.csv"
AGNEWS_URL = f"{RAW}/mhjabreel/CharCnn_Keras/555590db4219b1243abb1918effd6a7425a2d75f/data/ag_news_csv/test.csv"
AGNEWS_SHA256 = "521465c2428ed7f02f8d6db6ffdd4b5447c1c701962353eb2c40d548c3c85699"
AGNEWS_SPLIT_SEED = 2022  # of the published split, whatever the seed of the run


def read_restaurant(data_dir: Path | None) -> dict[str, list[TextExample]]:
    """Return 3,452 / 150 / 1,120 pairs of an aspect's term and the sentence about it.

    The term comes first, as in the program that Xu et al. (2019, BERT-PT) published with this split; the log doesn't say.
    """
    splits = {}
    for split, name in (("train", "train.json"), ("validation", "dev.json"), ("test", "test.json")):
        download = partial(download_file, (f"{RESTAURANT_URL}/{name}",), has_sha256(RESTAURANT_SHA256[name]))
        splits[split] = read_aspects(find(data_dir, Path("restaurant_sup") / name, download))
    return splits


def read_aspects(path: Path) -> list[TextExample]:
    """Return the examples of a file with one JSON object: id -> {"term", "sentence", "polarity"}. Raises UserError."""
    records = parse_json(read_text(path), path)
    if not isinstance(records, dict) or not records:
        raise UserError(f"{path}: expected an object of records by their ids, got {shown(records)}")
    return [
        make_example(f"{path}, record {shown(name)}", record, ("term", "sentence"), "polarity", POLARITIES)
        for name, record in records.items()
    ]


def read_acl(data_dir: Path | None) -> dict[str, list[TextExample]]:
    """Return 1,688 / 114 / 139 sentences around a citation. The labels are in the order of their frequency."""
    splits = {}
    for split, name in (("train", "train.jsonl"), ("validation", "dev.jsonl"), ("test", "test.jsonl")):
        url = f"{ACL_URL}/{name.replace('.jsonl', '.txt')}"
        path = find(data_dir, Path("acl_sup") / name, partial(download_file, (url,), has_sha256(ACL_SHA256[name])))
        splits[split] = read_jsonl(path, ("text",), INTENTS)
    return splits


def read_agnews(data_dir: Path | None) -> dict[str, list[TextExample]]:
    """Return the 7,600 descriptions of AG News's test file, 6,840 to train and 760 to test."""
    path = find(data_dir, AGNEWS_FILE, partial(download_file, (AGNEWS_URL,), has_sha256(AGNEWS_SHA256)))
    return split_one_tenth(path, read_news(path))


def read_news(path: Path) -> list[TextExample]:
    """Return the examples of a CSV file without a header: class from 1 to 4, title (not used), description.

    Raises UserError.
    """
    labels = tuple(str(i + 1) for i in range(len(TOPICS)))
    names = ("class", "title", "description")
    examples = []
    for place, row in read_quoted(path, swallows, strict=True):
        if len(row) != len(names):
            raise UserError(f"{place}: expected {len(names)} columns ({', '.join(names)}), got {len(row)}: {shown(row)}")
        record = dict(zip(names, row, strict=True))
        examples.append(make_example(place, record, ("description",), "class", labels))
    return examples


def swallows(lines: list[str]) -> bool:
    """Return whether a quote joined several rows: a line behind the first is one by itself, from its class on."""
    return any(re.match('("[1-4]"|[1-4]),("|.*,)', line) for line in lines[1:])


def split_one_tenth(path: Path, examples: list[TextExample]) -> dict[str, list[TextExample]]:
    """Return the split that `train_test_split(test_size=0.1, seed=2022)` of the library datasets makes.

    Of one permutation the first tenth, rounded up, is the test split. Raises UserError.
    """
    if len(examples) < 2:
        raise UserError(f"{path} has {len(examples)} examples; a split needs at least 2")
    n_test = math.ceil(0.1 * len(examples))
    shuffled = [examples[i] for i in np.random.default_rng(AGNEWS_SPLIT_SEED).permutation(len(examples))]
    return {"train": shuffled[n_test:], "test": shuffled[:n_test]}


# The log names epochs, batch, learning rate, weight decay and five seeds, of which this is the first. It has no LoRA, and
# of the few-shot runs it tells the number of samples alone. The Trainer spares biases and norms the decay; we don't.
RECIPE = TRAINER | {"num_epochs": 3, "batch_size": 128, "learning_rate": 2e-5, "weight_decay": 0.01, "seed": 347913}
FEW_SHOT = {"num_epochs": 20, "batch_size": 8}  # ours: the log's would be three steps, which teach nothing
METRICS = ("accuracy", "macro_f1")
MODELS = ("bert-base-uncased", POCKET_MODEL)

FULL = tuple(
    Task(
        f"{name}_sup",
        labels,
        read,
        RECIPE | {"context_length": length},
        MODEL_RECIPES,
        folder=f"{name}_sup",
        shipped=STAND_IN,
        models=MODELS,
        metrics=METRICS,
    )
    for name, labels, read, length in (  # the lengths cut no text, in tokens of BERT, SciBERT or RoBERTa
        ("restaurant", POLARITIES, read_restaurant, "128"),
        ("acl", INTENTS, read_acl, "320"),
        ("agnews", TOPICS, read_agnews, "320"),
    )
)
SHIPPED_FS = f"{STAND_IN}_fs"
TASKS = (
    *FULL,
    *(
        replace(task, name=task.name[:-3] + "fs", recipe=task.recipe | FEW_SHOT, shipped=SHIPPED_FS, few_shot=True)
        for task in FULL
    ),
    Task(
        SHIPPED_FS, SENTIMENTS, read_pocket, RECIPE | {"context_length": "128"} | FEW_SHOT, MODEL_RECIPES,
        models=MODELS, metrics=METRICS, few_shot=True,
    ),
)  # fmt: skip
