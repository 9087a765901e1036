"""Make small classifiers of the library."""

import json
import shutil
from pathlib import Path

import torch
import transformers

from tests.helpers.small import make_checkpoint, make_encoder

PAD = {"gpt2": 0, "roberta": 1}  # the others have 0 too


def make_body(folder: Path, kind: str, small_data: Path, encoder_data: Path) -> Path:
    if kind == "gpt2":
        return make_checkpoint(folder, (small_data / "sms_spam" / "SMSSpamCollection").read_text())
    return make_encoder(folder, kind, encoder_data)


def make_classifier(folder: Path, body: Path, kind: str, names: tuple[str, ...]) -> transformers.PreTrainedModel:
    """Save a drawn classifier of the library with the body's tokenizer. Its weights are large: every position matters."""
    shutil.copytree(body, folder)
    settings = json.loads((body / "config.json").read_text()) | {"pad_token_id": PAD.get(kind, 0)}
    settings |= {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    config = transformers.AutoConfig.for_model(**settings)
    torch.manual_seed(4)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model
