"""Which Linear layers a list of targets means. Shared by every method that attaches to chosen layers."""

from torch import nn

from errors import UserError


def find_sites(model: nn.Module, targets: str) -> dict[str, nn.Linear]:
    """The Linear layers that comma-separated targets match, by path, in the model's order.

    "all" means every one, the head included. Anything else matches whole components of a path in a row: "attn.q" and
    "2.attn.q" match blocks.2.attn.q; neither matches blocks.12.attn.q by its "2". Raises UserError for a target that
    matches nothing, with what could match.
    """
    linears = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    if targets == "all":
        return linears
    wanted = [target.strip() for target in targets.split(",")]
    for target in wanted:
        if not any(_matches(target, path) for path in linears):
            choices = sorted({_without_numbers(path) for path in linears})
            raise UserError(f"the target {target!r} matches no Linear layer: choose all, {', '.join(choices)}")
    return {path: linear for path, linear in linears.items() if any(_matches(target, path) for target in wanted)}


def _matches(target: str, path: str) -> bool:
    wanted, parts = target.split("."), path.split(".")
    return any(parts[i : i + len(wanted)] == wanted for i in range(len(parts) - len(wanted) + 1))


def _without_numbers(path: str) -> str:
    parts = path.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[-1] + 1 :] if numbers else parts)


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
