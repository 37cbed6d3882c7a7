"""Models on several devices and in several processes are the same models: run in processes made for it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from esper.caching import VARIABLE
from esper.errors import ShardingError
from esper.sharding import data_parallel, fsdp, tensor_parallel
from esper.sharding.rules import Decision, rules_of

TESTS = Path(__file__).parent
SIZES = {"data": 2, "model": 4}


@pytest.fixture(scope="module", autouse=True)
def captured_once(tmp_path_factory):
    """What one process captures of the few models, later ones find."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(tmp_path_factory.mktemp("captures")))
        yield


def command(devices, *arguments):
    """A Python process with so many virtual devices; compiled without optimisation, as tests are."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    flags += " --xla_cpu_use_fusion_emitters=false"
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=environment,
        cwd=TESTS.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(*processes):
    """Waits for all of them; what they said is the message if one failed."""
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)
    return said


@pytest.mark.parametrize("cases", ["mlp or cnn", "transformer", "not of_one_device"])
def test_on_eight_devices(cases):
    inner = TESTS / "sharded" / "on_eight_devices.py"
    chosen = cases if cases.startswith("not") else f"of_one_device and ({cases})"
    (said,) = finished(command(8, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0", inner, "-k", chosen))
    assert " passed" in said and "skipped" not in said


def test_two_processes_are_one(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    jobs = [command(2, "-m", "sharded.process", number, 2, address, tmp_path / "two.npz") for number in (1, 0)]
    finished(*jobs)
    finished(command(1, "-m", "sharded.process", 0, 1, address, tmp_path / "one.npz"))
    two, one = np.load(tmp_path / "two.npz"), np.load(tmp_path / "one.npz")
    assert two.files == one.files and {name.split()[0] for name in one.files} == {"train", "fit", "carry"}
    for name in one.files:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-6, err_msg=name)


# ---- rules, which touch no device -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "name", "shape", "spec"),
    [
        (data_parallel("data"), "fc.weight", (8, 8), P()),
        (fsdp("data", min_elements=0), "fc.weight", (8, 16), P(None, "data")),
        (fsdp("data", min_elements=0), "fc.weight", (8, 8), P("data")),
        (fsdp("data", min_elements=0), "fc.weight", (8, 15), P("data")),
        (fsdp("data", min_elements=0), "fc.weight", (7, 15), P()),
        (fsdp("data", min_elements=0), "scale", (), P()),
        (fsdp("data", min_elements=65), "fc.weight", (8, 8), P()),
        (fsdp(("data", "model"), min_elements=0), "fc.weight", (12, 8), P(None, ("data", "model"))),
        (tensor_parallel("model"), "layers.0.self_attn.q_proj.weight", (8, 8), P("model")),
        (tensor_parallel("model"), "layers.0.self_attn.q_proj.bias", (8,), P("model")),
        (tensor_parallel("model"), "layers.0.self_attn.o_proj.weight", (8, 8), P(None, "model")),
        (tensor_parallel("model"), "layers.0.self_attn.in_proj_weight", (24, 8), P("model")),
        (tensor_parallel("model"), "layers.0.self_attn.out_proj.bias", (8,), P()),
        (tensor_parallel("model"), "encoder.layer.0.intermediate.dense.weight", (32, 8), P("model")),
        (tensor_parallel("model"), "encoder.layer.0.output.dense.weight", (8, 32), P(None, "model")),
        (tensor_parallel("model"), "mlp.fc1.weight", (32, 8), P("model")),
        (tensor_parallel("model"), "mlp.fc2.weight", (8, 32), P(None, "model")),
        (tensor_parallel("model"), "mlp.gate_proj.weight", (6, 8), P()),
        (tensor_parallel("model"), "embed_tokens.weight", (16, 8), P("model")),
        (tensor_parallel("model"), "norm.weight", (8,), P()),
        (tensor_parallel("model", column=["head"]), "head.weight", (8, 8), P("model")),
        (tensor_parallel("model", column=["head"]), "fc1.weight", (8, 8), P()),
        ([fsdp("data", min_elements=0), tensor_parallel("model")], "fc1.weight", (8, 4), P("model", "data")),
        ([fsdp("model", min_elements=0), tensor_parallel("model")], "fc1.weight", (8, 4), P("model")),
        ({"weight": P(None, "data")}, "fc.weight", (8, 8), P(None, "data")),
        ({"fc": None, "weight": P("data")}, "fc.weight", (8, 8), P()),
        ([("weight", P("model", None)), fsdp("data", min_elements=0)], "fc.weight", (8, 8), P("model")),
        (("weight", P("data")), "fc.bias", (8,), P()),
    ],
)
def test_rules_decide(rules, name, shape, spec):
    assert rules_of(rules).decide(name, shape, SIZES).spec == spec


def test_what_falls_back_says_why():
    decided = rules_of([tensor_parallel("model"), fsdp("data", min_elements=0)]).decide("fc1.weight", (6, 7), SIZES)
    assert decided.notes == ("tensor_parallel: column dimension 6 is not divisible by 4",) and decided.spec == P("data")
    decided = rules_of(fsdp("data", min_elements=0)).decide("weight", (7, 7), SIZES)
    assert decided == Decision(notes=("fsdp: no dimension left that 2 divides",))


def test_the_batch_is_split_over_what_presets_say():
    found = rules_of([tensor_parallel("model"), data_parallel(("replica", "data")), fsdp("data")]).batch
    assert found == ("replica", "data")
    assert rules_of([tensor_parallel("model"), ("weight", P("data"))]).batch == ()


@pytest.mark.parametrize(
    "make",
    [
        lambda: fsdp("data", min_elements=-1),
        lambda: fsdp(()),
        lambda: data_parallel(3),
        lambda: tensor_parallel("model", column="fc1"),
        lambda: tensor_parallel("model", row=["("]),
        lambda: tensor_parallel(("a", "b")),
    ],
)
def test_presets_check_their_arguments(make):
    with pytest.raises(ShardingError):
        make()
