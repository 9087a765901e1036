"""The methods by the names that --trainable_layers accepts. A method registers itself with `@method("name", ...)`."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from config import Run
from model.transformer import Transformer
from utils.errors import UserError


class Method(Protocol):
    """All that `attach` asks of a method."""

    def attach(self, model: Transformer) -> None:
        """Add to the model, and let train what is to train. All of the model is frozen before."""


METHODS: dict[str, type] = {}  # what --trainable_layers accepts -> the class of the method


def method(*names: str) -> Callable[[type], type]:
    """Return a class decorator that registers a method under these names. Raises UserError for one that another has."""

    def register(cls: type) -> type:
        for name in names:
            taken = METHODS.get(name, cls)
            if name_of(taken) != name_of(cls):  # a module that is read again makes its class anew
                raise UserError(f"the method {name!r} of {name_of(cls)} is {name_of(taken)} already; choose another name")
        METHODS.update(dict.fromkeys(names, cls))
        return cls

    return register


def name_of(cls: type) -> str:
    """Return where a class stands."""
    return f"{cls.__module__}.{cls.__qualname__}"


@dataclass(frozen=True)
class Joined:
    """Several methods on one model, attached in this order."""

    methods: tuple[Method, ...]

    def attach(self, model: Transformer) -> None:
        for one in self.methods:
            one.attach(model)

    def __str__(self) -> str:
        return " + ".join(map(str, self.methods))


def method_of(run: Run) -> Method:
    """Return the method that a run asks for (`run.trainable_layers` and whatever else the method reads)."""
    find_methods()
    names = str(run.trainable_layers).split("+")
    for name in names:
        if name not in METHODS:
            choices = f"choose {', '.join(METHODS)}, or several joined with +"
            raise UserError(f"unknown --trainable_layers {name!r}: {choices}")
    methods = tuple(METHODS[name].from_run(name, run) for name in names)
    return methods[0] if len(methods) == 1 else Joined(methods)


def find_methods() -> dict[str, type]:
    """Return all methods by name. Imports every file of this package, so that one that was just dropped here is found."""
    for file in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"peft.{file.name}")
    return METHODS
