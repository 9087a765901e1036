"""How a run of dialogues is marked where the new style it learned is plotted against the old knowledge it kept.

The shape says the method and the weights that it trains, the colour the layers, a filled mark that auxiliary dialogues were
mixed in. A run without training is a star. `plots.py` draws these marks with matplotlib, the report's page in SVG.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

UNTRAINED = "nothing trained"
WEIGHTS_SETTING = {"freeze": "part", "lora": "lora_target"}  # method -> the setting that says which weights it trains
SAME_WEIGHTS = {"attn.q,attn.k,attn.v": "qkv", "query_key_value": "qkv"}

# The marks of the published table; what else there is gets those that are left, in the order in which it comes.
SHAPES = {"freeze mlp": "square", "freeze qkv": "diamond", "lora mlp": "circle", "lora qkv": "triangle", "prefix": "cross"}
MORE_SHAPES = ("hexagon", "wedge", "pentagon")
# Names of colours, from Okabe and Ito's palette, which colour-blind readers tell apart.
COLOURS = {"first3": "blue", "last3": "orange", "all": "green"}
MORE_COLOURS = ("purple", "sky", "yellow")


@dataclass(frozen=True)
class Mark:
    """What a run's mark says."""

    method: str  # with its weights: "lora qkv"
    layers: str
    auxiliary: bool


def mark_of(settings: Mapping) -> Mark:
    """Return the mark of a run. Of its settings, those may be missing that were not given."""
    if settings.get("num_epochs") == 0:
        return Mark(UNTRAINED, "", False)
    method = str(settings.get("trainable_layers"))
    weights = str(settings.get(WEIGHTS_SETTING.get(method, ""), "") or "")
    name = f"{method} {SAME_WEIGHTS.get(weights, weights)}".strip()
    return Mark(name, str(settings.get("layers") or "all"), bool(settings.get("auxiliary_dataset")))


def shapes_of(marks: Iterable[Mark]) -> dict[str, str]:
    """Return a shape for each method, in the order of the legend."""
    return assign((mark.method for mark in marks if mark.method != UNTRAINED), SHAPES, MORE_SHAPES)


def colours_of(marks: Iterable[Mark]) -> dict[str, str]:
    """Return a colour for each choice of layers, in the order of the legend."""
    return assign((mark.layers for mark in marks if mark.method != UNTRAINED), COLOURS, MORE_COLOURS)


def assign(names: Iterable[str], known: dict[str, str], more: tuple[str, ...]) -> dict[str, str]:
    """Return what is known of each name, and one of `more` for each other; the last one stands for all that are left."""
    found = dict.fromkeys(names)
    others = [name for name in found if name not in known]
    given = {name: more[min(number, len(more) - 1)] for number, name in enumerate(others)}
    return {name: value for name, value in known.items() if name in found} | given
