"""Puts `tests/` on the path, so that test modules share their helpers, and samples the wide sweeps."""

import gc
import sys
from pathlib import Path
from zlib import crc32

import pytest

sys.path.insert(0, str(Path(__file__).parent / "tests"))

# One case in so many runs by default, always the same ones.
SHARES = {
    "tests/ops/": 12,
    "test_blueprints.py::test_a_live": 3,
    "test_blueprints.py::test_a_blueprint_keeps": 3,
    "test_fast_convolution.py::test_the_primitives": 18,
    "test_flax_kernels.py::test_it_is_zero_at_birth": 8,
    "test_fold.py::test_a_trained": 20,
    "test_parity.py::test_modules[nn.LinearCrossEntropyLoss]": 1 << 32,  # XLA compiles it for minutes: `make parity`
    "test_parity.py::test_semantics": 8,
    "test_parity.py::": 20,
}


def pytest_addoption(parser):
    parser.addoption("--sweep", choices=["sample", "all"], default="sample", help="which cases of the sweeps to run")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--sweep") == "all":
        return
    left_out = [item for item in items if crc32(item.nodeid.encode()) % _share(item.nodeid)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def pytest_collection_finish(session):
    """Leaves what the modules imported out of all later collections: torch and JAX are half a million objects."""
    gc.collect()
    gc.freeze()


MAPPINGS = 20_000  # of a process that may have 65,530; every compiled program takes some, and XLA crashes without any


def pytest_runtest_teardown(item, nextitem):
    """Forgets compiled programs before a worker has too many of them."""
    maps, jax = Path("/proc/self/maps"), sys.modules.get("jax")
    pytest_runtest_teardown.count += 1
    if jax is None or pytest_runtest_teardown.count % 20 or not maps.exists():
        return
    if maps.read_bytes().count(b"\n") > MAPPINGS:
        jax.clear_caches()
        gc.collect()


pytest_runtest_teardown.count = 0


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """For modules whose runs are of a few programs: what one of them captures and compiles, later ones find."""
    from esper.caching import VARIABLE, caches

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(tmp_path_factory.mktemp("caches")))
        with caches():
            yield


def _share(name):
    return next((share for part, share in SHARES.items() if part in name), 1)
