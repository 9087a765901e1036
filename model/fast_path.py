"""The numbers of `forward` with less work. Tests hold everything here equal to it (tests/model/test_fast_path.py).

What is saved:
- The last block computes one query where the head reads one position of each text.
- Blocks below the lowest one that trains needn't run again for a text whose hidden states were kept.
- A vocabulary's scores are computed for a few targets at a time, and only for targets (model/vocabulary_loss.py).
- Generation computes each position's keys and values once, and keeps them (model/kv_cache.py), with the
  products of the faster library (model/products.py).
- With `gradient_checkpointing`, a block keeps only its input for the backward pass, which computes the rest again.

Letters used for shapes: B batch, T tokens, S earlier tokens, D width, H heads, V vocabulary, C classes, N targets.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from model.chatglm import Block as ChatGLMBlock
from model.chatglm import SelfAttention as ChatGLMAttention
from model.chatglm import rotate_halves
from model.heads import take
from model.llama import Rotation, rotate, window_mask
from model.llama import SelfAttention as LlamaAttention
from model.preference_loss import pair_loss
from model.transformer import Transformer, make_mask
from model.vocabulary_loss import vocabulary_loss


def loss(model: Transformer, batch: Any, ignore_index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the summed cross-entropy of a batch, and for each target the class ranked first and the label.

    Of pairs of answers, which have `batch.references`, it returns what `model.preference_loss.pair_loss` does.

    batch   a `data.batching.Batch` on the model's device. Its labels are [B] for a classifier, else [B, T]: then only the
            N positions in `batch.targets` count.
    """
    if batch.labels.ndim == 1:
        scores = class_scores(model, batch)  # [B, C]
        total = F.cross_entropy(
            scores, batch.labels, weight=batch.class_weights, ignore_index=ignore_index, reduction="sum"
        )
        return total, scores.argmax(dim=-1), batch.labels
    hidden, labels = target_states(model, batch)  # [N, D], [N]
    if batch.references is not None:
        return pair_loss(hidden, model.head, labels, batch, ignore_index)
    total, predictions = vocabulary_loss(hidden, model.head, labels, ignore_index)
    return total, predictions, labels


