"""The logs in results/ of the runs that a command makes."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from config import Run
from data.registry import get_task
from model import config_of
from model.bert import BertConfig, RobertaConfig
from model.distilbert import DistilBertConfig
from model.llama import LlamaConfig
from pipeline.flags import parse_command
from pipeline.job import default_dataset
from pipeline.resolve import resolve_run
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
# What the measured checkpoints are, by the names of their directories (python -m tools.real_weights).
KINDS = {
    "smollm2-135m-instruct": LlamaConfig,
    "all-MiniLM-L6-v2": BertConfig,
    "minilm-roberta": RobertaConfig,
    "minilm-distil": DistilBertConfig,
    "minilm-distilbert-sst2": DistilBertConfig,
}
MACHINE = {"resume", "model", "checkpoint", "data_dir", "output_dir", "seed", "device", "amp"}


def logs_of(folder: str, typed: str) -> list[dict]:
    """Return the results of the runs in that folder that this command makes: one, or one for each seed."""
    asked = settings_of(parse_command(typed))
    logs = results_in(folder)
    # A log may be older than a flag; the flag's default is what runs did before there was one.
    logs = [log for log in logs if all(log["config"].get(name, value) == value for name, value in asked.items())]
    if not logs:
        raise UserError(f"results/{folder} has no run of: {typed}")
    return logs


def results_in(folder: str) -> list[dict]:
    """Return the results of every run below that folder of results/."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in result_files(folder)]


def result_files(folder: str) -> list[Path]:
    """Return every result.json below that folder of results/."""
    return sorted((ROOT / "results" / folder).glob("*/result.json"))


def settings_of(run: Run) -> dict:
    """Return every setting that the run resolves to, except those of the machine and those that vary within a row."""
    # Neither the model's directory nor the data need be there: the kind of model decides, and no text is read.
    config = KINDS[Path(run.checkpoint).name]() if run.checkpoint else config_of(run.source)
    run = replace(run, dataset=run.dataset or default_dataset(config))
    resolved = resolve_run(run, get_task(run.dataset), config)
    return {name: value for name, value in asdict(resolved).items() if name not in MACHINE}
