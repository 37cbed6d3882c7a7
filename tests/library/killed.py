"""Writers that are killed, as part of the contract: the module that imports this gives a fixture `config`."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from esper.library import open_library, upkeep

TESTS = Path(__file__).parent.parent


def test_eight_writers_killed_at_random_lose_nothing_and_show_nothing_half(config, tmp_path, monkeypatch):
    told, acknowledged = tmp_path / "config.json", tmp_path / "acknowledged"
    told.write_text(json.dumps(config.model_dump()))
    place = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    writers = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(TESTS / "library/writers.py"), str(told), str(acknowledged), "6"],
        env={**os.environ, "PYTHONPATH": place},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    reads = 0
    with open_library(config) as library:
        try:
            while writers.poll() is None:  # whoever reads meanwhile finds whole kernels only
                for entry in library.find(order_by="created", limit=5):
                    assert library.get(entry.digest).digest == entry.digest
                    reads += 1
            (said,) = map(json.loads, writers.communicate()[0].splitlines())
        finally:
            with suppress(ProcessLookupError):
                os.killpg(writers.pid, signal.SIGKILL)
            writers.wait()
        assert writers.returncode == 0 and said["killed"] >= 8 and said["failed"] == 0, said
        put = [line.split() for line in acknowledged.read_text().splitlines()]
        assert len(put) >= said["killed"] // 2 and reads
        for digest, tag in put:
            entry = library.entry(digest)
            assert tag in entry.tags and tag in {origin.run for origin in library.origins(digest)}
        found = library.verify()
        assert found.problems == () and found.checked == len(library.find(limit=10_000)) >= len({d for d, _ in put})
        monkeypatch.setattr(upkeep, "WRITING", timedelta(0))  # nobody writes any more
        library.gc(grace=timedelta(0), dry_run=False)
        found = library.verify()
        assert found.problems == () and found.orphans == ()
