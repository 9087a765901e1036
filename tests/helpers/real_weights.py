"""Find the real pretrained weights that `python -m tools.real_weights` brings."""

from pathlib import Path

import pytest

from tools.real_weights import default_folder

FOLDER = default_folder()  # before a test changes where our cache is


def real_weights(name: str) -> Path:
    """Return the directory of a checkpoint, or skip the test where there is none."""
    if not (FOLDER / name).is_dir():
        pytest.skip(f"needs real weights in {FOLDER / name}: python -m tools.real_weights")
    return FOLDER / name
