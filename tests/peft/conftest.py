"""Share fixtures between the tests of methods."""

import pytest

from tests.helpers import methods
from tests.helpers.architectures import DIFFERENT


@pytest.fixture(params=DIFFERENT)
def architecture(request, monkeypatch) -> str:
    """Let `tiny` make each kind of architecture in turn."""
    monkeypatch.setattr(methods, "ARCHITECTURE", request.param)
    return request.param