def target_states(model: Transformer, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the hidden states from which a language-model head predicts the N targets of a batch [N, D], and those [N]."""
    mask, positions = model.layout(batch.input_ids, batch.visible(), batch.positions)
    hidden, start = first_states(model, batch)
    assert start is not None  # only a classifier's states can lie behind the last block
    hidden = model.final_norm(run_blocks(model, hidden, start, mask, positions))  # [B, T, D]
    hidden = model.head.prepare(hidden.flatten(0, 1)[batch.targets])  # [B T, D] -> [N, D]
    return hidden, batch.labels.flatten()[batch.targets]


def class_scores(model: Transformer, batch: Any) -> torch.Tensor:
    """Return a classifier's logits [B, C] in float32 for a batch as `loss` takes it."""
    mask, positions = model.layout(batch.input_ids, batch.visible(), batch.positions)
    hidden, start = first_states(model, batch)
    if start is None:
        return logits_of(model, hidden).float()
    return logits(model, hidden, mask, batch.lengths, start, positions).float()


def logits(
    model: Transformer,
    hidden: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    start: int = 0,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the logits that `forward` returns, from the hidden states [B, T, D] that enter block `start`."""
    if model.head.rows(hidden, attention_mask, lengths) is None:  # it reads every position
        hidden = run_blocks(model, hidden, start, attention_mask, positions)  # [B, T, D]
        return model.head(model.final_norm(hidden), attention_mask, lengths)
    return logits_of(model, states_read(model, hidden, attention_mask, lengths, start, positions))


def first_states(model: Transformer, batch: Any) -> tuple[torch.Tensor, int | None]:
    """Return the hidden states of a batch and the block that they enter: embedded now, or kept of an earlier run.

    None in place of the block means that no block has to run: the states are those of `states_read`.
    """
    if batch.cached is not None:
        return batch.cached.states, batch.cached.start
    return model.embed(batch.input_ids, batch.token_type_ids, batch.positions), 0


def states_read(
    model: Transformer,
    hidden: torch.Tensor,
    attention_mask: torch.Tensor | None,
    lengths: torch.Tensor | None,
    start: int = 0,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return all that a head of one position reads [B, 1 + taps, D], from the states [B, T, D] that enter block `start`.

    First the last block's output, then what the head's taps put out (peft/bypass.py).
    """
    rows = model.head.rows(hidden, attention_mask, lengths)  # [B]
    last = len(model.blocks) - 1
    if start > last or model.prompt is not None or is_sharded(model.blocks[last]):
        last_states = take(run_blocks(model, hidden, start, attention_mask, positions), rows)  # [B, T, D] -> [B, D]
    else:
        entering = run_blocks(model, hidden, start, attention_mask, positions, stop=last)  # [B, T, D]
        _, *turns = model.block_inputs(entering, attention_mask, positions)
        mask = visible_to(rows, entering.shape[1], attention_mask, model.config.causal)
        output = call(model, run_block, model.blocks[last], entering, mask, rows, None, False, *turns)  # [B, 1, D]
        if f"blocks.{last}" in model.head.taps:
            model.head.capture(f"blocks.{last}", output)
        last_states = output.squeeze(1)  # [B, D]
    states = [last_states, *(model.head.captured_at(rows, hidden.shape[1]) if model.head.taps else ())]
    return torch.stack(states, dim=1)  # [B, 1 + taps, D]


def logits_of(model: Transformer, states: torch.Tensor) -> torch.Tensor:
    """Return the logits [B, C] of what `states_read` returns [B, 1 + taps, D]."""
    state = model.final_norm(states[:, :1]).squeeze(1)  # [B, D]
    return model.head.classify(state, *states[:, 1:].unbind(dim=1))


def run_blocks(
    model: Transformer,
    hidden: torch.Tensor,
    start: int,
    attention_mask: torch.Tensor | None,
    positions: torch.Tensor | None = None,
    stop: int | None = None,
) -> torch.Tensor:
    """Run blocks start..stop-1 as `Transformer.run_blocks` does, with gradient checkpointing where that is on."""
    inputs = model.block_inputs(hidden, attention_mask, positions)
    for block in model.blocks[start:stop]:
        hidden = call(model, block, hidden, *inputs)  # [B, T, D]
    return hidden


def call(model: Transformer, function: Callable[..., torch.Tensor], *args: Any) -> torch.Tensor:
    """Return function(*args). With gradient checkpointing only the arguments are kept for the backward pass (Chen et al.
    2016, arXiv:1604.06174); dropout is drawn alike in both passes."""
    if model.gradient_checkpointing and model.training and torch.is_grad_enabled():
        return checkpoint(function, *args, use_reentrant=False)
    return function(*args)


def is_sharded(block: nn.Module) -> bool:
    """Return whether a block's tensors are spread over processes, so that it is whole only while it is called itself."""
    return hasattr(block, "set_requires_gradient_sync")  # a method that torch's fully_shard gives it


def visible_to(rows: torch.Tensor, length: int, attention_mask: torch.Tensor | None, causal: bool) -> torch.Tensor | None:
    """Return what one position of each text, `rows` [B], may look at: [B, 1, 1, T], True = may; None: at all."""
    if not causal:
        return None if attention_mask is None else make_mask(attention_mask, causal)
    visible = torch.arange(length, device=rows.device) <= rows[:, None]  # [B, T]
    if attention_mask is not None:
        visible = visible & attention_mask.bool()
    return visible[:, None, None, :]


def run_block(
    block: Any,
    x: torch.Tensor,
    mask: torch.Tensor | None,
    rows: torch.Tensor | None = None,
    cache: Any = None,
    is_causal: bool = False,
    rotation: Rotation | None = None,
) -> torch.Tensor:
    """Return what block(x, mask) or block(x, mask, rotation) returns, for [B, T, D] -> [B, T, D], but

    rows    [B]: only at this position of each text -> [B, 1, D]
    cache   a `LayerCache` (model/kv_cache.py), for positions that follow those in it, which they see too
    """
    normed = block.attn_norm(x) if block.norm_first else x
    queries = normed if rows is None else take(normed, rows).unsqueeze(1)  # [B, T, D] or [B, 1, D]
    x = x if rows is None else take(x, rows).unsqueeze(1)
    attended = attention(block.attn, queries, normed, mask, cache, is_causal, rotation, rows)
    if isinstance(block, ChatGLMBlock):
        x = block.mlp_norm(block.alpha * queries + attended)
        return block.alpha * x + block.mlp(x)
    attended = block.attn_dropout(attended)
    if block.norm_first:
        x = x + attended
        return x + block.mlp_dropout(block.mlp(block.mlp_norm(x)))
    x = block.attn_norm(x + attended)
    return block.mlp_norm(x + block.mlp_dropout(block.mlp(x)))


def attention(
    attn: Any,
    queries: torch.Tensor,
    context: torch.Tensor,
    mask: torch.Tensor | None,
    cache: Any,
    is_causal: bool,
    rotation: Rotation | None,
    rows: torch.Tensor | None,
) -> torch.Tensor:
    """Return what positions `queries` [B, Q, D] take from those of `context` [B, T, D] and of the cache -> [B, Q, D].

    rotation   of the T positions; the cache holds keys that are turned already
    rows       [B], which of the T the only query of each text is; None: the queries are all T
    """
    if isinstance(attn, ChatGLMAttention):
        q, k, v = chatglm_heads(attn, context, rotation, rows)
    elif rotation is None:
        q, k, v = (
            in_heads(layer(x), attn.n_heads) for layer, x in ((attn.q, queries), (attn.k, context), (attn.v, context))
        )
    else:
        q, k, v = llama_heads(attn, queries, context, rotation, rows)
    if cache is not None:
        k, v = cache.extend(k, v)  # [B, K, S + T, d]
    if isinstance(attn, LlamaAttention) and attn.window is not None:
        n_keys = k.shape[2]
        first = n_keys - context.shape[1]  # the place of the first of the T positions
        places = torch.arange(first, n_keys, device=q.device) if rows is None else first + rows[:, None, None]
        mask, is_causal = window_mask(mask, places, n_keys, attn.window, attn.causal), False
    return attn.out(attn.attend(q, k, v, mask, is_causal).transpose(1, 2).flatten(2))


Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # queries [B, H, Q, d], keys and values [B, K, T, d]


def llama_heads(
    attn: LlamaAttention, queries: torch.Tensor, context: torch.Tensor, rotation: Rotation, rows: torch.Tensor | None
) -> Heads:
    """Return the queries, keys and values of a layer of model/llama.py."""
    q = attn.q_norm(in_heads(attn.q(queries), attn.n_heads))  # [B, H, Q, d]
    k = attn.k_norm(in_heads(attn.k(context), attn.n_kv_heads))  # [B, K, T, d]
    v = in_heads(attn.v(context), attn.n_kv_heads)
    if attn.rotates:
        q, k = rotate(q, rotation if rows is None else rotation_at(rotation, rows)), rotate(k, rotation)
    return q, k, v


def chatglm_heads(
    attn: ChatGLMAttention, context: torch.Tensor, rotation: Rotation | None, rows: torch.Tensor | None
) -> Heads:
    """Return the queries, keys and values of a layer of model/chatglm.py. No head of it reads a single position."""
    assert rotation is not None and rows is None
    q, k, v = in_heads(attn.qkv(context), attn.n_heads).chunk(3, dim=-1)  # [B, H, T, d] each
    return rotate_halves(q, rotation), rotate_halves(k, rotation), v


def in_heads(x: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Return vectors cut into heads, [B, T, H d] -> [B, H, T, d]."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def rotation_at(rotation: Rotation, rows: torch.Tensor) -> Rotation:
    """Return the rotation of one position of each text: [B or 1, 1, T, d/2] and [B] -> [B, 1, 1, d/2], twice."""
    cos, sin = (one.squeeze(1).expand(len(rows), -1, -1) for one in rotation)  # [B, T, d/2]
    return take(cos, rows)[:, None, None], take(sin, rows)[:, None, None]
