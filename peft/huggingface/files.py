"""What the two files of an adapter of the library `peft` hold, and what its settings say of a module."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError

CLASSIFIERS = ["classifier", "score"]  # what the library adds to `modules_to_save` of an adapter for classification
TIED_NAMES = ("embed_tokens", "lm_head")  # of these alone the library keeps what is tied together (`ensure_weight_tying`)


@dataclass(frozen=True)
class AdapterFiles:
    """The content of an adapter's directory."""

    folder: Path
    config: dict
    tensors: dict[str, torch.Tensor]  # by their names without NAME_PREFIX

    def setting(self, name: str, kind: type | tuple, default: Any = None) -> Any:
        """Return a setting of a type. Raises UserError for another type, or where it is missing and has no default."""
        value = self.config.get(name)
        value = default if value is None else value
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            wanted = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            raise UserError(f"{self.folder}/adapter_config.json has {name} = {value!r}; it must be {wanted}")
        return value

    def setting_of_module(self, name: str, path: str, kind: type | tuple, default: Any) -> Any:
        """Return what `rank_pattern` or `alpha_pattern` says of a module, or the default. Raises UserError.

        The first pattern that matches the end of the module's path counts.
        """
        for pattern, value in self.setting(name, dict, {}).items():
            try:
                found = re.match(rf"(.*\.)?({pattern})$", path)
            except re.error:
                raise UserError(f"{self.folder}/adapter_config.json: {pattern!r} in {name} is no pattern") from None
            if found:
                if not isinstance(value, kind) or isinstance(value, bool):
                    raise UserError(f"{self.folder}/adapter_config.json: {name} gives {pattern!r} the value {value!r}")
                return value
        return default

    def check_names(self, path: str, tensors: dict[str, torch.Tensor], expected: set[str]) -> None:
        """Raise UserError where a module has others than the expected tensors."""
        if tensors.keys() != expected:
            raise UserError(f"{self.folder} has {', '.join(tensors)} for {path}; expected {', '.join(sorted(expected))}")

    def words(self, name: str) -> list[str]:
        """Return a setting that is a list of words, empty where it is missing. Raises UserError."""
        value = self.setting(name, list, [])
        if not all(isinstance(one, str) for one in value):
            raise UserError(f"{self.folder}/adapter_config.json has {name} = {value!r}; it must be a list of names")
        return value

    def adapts(self, path: str) -> bool:
        """Return whether `target_modules` names the module at a path, by the library's rules. Raises UserError.

        A string is a pattern for the whole path, a list holds ends of paths. Of the latter only those in the layers of
        `layers_to_transform` count, and of either none that `exclude_modules` names, or that is or lies in one of
        `modules_to_save`.
        """
        if self._matches("exclude_modules", path) or not self._matches("target_modules", path):
            return False
        if any(self._match(rf"(^|.*\.){one}($|\..*)", path, "modules_to_save") for one in self.words("modules_to_save")):
            return False
        layers = self.setting("layers_to_transform", (int, list), [])
        layers = [layers] if isinstance(layers, int) else layers
        if not layers or isinstance(self.config["target_modules"], str) or path in self.config["target_modules"]:
            return True
        patterns = self.setting("layers_pattern", (str, list), [])
        patterns = [patterns] if isinstance(patterns, str) else patterns
        among = [rf"(?:^|.*?\.){one}\.(\d+)\." for one in patterns if one] or [r".*?\.[^.]*\.(\d+)\."]
        found = next(filter(None, (self._match(one, path, "layers_pattern") for one in among)), None)
        return found is not None and int(found[1]) in layers

    def _matches(self, name: str, path: str) -> bool:
        """Return whether a pattern, or a list of ends of paths, is about a path."""
        value = self.setting(name, (str, list), [])
        if isinstance(value, str):
            return bool(value) and self._match(rf"(?:{value})\Z", path, name) is not None
        return any(path == one or path.endswith(f".{one}") for one in self.words(name))

    def _match(self, pattern: str, path: str, name: str) -> re.Match | None:
        try:
            return re.match(pattern, path)
        except re.error:
            raise UserError(f"{self.folder}/adapter_config.json has a broken pattern in {name}") from None

    def replaces(self, path: str) -> bool:
        """Return whether `modules_to_save` names the module at a path, or one around it. Raises UserError.

        An adapter for classification (SEQ_CLS) always brings its classifier. The library looks at the ends of paths only:
        "classifier" is DistilBERT's pre_classifier too.
        """
        named = self.words("modules_to_save") + (CLASSIFIERS if self.config.get("task_type") == "SEQ_CLS" else [])
        parts = path.split(".")
        around = [".".join(parts[: i + 1]) for i in range(len(parts))]
        return any(one.endswith(tuple(named)) for one in around)

    @property
    def ties_again(self) -> bool:
        """Return whether the library ties the head to the embedding that the adapter brings."""
        named = [name.split(".")[-1] for name in self.words("modules_to_save")]
        return bool(self.config.get("ensure_weight_tying")) and any(name in TIED_NAMES for name in named)

    def check_shape(self, name: str, tensor: torch.Tensor, shape: Iterable[int]) -> None:
        """Raise UserError unless the tensor has that shape."""
        if list(tensor.shape) != list(shape):
            raise UserError(f"{self.folder}: {name} has shape {list(tensor.shape)}, expected {list(shape)}")
