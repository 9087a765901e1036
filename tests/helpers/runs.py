"""Write directories that look like those of runs, sound and broken ones, without training anything."""

import json
from dataclasses import asdict
from pathlib import Path

from config import Run

# What a text of a data set may hold: a script's end, an event handler, line separators of JavaScript, half a character.
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
HOSTILE += "\u2028\u2029'&lt; {{data}}"
HALF = "\ud83d"  # of a surrogate pair


# By name, what no run writes as its result.json.
BROKEN = {"list": "[1, 2]", "cut": '{"model": "gp', "deep": "[" * 100_000, "no config": "{}", "bytes": "\ufeff"}


def settings(**changes) -> dict:
    """Return a run's settings as result.json has them."""
    chosen = {"model": "gpt2-pocket", "dataset": "spam", "trainable_layers": "lora", "lora_rank": 8, "seed": 123}
    return asdict(Run(**(chosen | {"num_epochs": 1, "learning_rate": 1e-3} | changes)))


def write_run(directory: Path, config: dict | None = None, **changes) -> Path:
    """Write the result.json of a run. `config` and `changes` replace settings and results."""
    config = settings(**(config or {}))
    result = {"model": config["model"], "dataset": config["dataset"], "method": config["trainable_layers"]}
    result |= {"seed": config["seed"], "test_accuracy": 0.9, "validation_accuracy": 0.8, "train_accuracy": None}
    result |= {"interrupted": False, "steps": 10, "train_seconds": 1.0, "total_seconds": 2.0, "trainable_parameters": 100}
    result |= {"total_parameters": 1000, "peak_memory_bytes": 10**8, "device": "cpu (x86_64, 1 threads)"}
    result |= {"argv": ["--dataset", config["dataset"]], "config": config, "weights_sha256": "a" * 64}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "result.json").write_text(json.dumps(result | changes), encoding="utf-8")
    return directory


def write_metrics(directory: Path, records: list[dict]) -> Path:
    """Write a metrics.jsonl of these records; what they lack is filled in."""
    base = {"epoch": 0, "split": "train", "loss": 1.0, "accuracy": 0.5}
    lines = [json.dumps(base | {"step": number} | record) + "\n" for number, record in enumerate(records, start=1)]
    (directory / "metrics.jsonl").write_text("".join(lines))
    return directory


def write_samples(directory: Path, samples: list[dict]) -> Path:
    """Write a samples.jsonl; what a sample lacks is filled in."""
    base = {"split": "test", "prompt": "Who are you?", "reference": "A kettle.", "answer": "A pot."}
    (directory / "samples.jsonl").write_text("".join(json.dumps(base | sample) + "\n" for sample in samples))
    return directory


def write_hostile_runs(root: Path) -> Path:
    """Write every kind of run that the report must show and survive."""
    labels = ["ham", HOSTILE]
    scores = {label: {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "texts": 4} for label in labels}
    more = {"test_per_class": scores, "test_confusion": [[3, 1], [2, 2]], "notes": [HOSTILE], "warnings": [HALF]}
    for seed in (123, 124):
        directory = write_run(root / f"sound-{seed}", {"seed": seed}, test_accuracy=0.9 + seed / 10_000, **more)
        write_metrics(directory, [{"loss": 2.0}, {"loss": float("nan")}, {"split": "validation", "loss": 1.5}])
    config = {"trainable_layers": "freeze", "dataset": "persona", "part": "mlp", "auxiliary_dataset": "general"}
    chat = write_run(root / "chat" / HOSTILE.replace("/", "|"), config, test_loss=3.0, general_loss=4.0)
    write_samples(chat, [{"prompt": HOSTILE + HALF, "answer": HOSTILE}] * 30)
    odd = {"test_accuracy": float("nan"), "total_seconds": float("inf"), "seed": 2**62 + 1, "argv": [HOSTILE]}
    write_run(root / "nan", **odd, dataset=HOSTILE)
    write_run(root / "unfinished", interrupted=True, model=None)
    directory = write_run(root / "odd" / "#1 50%?:é中 \" '")
    odd = {"config": {"a": [1], "seed": "x" * 10_000, "constructor": 1}, "stages": [1, {}], "argv": 7, "notes": {}}
    odd |= {"test_per_class": [1], "test_confusion": "none", "__proto__": 2, "interrupted": False}
    (directory / "result.json").write_text(json.dumps(odd))
    for name, text in BROKEN.items():
        (root / name).mkdir()
        (root / name / "result.json").write_text(text, encoding="utf-8")
    return root
