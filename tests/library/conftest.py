import pytest
from library.fixtures import library, opened  # noqa: F401

from esper.configs import EsperConfig


@pytest.fixture
def config(tmp_path):
    return EsperConfig(name="test", components={"urza": {"config": {"folder": str(tmp_path / "library")}}})
