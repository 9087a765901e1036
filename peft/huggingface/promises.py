"""Whether the tensors of an adapter are those that its settings promise.

The library loads such a file too, with a warning at best, and runs with whatever was drawn for what is missing.
"""

from collections.abc import Iterable

from torch import nn

from model.transformer import Transformer
from peft.huggingface.files import AdapterFiles
from peft.huggingface.names import PublishedNames, tied_names
from peft.huggingface.settings import names_modules
from utils.errors import UserError


def check_complete(model: Transformer, names: PublishedNames, adapter: AdapterFiles, there: dict[str, str]) -> None:
    """Raise UserError unless the file holds what the settings name.

    there    the published path of each adapted module -> its path in the file, which may lack the prefix (of the bare body)
    """
    is_bare = any(path != written for path, written in there.items())
    kind = model.head.kind if adapter.config.get("task_type") == "SEQ_CLS" and model.head else None
    paths = []
    for path, own_paths in names.modules.items():
        of_head, in_body = own_paths[0].split(".")[0] == "head", path.startswith(names.prefix)
        possible = all(isinstance(model.get_submodule(one), nn.Linear) for one in own_paths)
        if possible and (in_body or not is_bare) and (not of_head or (kind == "classifier" and not adapter.replaces(path))):
            paths.append(path.removeprefix(names.prefix) if is_bare else path)
    if names_modules(adapter.config["peft_type"]):
        check_targets(adapter, paths, set(there.values()))
    tensors = [name for name, entry in names.tensors.items() if not entry.again and name != "score.bias"]
    if not adapter.ties_again and getattr(model.head, "kind", None) == "lm" and model.config.tied:
        tensors.append(tied_names(model)[1])
    if is_bare:
        tensors = [name.removeprefix(names.prefix) for name in tensors if name.startswith(names.prefix)]
    check_replaced(adapter, tensors)


def check_targets(adapter: AdapterFiles, paths: Iterable[str], adapted: set[str]) -> None:
    """Raise UserError unless the file has tensors for just the modules that the settings name.

    paths     of all modules that can be adapted; adapted: of those that the file has tensors for
    """
    settings, named = f"{adapter.folder}/adapter_config.json", adapter.config.get("target_modules")
    if not named or str(named).lower() == "all-linear":  # the library ignores the case
        return
    if lacking := [path for path in paths if path not in adapted and adapter.adapts(path)]:
        more = f" and {len(lacking) - 1} more" if lacking[1:] else ""
        raise UserError(
            f"{settings} has target_modules = {named!r}, but the file has no tensors for {lacking[0]}{more}; save it whole"
        )
    if others := sorted(path for path in adapted if not adapter.adapts(path)):
        raise UserError(
            f"{adapter.folder} has tensors for {others[0]}, which target_modules = {named!r} in adapter_config.json "
            "doesn't name, so that the library ignores them; name it or leave them out"
        )


def check_replaced(adapter: AdapterFiles, names: Iterable[str]) -> None:
    """Raise UserError where the file lacks a tensor of a module that it is to bring.

    names    of all tensors of the model, as the adapter calls them
    """
    lacking = [one for one in names if one not in adapter.tensors and adapter.replaces(one.rpartition(".")[0])]
    if lacking:
        named = adapter.config.get("modules_to_save") or f"task_type {adapter.config.get('task_type')}"
        more = f" and {len(lacking) - 1} more" if lacking[1:] else ""
        raise UserError(
            f"{adapter.folder}/adapter_config.json promises whole modules ({named}), but the file lacks {lacking[0]}"
            f"{more}; save it whole"
        )
