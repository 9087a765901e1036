"""The spam job with the published model and loop: PyPI's llms-from-scratch. Knows nothing of this project.

Weights are read from a checkpoint in Hugging Face layout, texts from CSV files (Text, Label) as the published script makes
them. What was measured is printed as JSON, the last line.
"""

import argparse
import json
import time
from pathlib import Path

import tiktoken
import torch
from llms_from_scratch import ch06
from llms_from_scratch.appendix_e import replace_linear_with_lora
from llms_from_scratch.ch04 import GPTModel
from llms_from_scratch.ch05 import load_weights_into_gpt
from safetensors.numpy import load_file
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import ENDOFTEXT, r50k_pat_str
from torch import nn
from torch.utils.data import DataLoader

PAD, SEED = 50256, 123
CPU = torch.device("cpu")


class Unpadded(ch06.SpamDataset):
    """The same texts, each of its own length; for batches of one."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.encoded_texts = [ids[: ids.index(PAD)] if PAD in ids else ids for ids in self.encoded_texts]


class LastRealToken(nn.Module):
    """ch06 reads the logits [:, -1, :]; with this around the model they are the last real token's."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_batch: torch.Tensor) -> torch.Tensor:
        last = (input_batch != PAD).sum(dim=1) - 1  # [B]
        logits = self.model(input_batch)  # [B, T] -> [B, T, C]
        return logits[torch.arange(len(logits)), last].unsqueeze(1)  # [B, 1, C]


def read_tokenizer(folder: Path) -> tiktoken.Encoding:
    """Return GPT-2's tokenizer, from local files instead of tiktoken's download."""
    ranks = data_gym_to_mergeable_bpe_ranks(str(folder / "merges.txt"), str(folder / "vocab.json"))
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={ENDOFTEXT: PAD})


def make_loaders(args, tokenizer: tiktoken.Encoding) -> dict[str, DataLoader]:
    """Return the loaders of three splits with the published batches: training shuffled, without its last short batch."""
    kind = Unpadded if args.no_padding else ch06.SpamDataset
    train = kind(args.data / "train.csv", tokenizer, args.max_length or None, PAD)
    splits = {"train": train}
    for name in ("validation", "test"):
        splits[name] = kind(args.data / f"{name}.csv", tokenizer, args.max_length or train.max_length, PAD)
    torch.manual_seed(SEED)
    return {
        name: DataLoader(one, batch_size=args.batch_size, shuffle=name == "train", drop_last=name == "train")
        for name, one in splits.items()
    }


def to_their_names(tensors: dict) -> dict:
    """Hugging Face's names -> the nested dictionary that load_weights_into_gpt wants."""
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    n_layers = len({name.split(".")[1] for name in tensors if name.startswith("h.")})

    def layer(path: str, weight: str = "w") -> dict:
        return {weight: tensors[f"{path}.weight"], "b": tensors[f"{path}.bias"]}

    return {
        "wte": tensors["wte.weight"],
        "wpe": tensors["wpe.weight"],
        **layer("ln_f", "g"),
        "blocks": [
            {
                "attn": {name: layer(f"h.{i}.attn.{name}") for name in ("c_attn", "c_proj")},
                "mlp": {name: layer(f"h.{i}.mlp.{name}") for name in ("c_fc", "c_proj")},
                "ln_1": layer(f"h.{i}.ln_1", "g"),
                "ln_2": layer(f"h.{i}.ln_2", "g"),
            }
            for i in range(n_layers)
        ],
    }


def make_model(args) -> nn.Module:
    """Loaded, frozen and thawed in the published script's order."""
    config = json.loads((args.checkpoint / "config.json").read_text())
    shape = {"vocab_size": config["vocab_size"], "context_length": config["n_positions"], "emb_dim": config["n_embd"]}
    shape |= {"n_heads": config["n_head"], "n_layers": config["n_layer"], "drop_rate": 0.0, "qkv_bias": True}
    model = GPTModel(shape)
    load_weights_into_gpt(model, to_their_names(load_file(args.checkpoint / "model.safetensors")))
    model.requires_grad_(False)
    torch.manual_seed(SEED)
    model.out_head = nn.Linear(shape["emb_dim"], 2)
    if args.trainable_layers == "last_block":
        model.trf_blocks[-1].requires_grad_(True)
        model.final_norm.requires_grad_(True)
    elif args.trainable_layers == "all":
        model.requires_grad_(True)
    elif args.trainable_layers == "lora":
        replace_linear_with_lora(model, args.lora_rank, args.lora_alpha)
    return LastRealToken(model) if args.flexible else model


def keep_first_loss(kept: list[float]) -> None:
    """Note the loss of the first batch in `kept`: the loop prints rounded means only."""
    original = ch06.calc_loss_batch

    def noting(*args):
        loss = original(*args)
        if not kept:
            kept.append(loss.item())
        return loss

    ch06.calc_loss_batch = noting


def peak_bytes() -> int | None:
    """Return the resident set's high-water mark, or None where the system isn't Linux."""
    status = Path("/proc/self/status")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 if status.exists() else None


def main() -> None:
    """Train, evaluate, and print what was measured as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trainable_layers", choices=("last_layer", "last_block", "all", "lora"), default="last_block")
    parser.add_argument("--lora_rank", type=int)
    parser.add_argument("--lora_alpha", type=float)
    parser.add_argument("--max_length", type=int, default=0, help="0: of the longest training example")
    parser.add_argument("--no_padding", action="store_true")
    parser.add_argument("--flexible", action="store_true", help="read the last real token")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--num_epochs", type=int, default=5)
    args = parser.parse_args()
    first_loss: list[float] = []
    keep_first_loss(first_loss)

    started = time.perf_counter()
    loaders = make_loaders(args, read_tokenizer(args.checkpoint))
    model = make_model(args)
    torch.manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.1)
    train, validation = loaders["train"], loaders["validation"]
    ch06.train_classifier_simple(model, train, validation, optimizer, CPU, args.num_epochs, eval_freq=50, eval_iter=5)
    accuracy = {name: ch06.calc_accuracy_loader(loader, model, CPU) for name, loader in loaders.items()}
    measured = {
        "seconds": round(time.perf_counter() - started, 3),
        "peak_bytes": peak_bytes(),
        "steps": args.num_epochs * len(train),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "first_loss": first_loss[0],
        "accuracy": accuracy,
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
