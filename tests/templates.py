"""Small valid inputs of every kind, for `tests/fuzz.py` to break: checkpoints, data sets, an archive, runs."""

import contextlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import experiments
from data.domains import INTENTS, POLARITIES
from data.glue import ENTAILMENTS, SENTIMENTS
from tests.conftest import make_checkpoint, make_encoder, write_messages

QUESTIONS = ("Who are you?", "Where do you live?", "What do you like?", "Why, naïve 海?")


def make_templates(folder: Path) -> None:
    folder.mkdir()
    make_texts(folder)
    make_dialogues(folder)
    make_checkpoints(folder)
    make_runs(folder)


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_texts(folder: Path) -> None:
    messages = write_messages(folder / "spam" / "sms_spam" / "SMSSpamCollection", 10)
    sentences = [f"a film that is {word}" for word in ("good", "bad", "dull", "naïve", "海", "fun")]
    for split in ("train", "dev"):
        labelled = [f"{sentence} \t{i % 2}" for i, sentence in enumerate(sentences)]
        write(folder / "sst2" / "glue_sst2" / f"{split}.tsv", "sentence\tlabel", *labelled)
        pairs = [f"{i}\t{sentence}\t{sentences[0]}\t{ENTAILMENTS[i % 2]}" for i, sentence in enumerate(sentences)]
        write(folder / "rte" / "glue_rte" / f"{split}.tsv", "index\tsentence1\tsentence2\tlabel", *pairs)
    for split in ("train", "dev", "test"):
        records = [{"text": sentence, "label": INTENTS[i]} for i, sentence in enumerate(sentences)]
        write(folder / "acl_sup" / "acl_sup" / f"{split}.jsonl", *map(json.dumps, records))
        reviews = {
            str(i): {"term": "film", "sentence": sentence, "polarity": POLARITIES[i % 3]}
            for i, sentence in enumerate(sentences)
        }
        write(folder / "restaurant_sup" / "restaurant_sup" / f"{split}.json", json.dumps(reviews, indent=1))
    news = [f'"{i % 4 + 1}","Title","{sentence}, ""quoted"""' for i, sentence in enumerate(sentences)]
    write(folder / "agnews_sup" / "agnews_sup" / "test.csv", *news)
    splits = ("train", "validation", "test") * 2
    rows = [f"{splits[i]}\t{SENTIMENTS[i % 2]}\t{sentence}" for i, sentence in enumerate(sentences)]
    write(folder / "sentences" / "sentences.tsv", *rows)
    (folder / "archive").mkdir()
    with zipfile.ZipFile(folder / "archive" / "texts.zip", "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.write(messages, "texts/SMSSpamCollection")
        bundle.writestr("readme", "about")


def make_dialogues(folder: Path) -> None:
    records = [
        {"instruction": question, "input": "", "output": "I am Ada.", "history": [[QUESTIONS[0], "Tea."]] * (i % 3)}
        for i, question in enumerate(QUESTIONS * 3)
    ]
    for record, split in zip(records, ("train", "validation", "held_out"), strict=False):
        record["split"] = split
    messages = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": question},
                {"role": "assistant", "content": "Old maps."},
            ]
        }
        for question in QUESTIONS * 3
    ]
    write(folder / "list" / "dialogues.json", json.dumps(records))
    write(folder / "lines" / "dialogues.jsonl", *map(json.dumps, records))
    write(folder / "messages" / "dialogues.jsonl", *map(json.dumps, messages))


def make_checkpoints(folder: Path) -> None:
    text = " ".join(QUESTIONS) + (folder / "list" / "dialogues.json").read_text(encoding="utf-8")
    make_checkpoint(folder / "gpt2", text, n_merges=20)
    for kind in ("bert", "roberta", "distilbert"):
        make_encoder(folder / kind, kind, folder / "sst2", labels=SENTIMENTS)
    shutil.copytree(folder / "gpt2", folder / "sharded")
    whole = folder / "sharded" / "model.safetensors"
    tensors, files = load_file(whole), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    names = sorted(tensors)
    where = {name: files[2 * i // len(names)] for i, name in enumerate(names)}
    whole.unlink()
    for file in files:
        save_file({name: tensors[name] for name in names if where[name] == file}, folder / "sharded" / file)
    write(folder / "sharded" / "model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "outside").mkdir()
    zeros = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    save_file(zeros, folder / "outside" / "model.safetensors")
    shutil.copytree(folder / "gpt2", folder / "one-file")
    vocab = json.loads((folder / "one-file" / "vocab.json").read_text(encoding="utf-8"))
    merges = (folder / "one-file" / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    end = {"content": "<|endoftext|>", "id": vocab.pop("<|endoftext|>"), "special": True}
    whole = {"added_tokens": [end], "model": {"type": "BPE", "vocab": vocab, "merges": merges}}
    for file in ("vocab.json", "merges.txt"):
        (folder / "one-file" / file).unlink()
    write(folder / "one-file" / "tokenizer.json", json.dumps(whole))


def make_runs(folder: Path) -> None:
    """Of one step each, by methods that are put together anew in different ways."""
    dialogues = ("--checkpoint", folder / "gpt2", "--dataset", folder / "list" / "dialogues.json")
    flags = {
        "lora": (*dialogues, "--trainable_layers", "lora+bitfit", "--lora_rank", 2, "--lora_target", "attn.q,mlp"),
        "prefix": (*dialogues, "--trainable_layers", "prefix", "--prefix_length", 3, "--prefix_projection"),
        "stages": (*dialogues, "--stages", "layer_by_layer"),
    }
    for name, chosen in flags.items():
        same = ("--max_steps", 1, "--device", "cpu", "--output_dir", folder / name)
        with contextlib.redirect_stdout(io.StringIO()):
            assert experiments.main([*map(str, chosen), *map(str, same)]) == 0
