import pytest

from esper.configs import EsperConfig
from esper.library import open_library


@pytest.fixture
def config(tmp_path):
    return EsperConfig(name="test", components={"urza": {"config": {"folder": str(tmp_path / "library")}}})


@pytest.fixture
def opened(config):
    """Opens the library under test, again and again; all of it is closed at the end."""
    libraries = []

    def again():
        libraries.append(open_library(config))
        return libraries[-1]

    yield again
    for library in libraries:
        library.close()


@pytest.fixture
def library(opened):
    return opened()
