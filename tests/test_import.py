"""`import esper` is light and changes nothing."""

import subprocess
import sys

import esper

SCRIPT = """
import sys, time
start = time.perf_counter()
import esper
spent = time.perf_counter() - start
heavy = {"torch", "jax", "flax", "optax", "pydantic", "numpy"} & set(sys.modules)
print(",".join(sorted(heavy)), spent)
"""


def run(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout


def test_import_loads_no_framework_and_is_quick():
    heavy, spent = run(SCRIPT).rsplit(" ", 1)
    assert heavy == ""
    assert float(spent) < 0.3


def test_the_public_names():
    assert set(dir(esper)) == {
        "API_VERSION", "EsperConfig", "KasminaLayer", "MorphableModel", "SeedLifecycleState", "__version__",
        "certificate", "compact", "cull", "explain_sharding", "export", "fit", "germinate", "interop", "load",
        "load_kernel", "lowers", "optim", "reserve", "save", "set_alpha", "shard", "torch_module", "transition",
        "unload_kernel", "unwrap", "wrap",
    }  # fmt: skip
    assert all(getattr(esper, name) is not None for name in dir(esper))
    assert (esper.__version__, esper.API_VERSION) == ("0.2.0", "v1")


def test_using_it_changes_no_global_state():
    script = """
import torch, jax
def state():
    return (torch.get_default_dtype(), torch.is_grad_enabled(), torch.initial_seed(),
            torch.backends.mha.get_fastpath_enabled(), torch.get_rng_state().tolist(), jax.config.values)
before = state()
import esper
model = esper.wrap(torch.nn.Linear(3, 2), seeds_per_layer=1)
before = (*before[:4], torch.get_rng_state().tolist(), before[5])
model(torch.ones(2, 3))
esper.unwrap(esper.germinate(model, None, layer="", blueprint="low_rank", key=jax.random.key(0))[0])
after = state()
assert before == after, [(a, b) for a, b in zip(before, after) if a != b]
print("unchanged")
"""
    assert run(script).strip() == "unchanged"
