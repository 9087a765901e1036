"""Writes a BERT checkpoint as a RoBERTa's, which computes the same for single texts and keeps BERT's vocabulary.

    python -m tools.bert_to_roberta BERT_DIR OUT_DIR

RoBERTa is BERT's encoder with one type of token, and with positions that begin behind a row for padding. Where every token
is of the first text, BERT adds row 0 of its token-type table at every position, so that row becomes the only one. Only the
body is written (a RoBERTa's classifier has no pooler below it). tokenizer_config.json names BERT's tokenizer, which gives
no token types then.
"""

import json
from dataclasses import asdict

import torch

from model.bert import Bert, BertConfig, Roberta, RobertaConfig
from model.tokenizers.settings import INPUTS_WITHOUT_TYPES
from tools.bert_to_distilbert import convert
from utils.errors import UserError, run_program
from utils.files import read_json


@torch.no_grad()
def bert_to_roberta(bert: Bert) -> Roberta:
    """Return a RoBERTa with the same hidden states for single texts. Raises UserError for another model than a BERT."""
    if type(bert.config) is not BertConfig:
        raise UserError(f"only a BERT can become a RoBERTa, and this is a {type(bert).__name__}")
    roberta = Roberta(RobertaConfig(**asdict(bert.config) | {"n_token_types": 1, "tied": True}))
    tensors = {name: tensor for name, tensor in bert.state_dict().items() if name.split(".")[0] != "head"}
    positions = tensors["position_embedding.weight"]
    for_padding = torch.zeros(roberta.config.first_position, positions.shape[1])
    tensors["position_embedding.weight"] = torch.cat([for_padding, positions])
    tensors["token_type_embedding.weight"] = tensors["token_type_embedding.weight"][:1]
    roberta.load_state_dict(tensors)
    return roberta


def main() -> int:
    """Write the checkpoint that the command line asks for. Return the exit status."""
    name = "tokenizer_config.json"
    bert, out = convert(bert_to_roberta, __doc__.splitlines()[0], also=(name,))
    settings = read_json(bert / name) if (bert / name).is_file() else {}
    settings |= {"tokenizer_class": "BertTokenizer", "model_input_names": INPUTS_WITHOUT_TYPES}
    (out / name).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    run_program(main)
