"""The library under test, opened as often as a test likes; `config` is the back end's own."""

import pytest

from esper.library import open_library


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
