"""What the tests of methods share."""

import pytest

from model.registry import ARCHITECTURES
from tests.helpers import methods


@pytest.fixture(params=list(ARCHITECTURES))
def architecture(request, monkeypatch) -> str:
    """What `tiny` makes in a test that uses this."""
    monkeypatch.setattr(methods, "ARCHITECTURE", request.param)
    return request.param
