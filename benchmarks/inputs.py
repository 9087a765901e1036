"""Writes what both sides read: checkpoints with drawn weights, and texts."""

import csv
import random
from pathlib import Path

import torch

from config import Run
from data.files import TextExample
from data.registry import get_task
from data.spam import FILE, LABELS
from model import config_of
from model.distilbert import DistilBert, DistilBertConfig
from model.gpt2 import GPT2, GPT2Config, init_gpt2
from model.heads import published_init
from model.llama import Llama, LlamaConfig
from model.registry import architecture_of
from model.tokenizers.files import LIBRARY_PAIR, copy_tokenizer, has_tokenizer_files, library_files
from model.weights import save_pretrained
from pipeline.inputs import find_tokenizer_folder
from utils.errors import UserError

SEED = 123


def write_drawn(
    directory: Path, config: GPT2Config | LlamaConfig, head: bool = False, device: torch.device | str = "cpu"
) -> Path:
    """Write a model without a tokenizer, unless it is there: a GPT-2 drawn as GPT-2 was, a Llama as torch draws layers.

    head     with a classifier
    device   where it is drawn. A GPU draws the largest in a second, and other numbers than the CPU
    """
    if (directory / "model.safetensors").exists():
        return directory
    torch.manual_seed(SEED)
    with torch.device(device):
        model = init_gpt2(GPT2(config)) if isinstance(config, GPT2Config) else Llama(config)
    if head:
        add_classifier(model)
        if model.head.classifier.bias is not None:
            torch.nn.init.zeros_(model.head.classifier.bias)  # transformers' has none
    save_pretrained(model, directory)
    return directory


def write_gpt2(
    directory: Path,
    data_dir: str | None,
    head: bool = False,
    config: GPT2Config | None = None,
    device: torch.device | str = "cpu",
) -> Path:
    """Write a GPT-2 as `write_drawn` does, and its tokenizer. config: None is the smallest published size."""
    write_drawn(directory, config or GPT2Config(), head, device)
    if not has_tokenizer_files(directory):  # another suite may have written the model
        add_tokenizer(directory, LIBRARY_PAIR, data_dir)
    return directory


def write_distilbert(directory: Path, data_dir: str | None) -> Path:
    """Write DistilBERT at its published size with a classifier, drawn as the published library draws it."""
    if (directory / "model.safetensors").exists():
        return directory
    torch.manual_seed(SEED)
    model = DistilBert(DistilBertConfig())
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            published_init(module)
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=0.02)
    add_classifier(model)
    save_pretrained(model, directory)
    add_tokenizer(directory, ("vocab.txt",), data_dir)
    return directory


def add_classifier(model: torch.nn.Module) -> None:
    """Put a classifier of two classes on the model, drawn as the published library draws it. In place."""
    kind = architecture_of(model.config)
    model.head = kind.classifier_head(model.config, 2, kind.position, False)


def add_tokenizer(directory: Path, names: tuple[str, ...], data_dir: str | None) -> None:
    """Copy a tokenizer beside a model, found as a run finds it, so that both sides read the same files.

    Raises UserError where the tokenizer isn't in the files that the peers read, `names`.
    """
    folder = find_tokenizer_folder(Run(checkpoint=str(directory), data_dir=data_dir), config_of(directory))
    if not library_files(folder).keys() >= {*names}:
        raise UserError(f"{folder} has no {' + '.join(names)}, which the peers read; name another with --data_dir")
    copy_tokenizer(folder, directory, names)


def spam_texts(data_dir: str | None, directory: Path, n_spam: int | None) -> tuple[list[str], Path]:
    """Return the flags with which ours reads the messages, and the folder with the same splits as CSV.

    n_spam   that many spam and as many ham messages, drawn; None: the collection as it is.
    """
    flags = ["--dataset", "spam", *(["--data_dir", str(Path(data_dir).resolve())] if data_dir else [])]
    splits = get_task("spam").read(Path(data_dir) if data_dir else None)
    if n_spam is not None:
        pools = [[one for split in splits.values() for one in split if one.label == label] for label in range(len(LABELS))]
        drawn = [one for pool in pools for one in draw(pool, n_spam)]
        write_collection(drawn, directory / FILE)
        flags = ["--dataset", "spam", "--data_dir", str(directory)]
        splits = get_task("spam").read(directory)
    return flags, write_csv(splits, directory / "csv")


def sst2_texts(data_dir: str | None, directory: Path, n_train: int, fraction: float) -> tuple[list[str], Path]:
    """Return the same for SST-2, with n_train training texts and that part of the development sentences."""
    splits = get_task("sst2").read(Path(data_dir) if data_dir else None)
    held_out = splits["validation"]
    chosen = {
        "train": draw(splits["train"], n_train),
        "validation": draw(held_out, max(1, round(fraction * len(held_out)))),
    }
    folder = directory / "glue_sst2"
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in (("train", "train.tsv"), ("validation", "dev.tsv")):
        lines = ["sentence\tlabel", *(f"{one.text}\t{one.label}" for one in chosen[name])]
        (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ["--dataset", "sst2", "--data_dir", str(directory)], write_csv(chosen, directory / "csv")


def draw(pool: list[TextExample], size: int) -> list[TextExample]:
    """Return `size` texts drawn from the pool, in their old order. Raises UserError where there are fewer."""
    if size > len(pool):
        raise UserError(f"{size} texts are wanted of {len(pool)}; choose a --fraction of at most 1")
    return [pool[i] for i in sorted(random.Random(SEED).sample(range(len(pool)), size))]


def write_collection(examples: list[TextExample], path: Path) -> None:
    """Write examples as the SMS collection is laid out: label, tab, text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows((LABELS[one.label], one.text) for one in examples)


def write_csv(splits: dict[str, list[TextExample]], directory: Path) -> Path:
    """Write a file per split, NAME.csv, with the columns Label and Text, which the peers read. Return the folder."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, examples in splits.items():
        with (directory / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("Label", "Text"))
            writer.writerows((one.label, one.text) for one in examples)
    return directory
