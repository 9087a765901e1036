"""The model of an earlier run, from what the run left in its directory."""

import copy
import shutil
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch import nn

import peft
from config import Run, resolve
from data.chat import ChatTask
from data.registry import get_task
from model.hub import REPOSITORIES, TOKENIZER_FILES, local
from model.tokenizers.base import Tokenizer
from model.weights import read_safetensors, save_pretrained
from peft.huggingface.write import check_expressible, fold_bias, write_adapter
from peft.targets import Added
from pipeline import answers
from pipeline.execute import build_model
from pipeline.job import adapter_fingerprint, find_tokenizer, weights_fingerprint
from pipeline.result import read_result, write_json
from published.plans import stages_of
from train import pick_device
from utils.errors import UserError


@dataclass(frozen=True)
class Saved:
    """A model with what belongs to it."""

    run: Run  # resolved, as it was trained
    model: nn.Module  # on the CPU, in evaluation mode, what the method added folded in where it can be
    tokenizer: Tokenizer
    source: str  # what it is, in a few words


def load_run(directory: str | Path, merged: bool = True) -> Saved:
    """What `directory`, the --output_dir of a run, holds. An interrupted run counts too. Raises UserError.

    Without `merged`, what the method added stays as it was added.
    """
    directory = Path(directory)
    result, file = read_result(directory), directory / "trained.safetensors"
    if result is None:
        what = "has no result.json of a run" if directory.is_dir() else "is no directory"
        raise UserError(f"{directory} {what}; name the --output_dir of an earlier run, such as runs/NAME")
    if not file.is_file():
        raise UserError(
            f"{directory} has no {file.name}, so nothing of what was trained; train again with that --output_dir"
        )
    if unknown := result["config"].keys() - {one.name for one in fields(Run)}:
        raise UserError(f"{directory}/result.json has settings that are unknown here: {', '.join(sorted(unknown))}")
    run = Run(**result["config"])
    if not run.source or not run.dataset:
        raise UserError(f"{directory}/result.json doesn't name the model and the dataset of the run")
    task = get_task(run.dataset)
    run = resolve(run, task.recipe_for(run.model or ""))  # fields that are newer than the run are at their defaults
    check_weights(run, result, directory)
    tensors, metadata = read_safetensors(file)
    model = build_model(run, len(task.labels))
    stages = stages_reached(run, metadata, len(model.blocks), file)
    with torch.device("meta"):  # before memory is taken that the settings ask for: do they fit what was trained?
        attach_and_fill(shapes_of(model), stages, {name: tensor.to("meta") for name, tensor in tensors.items()})
    attach_and_fill(model, stages, tensors)
    tokenizer, _ = find_tokenizer(run, model.config.vocab_size)
    model = peft.merge(model) if merged else model
    model.eval()
    return Saved(run, model, tokenizer, f"{run.source}, {run.trainable_layers} on {run.dataset}")


def shapes_of(model: nn.Module) -> nn.Module:
    """A copy on the meta device, which takes no memory."""
    return copy.deepcopy(model, {id(p): nn.Parameter(torch.empty_like(p, device="meta")) for p in model.parameters()})


def check_weights(run: Run, result: dict, directory: Path) -> None:
    """What was trained means something only on the weights that it was trained on."""
    known = result.get("weights_sha256")
    if known and weights_fingerprint(run) not in (None, known):
        raise UserError(f"{run.source} has other weights than when {directory} was trained on it; train again")
    known = result.get("adapter_sha256")
    if known and run.adapter and adapter_fingerprint(run) != known:
        raise UserError(f"--adapter {run.adapter} has changed since {directory} was trained on it; train again")


def stages_reached(run: Run, metadata: dict[str, str], n_blocks: int, file: Path) -> list[Run]:
    """The run's stages; of an interrupted run only those that it had finished when the tensors were written, and the one
    in which it was."""
    stages = stages_of(run, n_blocks)
    try:
        finished = int(metadata.get("stages", len(stages)))
    except ValueError:
        raise UserError(f"{file} has come through {metadata['stages']!r} stages, which is no number; train again") from None
    reached = stages[: max(0, finished) + ("step" in metadata)]
    if not reached:
        raise UserError(f"{file} has come through {finished} stages; train again")
    return reached


