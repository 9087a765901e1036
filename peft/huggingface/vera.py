"""VeRA adapters of the library `peft`, both ways. All modules share one pair of matrices, as large as the largest needs:

    base_model.vera_A [r, in], base_model.vera_B [out, r]    the pair; without `save_projection` it isn't in the file, and
                                                             `projection_prng_key` draws it again
    PATH.vera_lambda_d [r], PATH.vera_lambda_b [out]         the trained vectors

GPT-2's query, key and value are one published module with one d, and three layers here. Read, each gets a copy of d and its
rows of B. Written, three layers with a d each need a pair of rank 3 r, in which B's rows of a layer are zero but for its r
columns: exactly the same sum. Modules that are one layer here then need r columns more, of the whole B.
"""

from typing import Any

import torch
from torch import nn

from model.transformer import Transformer
from peft.huggingface.files import AdapterFiles
from peft.huggingface.names import sizes_of
from peft.targets import adapt
from peft.vera import SharedMatrices, VeRA, VeRALinear, draw_matrices
from utils.errors import UserError

PAIR = ("base_model.vera_A", "base_model.vera_B")  # the only tensors whose names lack base_model.model.


def read_pair(adapter: AdapterFiles, added: dict[str, dict], sites: dict[str, dict[str, nn.Linear]]) -> SharedMatrices:
    """Return the matrices of an adapter. Raises UserError.

    added, sites   for each module that it adapts, by path: the tensors, and the layers that the module is here
    """
    rank, key = adapter.setting("r", int, 256), adapter.setting("projection_prng_key", int, 0)
    VeRA(rank, key)  # whose limits these are
    for path, tensors in added.items():
        adapter.check_names(path, tensors, {"vera_lambda_b", "vera_lambda_d"})
        adapter.check_shape(f"{path}.vera_lambda_d", tensors["vera_lambda_d"], (rank,))
    n_in, n_out = map(max, zip(*map(sizes_of, sites.values()), strict=True))
    if not adapter.setting("save_projection", bool, True):
        return draw_matrices(rank, n_in, n_out, key)
    for name, shape in zip(PAIR, ((rank, n_in), (n_out, rank)), strict=True):
        if name not in adapter.tensors:
            raise UserError(f"{adapter.folder} has no {name}, which save_projection promises; save it whole")
        adapter.check_shape(name, adapter.tensors[name], shape)
    return SharedMatrices(*(adapter.tensors[name] for name in PAIR))


def attach_vera(
    model: Transformer,
    adapter: AdapterFiles,
    path: str,
    tensors: dict[str, torch.Tensor],
    layers: dict[str, nn.Linear],
    pair: SharedMatrices,
) -> None:
    """Put a VeRA of the published module `path` on the layers that it is here. Raises UserError."""
    adapter.check_shape(f"{path}.vera_lambda_b", tensors["vera_lambda_b"], sizes_of(layers)[1:])
    dropout, row = VeRA(dropout=adapter.setting("vera_dropout", (int, float), 0.0)).dropout, 0
    for name, linear in layers.items():
        adapt(model, {name: linear}, lambda one, row=row: VeRALinear(one, pair, dropout, first_row=row))
        layer: Any = model.get_submodule(name)  # a VeRALinear by now
        layer.vera_d.copy_(tensors["vera_lambda_d"])
        layer.vera_b.copy_(tensors["vera_lambda_b"][row : row + layer.out_features])
        row += layer.out_features


def written_as_one(modules: dict[str, list]) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    """Return the tensors of the pair, and for each published module its vectors. Raises UserError for several pairs.

    modules   the published path of each adapted module -> the layers that it is here, of which some have a VeRA
    """
    pairs = {layer.shared for layers in modules.values() for layer in layers if isinstance(layer, VeRALinear)}
    if len(pairs) > 1:
        raise UserError("the run has several VeRAs, each with its own matrices; an adapter of the library has one")
    pair, parts = pairs.pop(), {path: parts_of(layers) for path, layers in modules.items()}
    keys = list(dict.fromkeys(key for of_module in parts.values() for key in of_module))
    n_in = max(layers[0].in_features for layers in modules.values())
    n_out = max(sum(layer.out_features for layer in layers) for layers in modules.values())
    columns = [columns_of(pair.b, key, n_out) for key in keys]
    tensors = {PAIR[0]: pair.a[:, :n_in].repeat(len(keys), 1), PAIR[1]: torch.cat(columns, dim=1)}  # [K r, in], [out, K r]
    vectors, nothing = {}, torch.zeros(len(pair.a))
    for path, layers in modules.items():
        b = [getattr(layer, "vera_b", torch.zeros(layer.out_features)) for layer in layers]
        d = [parts[path].get(key, nothing) for key in keys]
        vectors[path] = {"vera_lambda_b": torch.cat(b), "vera_lambda_d": torch.cat(d)}
    return tensors, vectors


WHOLE = (0, 0, 0)  # the key of layers that have the rows of B that are theirs in the library


def parts_of(layers: list) -> dict[tuple[int, int, int], torch.Tensor]:
    """Return d for each part of a module that needs r columns of its own: by its first row in the module, the first row of
    B that it takes, and how many. A module whose layers can share the columns is one part, WHOLE."""
    starts, row = {}, 0
    for layer in layers:
        if isinstance(layer, VeRALinear):
            starts[row] = layer
        row += layer.out_features
    first = next(iter(starts.values()))
    if all(one.first_row == start and torch.equal(one.vera_d, first.vera_d) for start, one in starts.items()):
        return {WHOLE: first.vera_d}
    return {(start, one.first_row, one.out_features): one.vera_d for start, one in starts.items()}


def columns_of(b: torch.Tensor, key: tuple[int, int, int], n_out: int) -> torch.Tensor:
    """Return the columns [out, r] of a part: its rows of B [.., r] where it begins in its module, and zeros elsewhere."""
    start, first_row, n_rows = key
    rows = b[:n_out] if key == WHOLE else b[first_row : first_row + n_rows]
    columns = torch.zeros(n_out, b.shape[1])
    columns[start : start + len(rows)] = rows
    return columns
