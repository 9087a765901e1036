"""The keys of a kind of JSON file, in three lists: used, harmless, and refused unless it means what is done here anyway."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from utils.errors import UserError


@dataclass(frozen=True)
class KnownSettings:
    """What is known about the keys of one kind of file. A key that is in none of the lists is refused too.

    used       what is read
    harmless   keys, separated by spaces -> why they change no result here
    refused    key -> the values that say what is done here anyway; the file is refused for any other
    """

    used: tuple[str, ...]
    harmless: Mapping[str, str]
    refused: Mapping[str, tuple]

    def names_of_harmless(self) -> set[str]:
        """Return every harmless key."""
        return {name for names in self.harmless for name in names.split()}

    def check(self, place: str, content: Mapping[str, Any]) -> None:
        """Raise UserError for a key that is refused or isn't known. `place` says where it stands.

        A key without a value (null) is no setting.
        """
        harmless = self.names_of_harmless()
        for name, value in content.items():
            if name in self.refused:
                check_value(place, name, value, self.refused[name])
            elif value is not None and name not in self.used and name not in harmless:
                raise UserError(
                    f"{place} sets {name} to {value!r}, and what that means isn't known here; "
                    "remove it there if no result depends on it"
                )


def check_value(place: str, name: str, value: Any, allowed: tuple) -> None:
    """Raise UserError unless the value is one of those that are allowed, or none."""
    same = (one for one in allowed if one == value and type(one) is type(value))
    if value is not None and next(same, None) is None:
        values = " or ".join(repr(one) for one in allowed if one is not None) or "nothing"
        raise UserError(f"{place} sets {name} to {value!r}, which isn't supported; it must be {values}")
