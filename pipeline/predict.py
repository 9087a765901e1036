"""What a trained classifier says of new texts, computed as an evaluation computes it.

    from pipeline.predict import load_predictor

    predictor = load_predictor("runs/NAME")
    print(predictor("a fine film").label)

A `Predictor` takes one text, or streams any number of them; `pipeline/predictions.py` is its command, `--predict`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch

from config import Run, explicit, override, resolve
from data.batching import Example, collate
from data.encode import TextEncoder, make_text_encoder
from data.own import Columns
from model import canonical_name, config_of, fast_path, from_pretrained, is_out_of_memory
from model.transformer import Transformer
from pipeline.inputs import find_tokenizer_folder, read_tokenizer
from pipeline.job import check_adapter_is_named, check_model_is_named_once
from pipeline.reload import load_run, read_run
from pipeline.stored import StoredClassifier, stored_classifier
from training.device import autocast, pick_amp, pick_device
from utils.errors import UserError

WINDOW = 32  # batches whose texts are held at once, and sorted by length
MOST_TOKENS_CPU, MOST_TOKENS = 1024, 2**16  # of a batch, padding included; a processor gains nothing from larger ones
MACHINE_FLAGS = ("device", "amp", "eval_batch_size")  # settings that change no label, beyond rounding
COLUMN_FLAGS = ("text_column", "pair_column")  # of a file with texts
MODEL_FLAGS = ("model", "checkpoint", "tokenizer", "data_dir", "context_length")  # of a classifier that no run trained

Text = str | tuple[str, str]  # a text, or a pair of texts


class Prediction(NamedTuple):
    """What a classifier says of a text. Of a text with nothing in it, it says nothing: both are None."""

    label: str | None
    probabilities: dict[str, float] | None  # of every label; they add up to 1
    is_cut: bool = False  # whether the text had more tokens than the classifier reads


class Predictor:
    """A classifier with all that is needed to ask it. `load_predictor` makes one.

    labels           the names of its classes, in their order
    pairs            whether it was trained on pairs of texts; None: that isn't known
    columns          those that its settings name, of a file with texts
    trained_columns  those in which its texts stood when it was trained; None: that isn't known
    """

    def __init__(
        self,
        model: Transformer,
        encoder: TextEncoder,
        run: Run,
        labels: tuple[str, ...],
        description: str,
        pairs: bool | None = None,
        notes: tuple[str, ...] = (),
        trained_columns: Columns | None = None,
    ):
        self.device = pick_device(run.device)
        self.model, self.encoder = model.to(self.device).eval(), encoder
        self.amp, self.batch_size = pick_amp(run.amp, self.device), run.eval_batch_size
        self.labels, self.description, self.pairs, self.notes = labels, description, pairs, notes
        self.columns, self.trained_columns = Columns(run.text_column, run.pair_column, run.label_column), trained_columns

    def __call__(self, text: str, pair: str | None = None) -> Prediction:
        """Return the prediction for one text, or for one pair. Raises UserError."""
        (found,) = self.stream([text if pair is None else (text, pair)])
        return found

    def stream(self, texts: Iterable[Text]) -> Iterator[Prediction]:
        """Yield the prediction for each text, in their order. Raises UserError."""
        for predictions in self.windows(texts, WINDOW * self.batch_size):
            yield from predictions

    def windows(self, texts: Iterable[Text], size: int) -> Iterator[list[Prediction]]:
        """Yield the predictions for `size` texts at a time, which is how many are held at once. Raises UserError.

        Where `texts` fails with a UserError, the texts before have their predictions first.
        """
        texts, failure, is_over = iter(texts), None, False
        while not is_over and failure is None:
            examples: list[Example | None] = []
            try:
                for text in islice(texts, size):
                    examples.append(self.encode(text))
            except UserError as error:
                failure = error
            is_over = len(examples) < size
            if examples:
                yield self.predict(examples)
        if failure is not None:
            raise failure

    def encode(self, text: Text) -> Example | None:
        """Return what the model reads of a text or a pair; None where a text is empty. Raises UserError."""
        parts = (text,) if isinstance(text, str) else text
        if self.pairs is not None and self.pairs != (len(parts) == 2):
            read, given = ("pairs of texts", "one text") if self.pairs else ("single texts", "a pair of texts")
            raise UserError(f"{self.description} reads {read}, and this is {given}: {parts[0][:40]!r}")
        if not all(part.strip() for part in parts):
            return None
        ids = [self.encoder.tokenizer.encode(part) for part in parts]
        example = self.encoder.example(ids[0], ids[1] if len(ids) == 2 else None, label=0)
        return example if example.ids else None

    @torch.no_grad()
    def predict(self, examples: list[Example | None]) -> list[Prediction]:
        """Return the prediction for each example, in their order. Raises UserError where memory runs out."""
        found = [Prediction(None, None)] * len(examples)
        for numbers, some in self.batches(examples):
            batch = collate(some, self.encoder.tokenizer.pad_id, self.encoder.pad_to)
            try:
                with autocast(self.amp, self.device):
                    scores = fast_path.class_scores(self.model, batch.to(self.device)).cpu()  # [B, C]
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                raise UserError(f"out of memory on {self.device}: choose --eval_batch_size below {len(some)}") from None
            winners, probabilities = scores.argmax(dim=-1).tolist(), scores.double().softmax(dim=-1).tolist()
            for number, example, winner, row in zip(numbers, some, winners, probabilities, strict=True):
                by_label = dict(zip(self.labels, row, strict=True))
                found[number] = Prediction(self.labels[winner], by_label, example.is_cut)
        return found

    def batches(self, examples: list[Example | None]) -> Iterator[tuple[list[int], list[Example]]]:
        """Yield the examples in batches of similar length, the longest first, and their numbers. None is left out."""
        there = [(number, example) for number, example in enumerate(examples) if example is not None]
        there.sort(key=lambda one: len(one[1].ids), reverse=True)
        most = MOST_TOKENS_CPU if self.device.type == "cpu" else MOST_TOKENS
        while there:
            width = self.encoder.pad_to or len(there[0][1].ids)
            size = max(1, min(self.batch_size, most // width))
            numbers, some = zip(*there[:size], strict=True)
            yield [*numbers], [*some]
            there = there[size:]


# --- loading


def load_predictor(source: str | Path, **settings) -> Predictor:
    """Return the predictor of an earlier run, or of a model with a classifier of its own.

    source     the --output_dir of a run, a directory in Hugging Face layout, or a model's name
    settings   fields of `Run`: MACHINE_FLAGS, and for a model MODEL_FLAGS

    Raises UserError.
    """
    if (Path(source) / "result.json").is_file():
        return predictor_of_run(source, Run(**settings))
    named = Run(checkpoint=str(source)) if Path(source).is_dir() else Run(model=str(source))
    return predictor_of_model(override(named, Run(**settings)))


def predictor_of_run(directory: str | Path, overrides: Run) -> Predictor:
    """Return the predictor of the run with this --output_dir, an interrupted one too. Raises UserError."""
    refuse_others(overrides, (*MACHINE_FLAGS, *COLUMN_FLAGS), f"a trained model ({directory})")
    run, inputs, _ = read_run(Path(directory))
    if len(inputs.task.labels) < 2:
        raise UserError(f"{directory} was trained on {inputs.task.name}, which has no classes to predict; try --generate")
    device = pick_device(overrides.device or "auto").type
    amp = run.amp if run.amp == "off" or device == run.device else "auto"
    run = override(replace(run, device=device, amp=amp), overrides)
    pick_amp(run.amp, pick_device(device))  # before weights are read
    trained = load_run(directory)
    notes = [f"of the run: {said}" for said in trained.result.get("warnings", ())]
    notes += ["the run was interrupted, and the model is as it was then"] if trained.result.get("interrupted") else []
    encoder, pairs = trained.text_encoder, trained.texts["pairs"]
    columns = columns_of(trained.result)
    return Predictor(trained.model, encoder, run, inputs.task.labels, trained.description, pairs, tuple(notes), columns)


def columns_of(result: dict) -> Columns | None:
    """Return the columns that a run's texts stood in, or None where its result doesn't say so."""
    said = result.get("columns")
    text, pair = (said.get("text"), said.get("pair")) if isinstance(said, dict) else (None, None)
    return Columns(text, pair) if isinstance(text, str) and isinstance(pair, str | None) else None


def predictor_of_model(run: Run) -> Predictor:
    """Return the predictor of the classifier that comes with --checkpoint or --model. Raises UserError."""
    refuse_others(run, (*MODEL_FLAGS, *MACHINE_FLAGS, *COLUMN_FLAGS), "a classifier as it is")
    check_model_is_named_once(run)
    check_adapter_is_named(run)
    run = replace(run, model=run.model and canonical_name(run.model))
    source = run.source or ""
    stored = stored_of(run, source)
    length = run.context_length or stored.padded_to
    run = resolve(run, {**stored.reading, "context_length": str(length or "model_context_length"), "amp": "off"})
    config = config_of(source)
    if length and str(length).isdecimal() and int(length) > config.context_length:
        raise UserError(f"--context_length is {length}, the model's context {config.context_length}; choose at most that")
    tokenizer = read_tokenizer(find_tokenizer_folder(run, config), config)
    encoder = make_text_encoder(run, tokenizer, config, config.context_length)
    if encoder.pad_to is not None and length is None:
        raise UserError(
            f"{source} reads texts with their padding and doesn't say how long they are padded; say it with "
            "--context_length, or name the run by --run_dir"
        )
    position = {"position": run.trainable_token_pos, "average": run.average_embeddings}
    model = from_pretrained(source, head="classifier", num_labels=stored.n_labels, **position)
    if model.drawn:
        raise UserError(f"{source} lacks {', '.join(model.drawn)} of its classifier, which would be drawn")
    labels = stored.names or tuple(map(str, range(stored.n_labels)))
    return Predictor(model, encoder, run, labels, f"{source} ({', '.join(labels)})", notes=stored.notes)


def stored_of(run: Run, source: str) -> StoredClassifier:
    """Return the classifier of a model that is named. Raises UserError where it has none, or none that chooses a class."""
    stored = stored_classifier(run, config_of(source))
    if stored is None:
        raise UserError(
            f"{source} has no classifier with weights, so it has nothing to predict; name a run by --run_dir, or a "
            "--checkpoint that was exported from one"
        )
    if stored.n_labels < 2:
        raise UserError(f"{source} has a classifier with one output, a score; what is predicted are classes")
    if stored.names and len({*stored.names}) < stored.n_labels:
        note = "two of its labels have the same name, so they are called by their numbers"
        return replace(stored, names=None, notes=(*stored.notes, note))
    return stored


def refuse_others(run: Run, possible: tuple[str, ...], what: str) -> None:
    """Raise UserError for the first setting that changes nothing of a prediction."""
    for name in explicit(run):
        if name not in possible:
            raise UserError(f"--{name} changes no prediction of {what}; what does: --{', --'.join(possible)}")
