"""Share fixtures between the tests of methods."""

import pytest

from model.registry import ARCHITECTURES
from tests.helpers import methods


@pytest.fixture(params=list(ARCHITECTURES))
def architecture(request, monkeypatch) -> str:
    """Let `tiny` make each architecture in turn."""
    monkeypatch.setattr(methods, "ARCHITECTURE", request.param)
    return request.param
