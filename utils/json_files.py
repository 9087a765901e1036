"""JSON files beside the weights: configurations, indexes, vocabularies."""

import json
from pathlib import Path


def read_json(file: Path) -> object:
    """Its content. Whatever is wrong with the file is an OSError or a ValueError."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("brackets within brackets, too many") from None
