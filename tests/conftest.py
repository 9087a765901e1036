"""What the tests share: where the outside files are, and small models."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
SHARED = Path(
    os.environ.get("PEFT_SHARED", ROOT.parent / "shared")
)  # real data sets and vocabularies, not in the repository


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"needs the data sets in {SHARED}")
    return SHARED


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
