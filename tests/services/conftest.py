"""The servers of the session. A test that stops, kills or fills one starts its own."""

import pytest

from services.servers import missing, postgres, redis, s3


def pytest_sessionstart(session):
    lacking = missing()
    if lacking:
        pytest.exit(f"missing for tests/services: {', '.join(lacking)}; run tests/services/install.sh as root", 3)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory):
    with postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    with redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    with s3(tmp_path_factory.mktemp("s3")) as server:
        yield server
