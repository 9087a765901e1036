"""Write small valid inputs of every kind, which `tests/fuzz.py` breaks: checkpoints, data sets, an archive, runs."""

import contextlib
import io
import json
import os
import shutil
import signal
import zipfile
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file

import experiments
from data.domains import INTENTS, POLARITIES
from data.glue import ENTAILMENTS, SENTIMENTS
from model import fast_path
from pipeline import stages
from tests.helpers import chatglm_files
from tests.helpers.small import make_checkpoint, make_encoder, write_messages

QUESTIONS = ("Who are you?", "Where do you live?", "What do you like?", "Why, naïve 海?")


def make_templates(folder: Path) -> None:
    folder.mkdir()
    make_texts(folder)
    make_dialogues(folder)
    make_checkpoints(folder)
    make_runs(folder)
    make_interrupted(folder)
    make_adapters(folder)
    chatglm_files.make_templates(folder)


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
    own = [(f'"{sentence}, it\nis ""{i}"""', i % 2) for i, sentence in enumerate(sentences * 2)]
    write(folder / "own-csv" / "train.csv", "text,label", *(f"{text},{label}" for text, label in own))
    write(folder / "own-tsv" / "some.tsv", "label\tsentence", *(f"{label}\t{text}" for text, label in own))
    records = [{"text": text, "label": label, "split": splits[i % 6]} for i, (text, label) in enumerate(own * 2)]
    write(folder / "own-json" / "some.json", json.dumps(records))
    write(folder / "own-jsonl" / "some.jsonl", *map(json.dumps, records))
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
    """Train for one step each, by methods that a saved run rebuilds in different ways."""
    dialogues = ("--checkpoint", folder / "gpt2", "--dataset", folder / "list" / "dialogues.json")
    flags = {
        "lora": (*dialogues, "--trainable_layers", "lora+bitfit", "--lora_rank", 2, "--lora_target", "attn.q,mlp"),
        "prefix": (*dialogues, "--trainable_layers", "prefix", "--prefix_length", 3, "--prefix_projection"),
        "stages": (*dialogues, "--stages", "layer_by_layer"),
    }
    for name, chosen in flags.items():
        assert run(*chosen, "--max_steps", 1, "--output_dir", folder / name) == 0


def run(*flags: object) -> int:
    with contextlib.redirect_stdout(io.StringIO()):
        return experiments.main([*map(str, flags), "--device", "cpu"])


def interrupted_runs(folder: Path) -> dict[str, tuple]:
    """Return the names and flags of the interrupted runs. `folder` holds all templates."""
    same = ("--checkpoint", folder / "gpt2", "--dataset", folder / "list" / "dialogues.json", "--batch_size", 2)
    lora = ("--trainable_layers", "lora", "--lora_rank", 2, "--lora_target", "attn.q", "--early_stopping_patience", 9)
    return {
        "in-a-step": (*same, *lora, "--max_steps", 3, "--save_steps", 1, "--save_total_limit", 2, "--eval_steps", 1),
        "in-a-stage": (*same, "--stages", "layer_by_layer", "--max_steps", 2),
        "between-stages": (*same, "--stages", "layer_by_layer", "--max_steps", 1),
    }


def make_interrupted(folder: Path) -> None:
    """Stop runs in the second step, in the second stage and in front of it, for --resume to continue."""
    score, train_stage, calls = fast_path.loss, stages.StagedTraining.train, []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 4:  # texts for validation count too
            os.kill(os.getpid(), signal.SIGINT)
        return score(*given)

    def killed(training, number, stage, method):
        if number == 1:
            raise KeyboardInterrupt
        return train_stage(training, number, stage, method)

    for name, flags in interrupted_runs(folder).items():
        calls.clear()
        between = name == "between-stages"
        place, with_this = ((stages.StagedTraining, "train"), killed) if between else ((fast_path, "loss"), interrupted)
        where = patch.object(*place, with_this)
        with where, contextlib.suppress(KeyboardInterrupt):
            assert run(*flags, "--output_dir", folder / name) == 130
        assert (folder / name / "states").is_dir() != between and (folder / name / "trained.safetensors").is_file()


def make_adapters(folder: Path) -> None:
    """Export adapters in the Hugging Face library's format. Their names begin with the base model."""
    sentences = ("--dataset", "sst2", "--data_dir", folder / "sst2", "--max_steps", 1)
    flags = {
        "gpt2-lora": ("lora", "--lora_rank", 2, "--lora_target", "attn,mlp", "--trainable_token_pos", "flexible"),
        "distilbert-dora": ("dora", "--lora_rank", 2, "--lora_target", "attn.q,mlp"),
        "roberta-vera": ("vera", "--vera_rank", 3, "--lora_target", "attn.q,mlp"),
        "gpt2-hira": ("hira", "--lora_rank", 2, "--lora_target", "attn.v,mlp", "--trainable_token_pos", "flexible"),
        "bert-ia3": ("ia3",),
    }
    for name, (method, *chosen) in flags.items():
        base, where = folder / name.split("-")[0], folder / f"run-{name}"
        assert run("--checkpoint", base, *sentences, "--trainable_layers", method, *chosen, "--output_dir", where) == 0
        with contextlib.redirect_stdout(io.StringIO()):
            assert experiments.main(["--export_peft", str(folder / name), "--run_dir", str(where)]) == 0
    config = json.loads((folder / "gpt2" / "config.json").read_text(encoding="utf-8"))
    settings = {"peft_type": "PREFIX_TUNING", "task_type": "SEQ_CLS", "num_virtual_tokens": 3, "prefix_projection": False}
    write(folder / "gpt2-prefix" / "adapter_config.json", json.dumps(settings))
    prompt = torch.zeros(3, 2 * config["n_layer"] * config["n_embd"])
    save_file({"prompt_embeddings": prompt}, folder / "gpt2-prefix" / "adapter_model.safetensors")
