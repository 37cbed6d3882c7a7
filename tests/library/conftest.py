import pytest

from esper.library import open_library


@pytest.fixture
def opened(tmp_path):
    """Opens the library under test, again and again; all of it is closed at the end."""
    libraries = []

    def again():
        libraries.append(open_library(tmp_path / "library"))
        return libraries[-1]

    yield again
    for library in libraries:
        library.close()


@pytest.fixture
def library(opened):
    return opened()
