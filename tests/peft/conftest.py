"""What the tests of methods share."""

import pytest

from model.registry import ARCHITECTURES
from tests.helpers.methods import tiny


@pytest.fixture(params=list(ARCHITECTURES))
def kind(request, monkeypatch) -> str:
    """What `tiny` makes in a test that uses this."""
    monkeypatch.setattr(tiny, "kind", ARCHITECTURES[request.param])
    return request.param
