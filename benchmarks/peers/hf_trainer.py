"""A classifier trained by transformers' Trainer at plain defaults, with peft where LoRA is asked for. Knows nothing of this
project: `peft` is the library here, so this runs with python -P and outside of the checkout.

Texts are read from train.csv and validation.csv (Text, Label), and test.csv where there is one; what was measured is
printed as JSON, the last line. Classes are imported by name because transformers would import them late, on the clock.
"""

import argparse
import csv
import json
import time
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    DataCollatorWithPadding,
    DistilBertForSequenceClassification,
    DistilBertTokenizerFast,
    GPT2ForSequenceClassification,
    GPT2TokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from peft import LoraConfig, get_peft_model

MODELS = {
    "distilbert": (DistilBertForSequenceClassification, DistilBertTokenizerFast),
    "gpt2": (GPT2ForSequenceClassification, GPT2TokenizerFast),
}
HEADS = {"distilbert": ["pre_classifier", "classifier"], "gpt2": ["score"]}
NO_DROPOUT = {"distilbert": ("dropout", "attention_dropout", "seq_classif_dropout"), "gpt2": ()}


class Bypass(nn.Module):
    """DistilBERT's head with a Linear layer for each lower block: classifier(relu(dense(h_6) + Σ fc_k(h_k)))."""

    def __init__(self, model: DistilBertForSequenceClassification):
        super().__init__()
        self.base, self.dense, self.classifier = model.distilbert, model.pre_classifier, model.classifier
        dim = model.config.dim
        self.branches = nn.ModuleList(nn.Linear(dim, dim) for _ in range(model.config.n_layers - 1))
        for branch in self.branches:
            nn.init.zeros_(branch.weight)
            nn.init.zeros_(branch.bias)
        self.base.requires_grad_(False)

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        states = self.base(input_ids, attention_mask, output_hidden_states=True).hidden_states
        first = [hidden[:, 0] for hidden in states[1:]]  # of each block's output [B, T, D] -> [B, D]
        added = sum(branch(state) for branch, state in zip(self.branches, first[:-1], strict=True))
        logits = self.classifier(torch.relu(self.dense(first[-1]) + added))  # [B, D] -> [B, C]
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def make_model(args, kind: str, pad_id: int) -> nn.Module:
    """Return the library's classifier from the checkpoint, with what the library of `--method` attaches to it."""
    changes = dict.fromkeys(NO_DROPOUT[kind], 0.0) if args.no_dropout else {}
    config = AutoConfig.from_pretrained(args.checkpoint, pad_token_id=pad_id, **changes)
    model = MODELS[kind][0].from_pretrained(args.checkpoint, config=config)
    if args.method == "head":
        model.base_model.requires_grad_(False)
    if args.method == "bypass":
        return Bypass(model)
    if args.method == "lora":
        sites = args.lora_target if args.lora_target == "all-linear" else args.lora_target.split(",")
        lora = {"r": args.lora_rank, "lora_alpha": args.lora_alpha, "target_modules": sites}
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", modules_to_save=HEADS[kind], **lora))
    return model


def read_texts(args, tokenizer) -> dict[str, list[dict]]:
    """Split -> [{input_ids, attention_mask, labels}]."""
    splits = {}
    padding = {"padding": "max_length" if args.padded else False, "truncation": True, "max_length": args.max_length}
    for path in (args.data / f"{name}.csv" for name in ("train", "validation", "test")):
        if not path.exists():
            continue
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        encoded = tokenizer([row["Text"] for row in rows], **padding)
        columns = zip(encoded["input_ids"], encoded["attention_mask"], rows, strict=True)
        splits[path.stem] = [{"input_ids": i, "attention_mask": m, "labels": int(row["Label"])} for i, m, row in columns]
    return splits


def accuracy_of(prediction) -> dict[str, float]:
    """Return what the Trainer reports of an evaluation."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def peak_bytes() -> int | None:
    """Return the resident set's high-water mark, or None where the system isn't Linux."""
    status = Path("/proc/self/status")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 if status.exists() else None


def parse_args() -> argparse.Namespace:
    """Return the settings on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--method", choices=("full", "head", "lora", "bypass"), default="full")
    parser.add_argument("--lora_target", help="all-linear, or names with commas")
    parser.add_argument("--lora_rank", type=int)
    parser.add_argument("--lora_alpha", type=float)
    parser.add_argument("--no_dropout", action="store_true")
    parser.add_argument("--max_length", type=int, required=True)
    parser.add_argument("--padded", action="store_true", help="every text to that length, instead of a batch's longest")
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--num_epochs", type=int, default=1, help="0: only evaluate")
    parser.add_argument("--max_steps", type=int, default=-1)
    parser.add_argument("--lr_scheduler_type", default="linear")
    parser.add_argument("--weight_decay", type=float, default=0.0)
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--bf16", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Train, evaluate, and print what was measured as a line of JSON."""
    args = parse_args()
    kind = json.loads((args.checkpoint / "config.json").read_text())["model_type"]

    started = time.perf_counter()
    set_seed(args.seed)
    tokenizer = MODELS[kind][1].from_pretrained(args.checkpoint)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    splits = read_texts(args, tokenizer)
    model = make_model(args, kind, tokenizer.pad_token_id)
    how = {name: getattr(args, name) for name in ("max_steps", "lr_scheduler_type", "weight_decay", "max_grad_norm")}
    settings = TrainingArguments(
        "trainer", per_device_train_batch_size=args.batch_size, num_train_epochs=args.num_epochs, seed=args.seed,
        bf16=args.bf16, use_cpu=True, eval_strategy="epoch", save_strategy="no", report_to="none", disable_tqdm=True,
        logging_first_step=True, **how,
    )  # fmt: skip
    trainer = Trainer(
        model, settings, DataCollatorWithPadding(tokenizer), splits["train"], splits["validation"],
        processing_class=tokenizer, compute_metrics=accuracy_of,
    )  # fmt: skip
    found = {}
    if args.num_epochs:
        trainer.train()
        found["validation"] = [one for one in trainer.state.log_history if "eval_accuracy" in one][-1]
    else:
        found["validation"] = trainer.evaluate()
    if "test" in splits:
        found["test"] = trainer.evaluate(splits["test"])
    measured = {
        "seconds": round(time.perf_counter() - started, 3),
        "peak_bytes": peak_bytes(),
        "steps": trainer.state.global_step,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "validation_loss": found["validation"]["eval_loss"],
        "accuracy": {split: values["eval_accuracy"] for split, values in found.items()},
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
