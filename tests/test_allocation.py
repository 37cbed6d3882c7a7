"""Memory that is freed stays with the process."""

import platform
import subprocess
import sys

import pytest

import esper.allocation

MEASURE = """
import resource, sys
import numpy as np
from esper.allocation import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def once():
    np.ones(2**24, np.float32)  # 64 MiB, of pages of 4 KiB

once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    done = subprocess.run([sys.executable, "-c", MEASURE, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is known")
def test_memory_that_is_freed_is_used_again_without_the_system():
    assert faults("keep") < 100


def test_another_allocator_is_left_alone(monkeypatch):
    monkeypatch.setattr(esper.allocation.platform, "libc_ver", lambda: ("", ""))
    assert not esper.allocation.keep_freed_memory()