def attach_and_fill(model: nn.Module, stages: list[Run], tensors: dict[str, torch.Tensor]) -> None:
    """The methods of the stages, one after the other as in `train_stages`, and then the trained tensors. In place."""
    whole, attached = model.blocks, None
    for stage in stages:
        method = peft.method_of(stage)
        if method != attached:
            peft.attach(peft.merge(model), method)
            attached = method
    if len(stages) > 1:
        for name, parameter in model.named_parameters():  # the file has those of earlier stages too
            parameter.requires_grad_(parameter.requires_grad or name in tensors)
    peft.restore(model, tensors)
    model.blocks = whole[: stages[-1].depth or len(whole)]


def export_adapter(directory: str | Path, out: Path) -> str:
    """Writes what a run trained as an adapter of the library peft. Returns how it is loaded there."""
    saved = load_run(directory, merged=False)
    run, name = saved.run, published_name(saved.run)
    if run.weights == "random":
        raise UserError(f"{directory} began with random weights, which no published model has; use --export_model")
    base = build_model(run, len(get_task(run.dataset).labels))
    about = dict(zip(("base_model_name_or_path", "revision"), name, strict=True))
    write_adapter(saved.model, base, out, about)
    return f"PeftModel.from_pretrained({their_class(saved.model, name[0])}, {str(out)!r})" + how_to_read(saved)


def export_model(directory: str | Path, out: Path) -> str:
    """Writes the model of a run, with what was trained folded in, as a checkpoint. Returns how it is loaded there."""
    saved = load_run(directory)
    if any(isinstance(one, Added) for one in saved.model.modules()):
        raise UserError(f"no published layer can hold what {saved.run.trainable_layers} adds; it stays in {directory}")
    check_expressible(saved.model)
    fold_bias(saved.model)
    save_pretrained(saved.model, out)
    for file in find_tokenizer(saved.run, saved.model.config.vocab_size)[1].iterdir():
        if file.name in TOKENIZER_FILES:
            shutil.copy(file, out)
    return their_class(saved.model, str(out), resized=False) + how_to_read(saved)


def published_name(run: Run) -> tuple[str, str | None]:
    """What the library finds the run's model by: a repository and its revision, or a directory."""
    if (folder := local(run.source)) is not None:
        return str(folder.resolve()), None
    name, _, revision = run.source.partition("@")
    return REPOSITORIES.get(name, (name,))[0], revision or None


def their_class(model: nn.Module, name: str, resized: bool = True) -> str:
    """The line of Python that loads the model in transformers; `resized` if its head isn't the published one."""
    if model.head.kind == "lm":
        return f"AutoModelForCausalLM.from_pretrained({name!r})"
    labels = f", num_labels={model.head.classifier.out_features}, ignore_mismatched_sizes=True" if resized else ""
    return f"AutoModelForSequenceClassification.from_pretrained({name!r}{labels})"


def how_to_read(saved: Saved) -> str:
    """GPT-2's classifier there reads the last token that isn't padding."""
    if saved.model.config.causal and saved.model.head.kind == "classifier":
        if saved.model.head.position == "last" and not saved.run.no_padding:
            return "; give it no padding and no pad_token_id: this run's classifier reads the last position, whatever it is"
        return f"; then set its config.pad_token_id to {saved.tokenizer.pad_id}"
    return ""


def evaluate_answers(directory: str | Path, count: int, device: str | None = None) -> dict:
    """What `--eval_generate count` adds to a run, for one that has ended. Returns its `result.json` with the scores."""
    answers.need_scorers()
    saved, directory = load_run(directory), Path(directory)
    task, result = get_task(saved.run.dataset), read_result(directory)
    if not isinstance(task, ChatTask):
        raise UserError(f"{directory} was trained on {task.name}, which has no dialogues to answer")
    if result.get("interrupted"):
        raise UserError(f"{directory} holds an interrupted run; end it with --resume first")
    run = replace(saved.run, eval_generate=count)
    model = saved.model.to(pick_device(device or "auto"))
    scores = answers.answer_and_score(model, run, task.splits(run), saved.tokenizer, directory)
    result |= scores | {"config": asdict(run)}
    write_json(directory / "result.json", result)
    return result
