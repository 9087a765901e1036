"""What a run has trained, in the files of the published libraries: an adapter for peft, a checkpoint for transformers."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from config import Run
from model.base_precision import dequantize
from model.hub import ADAPTER_FILES, CLASSIFIER_FILE, REPOSITORIES, local
from model.tokenizers.bpe import BytePairTokenizer
from model.tokenizers.files import copy_tokenizer, library_files
from model.weights import save_pretrained
from peft.attach import merge
from peft.huggingface.write import check_expressible, fold_bias, write_adapter
from peft.targets import Added
from pipeline.build import build_model
from pipeline.reload import TrainedRun, load_run
from pipeline.stored import write_own
from utils.errors import UserError
from utils.files import check_holds_only


def export_adapter(directory: str | Path, out: Path) -> str:
    """Write what a run trained as an adapter of the library peft. Return how it is loaded there. Raises UserError."""
    trained = load_run(directory, merged=False)
    run = trained.run
    if run.weights == "random":
        raise UserError(f"{directory} began with random weights, which no published model has; use --export_model")
    name, revision = published_name(run)
    dequantize(trained.model)
    base = dequantize(build_model(run, len(trained.inputs.task.labels)))
    check_destination(out, [*ADAPTER_FILES, CLASSIFIER_FILE], trained, "--export_peft")
    write_adapter(trained.model, base, out, {"base_model_name_or_path": name, "revision": revision})
    write_reading(trained, out, trained.inputs.task.labels)
    return f"PeftModel.from_pretrained({loading_line(trained, name)}, {str(out)!r})" + advice(trained)


def export_model(directory: str | Path, out: Path) -> str:
    """Write the model of a run, with what was trained folded in, and its tokenizer as a checkpoint in Hugging Face layout.

    Returns how it is loaded there. Raises UserError.
    """
    trained = load_run(directory)
    if any(isinstance(module, Added) for module in trained.model.modules()):
        raise UserError(f"no published layer can hold what {trained.run.trainable_layers} adds; it stays in {directory}")
    check_expressible(trained.model)
    merge(dequantize(trained.model))  # whose adapters aren't folded in yet where the base is in fewer bits
    tokenizer_folder = trained.inputs.tokenizer_folder
    names = ["config.json", "model.safetensors", *library_files(tokenizer_folder)]
    names += [CLASSIFIER_FILE] if trained.model.head.kind == "classifier" else []
    check_destination(out, names, trained, "--export_model")
    fold_bias(trained.model)
    if trained.model.head.kind == "classifier":
        trained.model.head.labels = trained.inputs.task.labels
    trained.model.config = config_with_ends(trained)
    save_pretrained(trained.model, out)
    copy_tokenizer(tokenizer_folder, out)
    write_reading(trained, out)
    return loading_line(trained, str(out), resized=False) + advice(trained, written=True)


def check_destination(out: Path, names: Iterable[str], trained: TrainedRun, flag: str) -> None:
    """Raise UserError where the export can't be the whole of a directory, or would replace what the run began with."""
    run = trained.run
    sources = [local(run.source), Path(run.adapter) if run.adapter else None, trained.inputs.tokenizer_folder]
    if any(source and source.is_dir() and out.is_dir() and source.samefile(out) for source in sources):
        raise UserError(
            f"{flag} {out} is what the run began with, and is read to load the run again; name another directory"
        )
    if file := next((one for one in (out, *out.parents) if one.exists() and not one.is_dir()), None):
        raise UserError(f"{flag} {out} can't be written: {file} is a file; name a directory")
    check_holds_only(out, names, flag)


def config_with_ends(trained: TrainedRun) -> Any:
    """Return the configuration of a run's model with the tokens that the run took for the end and the padding of a text."""
    config, tokenizer = trained.model.config, trained.inputs.tokenizer
    if not isinstance(tokenizer, BytePairTokenizer) or not hasattr(config, "end_ids"):
        return config
    end = tokenizer.end_of_text
    start = config.start_id if end in config.end_ids else end
    pads = tokenizer.pad_id != end or config.pad_id is not None or trained.model.head.kind == "classifier"
    pad = tokenizer.pad_id if pads and not sees_padding(trained) else None
    return replace(config, start_id=start, end_ids=tokenizer.end_ids, pad_id=pad)


def write_reading(trained: TrainedRun, out: Path, labels: tuple[str, ...] | None = None) -> None:
    """Write beside an export what its own files can't say of its classifier."""
    if trained.model.head.kind == "classifier":
        write_own(out, trained.run, trained.model.config.causal, labels, trained.padded_to)


def published_name(run: Run) -> tuple[str, str | None]:
    """Return what the library finds the run's model by: a repository and its revision, or a directory and None."""
    folder = local(run.source)
    if folder is not None:
        return str(folder.resolve()), None
    name, _, revision = run.source.partition("@")
    return REPOSITORIES.get(name, (name,))[0], revision or None


def loading_line(trained: TrainedRun, name: str, resized: bool = True) -> str:
    """Return the line of Python that loads the model in transformers; `resized`: its head isn't the published one.

    An adapter's format has no place for the names of labels, so the line has them.
    """
    if trained.model.head.kind == "lm":
        return f"AutoModelForCausalLM.from_pretrained({name!r})"
    labels = dict(enumerate(trained.inputs.task.labels))
    numbers = {label: number for number, label in labels.items()}
    more = f", id2label={labels}, label2id={numbers}, ignore_mismatched_sizes=True" if resized else ""
    return f"AutoModelForSequenceClassification.from_pretrained({name!r}{more})"


def sees_padding(trained: TrainedRun) -> bool:
    """Return whether the run's classifier reads the last position of a GPT-2, padding or not."""
    head = trained.model.head
    reads_last = head.kind == "classifier" and head.position == "last" and trained.model.config.causal
    return reads_last and not trained.run.no_padding


def advice(trained: TrainedRun, written: bool = False) -> str:
    """Return what to do about padding: GPT-2's classifier there reads the last token that isn't padding.

    written    the configuration that was written says which token that is
    """
    if not trained.model.config.causal or trained.model.head.kind != "classifier":
        return ""
    if trained.model.prompt is not None:
        return "; give it texts without padding: behind a prompt, its classifier reads the last position, whatever it is"
    if sees_padding(trained):
        return "; give it no padding and no pad_token_id: this run's classifier reads the last position, whatever it is"
    if written:
        return ""
    return f"; then set its config.pad_token_id to {trained.inputs.tokenizer.pad_id}"
