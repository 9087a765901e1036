"""Draws a small ChatGLM with a tokenizer of its kind, to try the whole way on where the published one can't be had.

    python -m tools.chatglm_tiny TOKENIZER_DIR OUT_DIR

It has the published number of blocks, so that every row of the chat table means the same blocks; it has learnt nothing.
"""

import argparse
from pathlib import Path

import torch

from model.chatglm import ChatGLM, ChatGLMConfig
from model.heads import LanguageModelHead
from model.tokenizers.chatglm import ChatGLMTokenizer
from model.tokenizers.files import CHATGLM_FILE_SETS, copy_tokenizer
from model.weights import save_pretrained
from utils.errors import run_program
from utils.files import user_path

SEED = 1234
STD = 0.02  # of the drawn weights; larger ones grow from block to block, as each multiplies by alpha


def draw(tokenizer: ChatGLMTokenizer, dim: int, n_layers: int) -> ChatGLM:
    """Return a ChatGLM of this width and depth for a tokenizer, drawn from a seed of its own."""
    config = ChatGLMConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=256,
        dim=dim,
        n_heads=4,
        n_layers=n_layers,
        mlp_dim=4 * dim,
        pad_id=tokenizer.pad_id,
        mask_id=tokenizer.special_tokens["[MASK]"],
        gmask_id=tokenizer.gmask_id,
        start_id=tokenizer.start_id,
        end_ids=tokenizer.end_ids,
    )
    torch.manual_seed(SEED)
    model = ChatGLM(config)
    model.head = LanguageModelHead(model.token_embedding)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=STD)
    return model


def make(tokenizer_dir: Path, out: Path, dim: int = 32, n_layers: int = 28) -> None:
    """Write the checkpoint. Raises UserError for a directory without a ChatGLM's tokenizer."""
    tokenizer = ChatGLMTokenizer.from_directory(tokenizer_dir)
    save_pretrained(draw(tokenizer, dim, n_layers), out)
    copy_tokenizer(tokenizer_dir, out)


def main() -> int:
    """Write what the command line asks for. Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer", type=user_path, help=f"the directory that holds {CHATGLM_FILE_SETS[0][0]}")
    parser.add_argument("out", type=user_path, help="the directory to write")
    parser.add_argument("--dim", type=int, default=32, help="the width (default: %(default)s)")
    parser.add_argument("--n_layers", type=int, default=28, help="the number of blocks (default: %(default)s)")
    args = parser.parse_args()
    make(args.tokenizer, args.out, args.dim, args.n_layers)
    return 0


if __name__ == "__main__":
    run_program(main)
