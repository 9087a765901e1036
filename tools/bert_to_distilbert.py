"""Writes a BERT checkpoint as a DistilBERT's, which computes the same for single texts.

    python -m tools.bert_to_distilbert BERT_DIR OUT_DIR

DistilBERT is BERT's encoder without token types. Where every token is of the first text, BERT adds row 0 of its token-type
table at every position, so that row can be added to the position table instead. Only the body is written (a classifier's
dense layer works differently in the two), with the tokenizer's files beside it.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from model import from_pretrained, hub
from model.bert import Bert, BertConfig
from model.distilbert import DistilBert, DistilBertConfig
from model.tokenizers.files import copy_tokenizer, has_tokenizer_files, library_files
from model.transformer import Transformer
from model.weights import save_pretrained
from utils.errors import UserError, run_program
from utils.files import check_holds_only, user_path


@torch.no_grad()
def bert_to_distilbert(bert: Bert) -> DistilBert:
    """Return a DistilBERT with the same hidden states for single texts. Raises UserError for another model than a BERT."""
    if type(bert.config) is not BertConfig:
        raise UserError(f"only a BERT can become a DistilBERT, and this is a {type(bert).__name__}")
    if bert.config.layer_norm_eps != DistilBertConfig.layer_norm_eps:
        eps = bert.config.layer_norm_eps
        raise UserError(f"a DistilBERT has layer_norm_eps {DistilBertConfig.layer_norm_eps}, this BERT {eps}")
    changes = {"n_token_types": 0, "head_dropout": DistilBertConfig.head_dropout, "tied": True}
    distilbert = DistilBert(DistilBertConfig(**asdict(bert.config) | changes))
    tensors = bert.state_dict()
    tensors = {
        name: tensor for name, tensor in tensors.items() if name.split(".")[0] not in ("head", "token_type_embedding")
    }
    tensors["position_embedding.weight"] = bert.position_embedding.weight + bert.token_type_embedding.weight[0]
    distilbert.load_state_dict(tensors)
    return distilbert


def convert(convert_model: Callable[[Any], Transformer], description: str, also: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """Write the checkpoint that the command line asks for, as `write` does. Return BERT's directory and the new one."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("bert", type=os.path.expanduser, help="a BERT's directory or name")
    parser.add_argument("out", type=user_path, help="the directory to write")
    args = parser.parse_args()
    return write(convert_model, args.bert, args.out, also), args.out


def write(convert_model: Callable[[Any], Transformer], bert: str, out: Path, also: tuple[str, ...] = ()) -> Path:
    """Write a converted BERT, with its tokenizer's files. Return its directory.

    also   names of files that the caller will write

    Raises UserError, also where `out` is BERT's directory, or holds what isn't written.
    """
    folder = hub.locate(bert)
    if out.is_dir() and out.samefile(folder):
        raise UserError(f"OUT_DIR {out} is the BERT's own directory; name another")
    files = library_files(folder) if has_tokenizer_files(folder) else {}
    check_holds_only(out, ["config.json", "model.safetensors", *files, *also], "OUT_DIR")
    save_pretrained(convert_model(from_pretrained(bert, head=None)), out)
    if files:
        copy_tokenizer(folder, out)
    return folder


def main() -> int:
    """Write the checkpoint that the command line asks for. Return the exit status."""
    convert(bert_to_distilbert, __doc__.splitlines()[0])
    return 0


if __name__ == "__main__":
    run_program(main)
