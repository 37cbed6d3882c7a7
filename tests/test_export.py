"""`esper.export`: artifacts that run with JAX alone, for all sizes that the capture covers and no others."""

import dataclasses
import json
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import esper
from esper import SeedLifecycleState as State
from esper.errors import (
    ArgumentError,
    EsperError,
    ExportError,
    MissingExtraError,
    ShardingError,
    WrapError,
)
from esper.program import flatten
from esper.program.specialised import agree
from esper.serving import state_of
from esper.serving.files import write_whole
from esper.sharding import data_parallel

# Loads each artifact where neither torch nor esper can be imported, and calls it with each of its inputs.
SERVER = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "esper", "flax", "optax"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Absent())
import jax, numpy as np

folder, out = sys.argv[1], {}
for name, calls in json.load(open(f"{folder}/calls.json")).items():
    artifact = jax.export.deserialize(open(f"{folder}/{name}.jax", "rb").read())
    held = np.load(f"{folder}/{name}.npz")
    for number, (args, kwargs) in enumerate(calls):
        try:
            made = artifact.call(*[held[a] for a in args], **{k: held[v] for k, v in kwargs.items()})
        except ValueError as error:
            out[f"{name}/{number}/refused"] = np.array(str(error))
            continue
        for path, leaf in jax.tree_util.tree_leaves_with_path(made):
            out[f"{name}/{number}/{jax.tree_util.keystr(path)}"] = np.asarray(leaf, np.float64)
np.savez(f"{folder}/served.npz", **out)
"""


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None


class Pair(NamedTuple):
    total: torch.Tensor
    product: torch.Tensor


class Containers(nn.Module):
    """Outputs of every kind that an artifact can have."""

    def forward(self, x, *, mask=None, double=False):
        y = x * mask[:, None] if mask is not None else x
        y = 2 * y if double else y
        pair, size = Pair(y.sum(1), y.prod(1)), 3 * y.shape[0]
        return {"none": None, "number": 1.5, "out": Output(y), "pair": pair, "size": size}


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.cells(x)[0][:, -1])


class Both(nn.Module):
    """Two inputs of one batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Bilinear(3, 4, 5)

    def forward(self, x, y):
        return self.layer(x, y), x.sum(1) + y.sum(1)


class Halved(nn.Module):
    def forward(self, x):
        return x.reshape(-1, 2, x.shape[1]).sum(1)


class Few(nn.Module):
    def forward(self, x):
        torch._check(x.shape[0] <= 4)
        return 2 * x


def cnn():
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(32, 4)),
    )


def transformer():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False)


def gpt():
    import transformers

    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=8, use_cache=False, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def grown(module, x, layers):
    """The module with a kernel at alpha 0.5 beside each layer, and one that takes no part."""
    model = esper.wrap(module.eval(), example_inputs=x)
    for place, (layer, blueprint) in enumerate(layers.items()):
        key = jax.random.key(place)
        model, _ = esper.germinate(model, None, layer=layer, blueprint=blueprint, key=key)
        model, _ = esper.germinate(model, None, layer=layer, seed=1, blueprint=blueprint, key=key)
        model = esper.set_alpha(esper.transition(model, layer=layer, to=State.GRAFTING), layer=layer, alpha=0.5)
    return model.replace(params=jax.tree.map(lambda leaf: leaf + 0.02, model.params))


def wrapped(module, example, **options):
    torch.manual_seed(0)
    return esper.wrap(module.eval(), example_inputs=example, **options)


def images(n):
    return torch.randn(n, 3, 8, 8)


def small_cnn():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 6))


# name: the model, its inputs for a batch size, the batch sizes that are served and those that are refused, options.
SERVED = {
    "cnn": (lambda: wrapped(cnn(), images(3)), images, (1, 2, 5), (), {}),
    "transformer": (
        lambda: wrapped(transformer(), torch.randn(2, 5, 8)),
        lambda n: torch.randn(n, 5, 8),
        (1, 4),
        (),
        {},
    ),
    "lstm": (lambda: wrapped(Recurrent(), torch.randn(1, 5, 6)), lambda n: torch.randn(n, 5, 6), (1, 2, 3), (), {}),
    "gpt": (
        lambda: wrapped(gpt(), torch.ones(3, 5, dtype=torch.int64)),
        lambda n: torch.randint(0, 11, (n, 5)),
        (1, 4),
        (),
        {},
    ),
    "grown": (
        lambda: grown(small_cnn(), images(3), {"0": "low_rank", "3": "mlp"}),
        images,
        (1, 4),
        (),
        {},
    ),
    "containers": (
        lambda: wrapped(Containers(), None),
        lambda n: {"x": torch.randn(n, 3), "mask": torch.rand(n)},
        (1, 3),
        (),
        {"example_inputs": {"x": torch.randn(2, 3), "mask": torch.rand(2), "double": True}},
    ),
    "both": (
        lambda: wrapped(Both(), (torch.randn(3, 3), torch.randn(3, 4))),
        lambda n: (torch.randn(n, 3), torch.randn(n, 4)),
        (1, 4),
        (),
        {},
    ),
    "halved": (lambda: wrapped(Halved(), torch.randn(4, 3)), lambda n: torch.randn(n, 3), (2, 6), (1, 3), {}),
    "few": (lambda: wrapped(Few(), torch.randn(3, 3)), lambda n: torch.randn(n, 3), (1, 4), (5,), {}),
    "fixed": (
        lambda: wrapped(nn.Linear(3, 2), torch.randn(3, 3)),
        lambda n: torch.randn(n, 3),
        (3,),
        (2,),
        {"sizes": "fixed"},
    ),
    "narrowed": (
        lambda: wrapped(nn.Linear(3, 2), torch.randn(3, 3)),
        lambda n: torch.randn(n, 3),
        (2, 8),
        (1, 9),
        {"constraints": ["batch >= 2", "batch <= 8"]},
    ),
}
EXTRA = {"containers": {"double": True}}


def as_call(given):
    if isinstance(given, dict):
        return (), given
    return (given, {}) if isinstance(given, tuple) else ((given,), {})


def numpy_of(tensor):
    """As the artifact takes it: 64-bit mode is off where it is exported."""
    array = tensor.numpy()
    return array.astype(np.int32) if array.dtype == np.int64 else array


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """What a process without torch and esper makes of all artifacts, and what it is compared with."""
    folder, calls, expected = tmp_path_factory.mktemp("artifacts"), {}, {}
    for name, (make, inputs, sizes, refused, options) in SERVED.items():
        torch.manual_seed(1)
        model = make()
        esper.export(model, folder / f"{name}.jax", **options)
        held = {}
        for number, size in enumerate((*sizes, *refused)):
            args, kwargs = as_call(inputs(size))
            args = {f"{number}.{place}": numpy_of(tensor) for place, tensor in enumerate(args)}
            kwargs = {key: (f"{number}.{key}", numpy_of(tensor)) for key, tensor in kwargs.items()}
            held |= args | dict(kwargs.values())
            calls.setdefault(name, []).append([list(args), {key: place for key, (place, _) in kwargs.items()}])
            if size in sizes:
                given = {key: jnp.asarray(array) for key, (_, array) in kwargs.items()} | EXTRA.get(name, {})
                expected[name, number] = model(*map(jnp.asarray, args.values()), **given)
        np.savez(folder / f"{name}.npz", **held)
    (folder / "calls.json").write_text(json.dumps(calls))
    subprocess.run([sys.executable, "-c", SERVER, str(folder)], check=True)
    return dict(np.load(folder / "served.npz")), expected


def leaves_of(found, name, number):
    prefix = f"{name}/{number}/"
    return {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}


@pytest.mark.parametrize("name", SERVED)
def test_an_artifact_serves_without_torch_and_esper(served, name):
    found, expected = served
    _, _, sizes, refused, _ = SERVED[name]
    for number, _ in enumerate(sizes):
        made = flatten(expected[name, number])[0]
        given = leaves_of(found, name, number)
        assert "refused" not in given, given
        assert len(given) == len(made)
        for one, other in zip(given.values(), made, strict=True):
            np.testing.assert_allclose(one, np.asarray(other, np.float64), rtol=1e-6, atol=1e-6)
    for number in range(len(sizes), len(sizes) + len(refused)):
        assert leaves_of(found, name, number).keys() == {"refused"}


def loaded(model, tmp_path, **options):
    """The artifact, as a file gives it."""
    esper.export(model, tmp_path / "artifact.jax", **options)
    return jax.export.deserialize(bytearray((tmp_path / "artifact.jax").read_bytes()))


def test_outputs_are_plain_containers():
    exported = esper.export(wrapped(Containers(), None), example_inputs={"x": torch.ones(2, 3)})
    made = exported.call(x=jnp.ones((4, 3)))
    assert jax.tree.map(lambda leaf: leaf.shape, made) == {
        "none": None, "number": (), "out": {"hidden": None, "logits": (4, 3)}, "pair": ((4,), (4,)), "size": (),
    }  # fmt: skip
    assert made["size"] == 12 and made["number"] == 1.5 and type(made["pair"]) is tuple and type(made["out"]) is dict


def test_numbers_as_keys_become_text():
    class Numbered(nn.Module):
        def forward(self, x):
            return {1: x, 0: -x}

    made = esper.export(esper.wrap(Numbered()), example_inputs=torch.ones(2, 3)).call(jnp.ones((1, 3)))
    assert made["1"][0, 0] == 1 and made["0"][0, 0] == -1


def test_what_is_no_array_is_part_of_the_artifact():
    class Powers(nn.Module):
        def forward(self, inputs, scale, bias):
            return inputs["x"] ** inputs["power"] * scale + bias

    model = wrapped(Powers(), None)
    exported = esper.export(model, example_inputs=({"x": torch.ones(2, 3), "power": 3}, 2.0, torch.ones(3)))
    x = jnp.arange(15.0).reshape(5, 3)
    np.testing.assert_allclose(exported.call({"x": x, "power": None}, None, jnp.ones(3)), 2 * x**3 + 1)


def test_the_file_is_what_jax_serialises_and_the_text_is_stablehlo(tmp_path):
    model = wrapped(nn.Linear(3, 2), torch.ones(2, 3))
    exported = esper.export(model, tmp_path / "a.jax")
    assert (tmp_path / "a.jax").read_bytes() == bytes(exported.serialize())
    assert exported.platforms == ("cpu", "cuda", "tpu") and "stablehlo.dot_general" in exported.mlir_module()
    assert [str(dim) for dim in exported.in_avals[0].shape] == ["batch", "3"]


@pytest.mark.parametrize("name", ["cnn", "transformer", "lstm", "grown"])
def test_gradients_of_what_is_loaded(name, tmp_path):
    make, inputs, *_ = SERVED[name]
    torch.manual_seed(2)
    model = make()
    artifact, x = loaded(model, tmp_path, vjp=True), jnp.asarray(inputs(4).numpy())
    found, wanted = (jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x))))(x) for f in (artifact.call, model))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_without_a_derivative_in_the_file_there_is_none(tmp_path):
    artifact = loaded(wrapped(nn.Linear(3, 2), torch.ones(2, 3)), tmp_path)
    assert not artifact.has_vjp()


def test_parameters_as_an_argument_and_their_gradients(tmp_path):
    torch.manual_seed(3)
    model = grown(small_cnn(), images(3), {"0": "low_rank", "3": "mlp"})
    artifact, state = loaded(model, tmp_path, parameters="argument", vjp=True), state_of(model)
    assert state["kernels"].keys() == {"0", "3"} and state["kernels"]["3"].keys() == {"0"}
    x = jnp.asarray(images(4).numpy())
    np.testing.assert_allclose(artifact.call(state, x), model(x), rtol=1e-6, atol=1e-6)
    halved = jax.tree.map(lambda leaf: leaf / 2, state)
    params = jax.tree.map(lambda leaf: leaf / 2, model.params)
    np.testing.assert_allclose(artifact.call(halved, x), model.replace(params=params)(x), rtol=1e-6, atol=1e-6)

    found = jax.grad(lambda state: jnp.sum(jnp.sin(artifact.call(state, x))))(state)
    wanted = jax.grad(lambda params: jnp.sum(jnp.sin(model.replace(params=params)(x))))(model.params)
    for layer, seeds in found["kernels"].items():
        for name, slope in seeds["0"].items():
            np.testing.assert_allclose(slope, wanted["kernels"][layer][0][name], rtol=1e-5, atol=1e-5)
    for name, slope in found["host"].items():
        np.testing.assert_allclose(slope, wanted["host"][name], rtol=1e-5, atol=1e-5)


def test_every_platform_gets_its_own_convolution():
    model = wrapped(nn.Sequential(nn.Conv2d(3, 8, 3, groups=1), nn.Conv2d(8, 8, 3, groups=8)), images(3))
    texts = {p: esper.export(model, platforms=(p,)).mlir_module() for p in ("cpu", "cuda", "tpu")}
    counts = {platform: text.count("stablehlo.convolution") for platform, text in texts.items()}
    assert counts == {"cpu": 0, "cuda": 2, "tpu": 2}
    both = esper.export(model, platforms=("cpu", "tpu")).mlir_module()
    assert both.count("stablehlo.convolution") == 2 and "_platform_index" in both


def test_an_operator_that_a_platform_lacks_is_refused_for_it():
    class Eigenvalues(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x).abs()

    model = wrapped(Eigenvalues(), torch.randn(2, 3, 3))
    with pytest.raises(ExportError, match="platforms="):
        esper.export(model, platforms=("cpu", "tpu"))


def test_training_mode_draws_and_gives_what_it_writes(tmp_path):
    module = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model, x = esper.wrap(module.train()), jax.random.normal(jax.random.key(1), (6, 3, 8))
    artifact = loaded(model, tmp_path, example_inputs=torch.ones(4, 3, 8), train=True)
    key = jax.random.key(5)
    made, written = artifact.call(x, key=jax.random.key_data(key))
    wanted, moved = model.apply(x, train=True, key=key)
    np.testing.assert_allclose(made, wanted, rtol=1e-6, atol=1e-6)
    assert written.keys() == moved.buffers.keys()
    for name, array in written.items():
        np.testing.assert_allclose(array, moved.buffers[name], rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes(dtype, tmp_path):
    with jax.enable_x64(dtype is torch.float64):
        model = wrapped(cnn().to(dtype), images(2).to(dtype))
        artifact, x = loaded(model, tmp_path), jnp.asarray(images(3).numpy()).astype(str(dtype).removeprefix("torch."))
        made, wanted = artifact.call(x), model(x)
        assert made.dtype == wanted.dtype == x.dtype
        limit = 1e-12 if dtype is torch.float64 else 2e-2
        np.testing.assert_allclose(made.astype(float), wanted.astype(float), rtol=limit, atol=limit)


def test_an_existing_file_survives_a_failing_export(tmp_path, monkeypatch):
    class Odd(nn.Module):
        def forward(self, x):
            return {1: x, "1": x}

    path = tmp_path / "a.jax"
    path.write_bytes(b"before")
    with pytest.raises(ExportError, match="text keys"):
        esper.export(esper.wrap(Odd()), path, example_inputs=torch.ones(2, 3))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ExportError, match="No space left"):
        write_whole(path, b"after")
    assert path.read_bytes() == b"before" and [file.name for file in tmp_path.iterdir()] == ["a.jax"]


def test_a_batch_of_one_is_served_only_where_its_capture_does_the_same():
    """Torch captures LSTMs for all sizes but 1: what it does there is compared with a capture at 1."""
    model = wrapped(Recurrent(), torch.ones(3, 5, 6))
    (program,) = model.structure.source.programs
    assert program.guards == ("size(0, 0) != 1",)
    exported = esper.export(model)
    assert exported.call(jnp.ones((1, 5, 6))).shape == (1, 2)

    class Alone(nn.Module):
        def forward(self, x):
            return x + 1 if x.shape[0] == 1 else x

    model = wrapped(Alone(), torch.ones(3, 6))
    exported = esper.export(model, example_inputs=torch.ones(3, 6))
    assert jnp.all(exported.call(jnp.ones((2, 6))) == 1)
    with pytest.raises(ValueError, match=">= 2"):
        exported.call(jnp.ones((1, 6)))
    alone = esper.export(model, example_inputs=torch.ones(1, 6))
    assert alone.in_avals[0].shape == (1, 6) and jnp.all(alone.call(jnp.ones((1, 6))) == 2)


def test_programs_that_differ_in_an_argument_do_not_agree():
    programs = []
    for dim in (1, 2):
        model = wrapped(nn.Softmax(dim), torch.ones(2, 3, 3))
        programs += model.structure.source.programs
    assert agree(programs[0], programs[0], [(1, 3, 3)]) and not agree(*programs, [(1, 3, 3)])


def test_calls_of_several_kinds_are_told_apart():
    model = esper.wrap(nn.Linear(3, 2))
    with pytest.raises(ExportError, match="no call in evaluation mode has been captured: give example_inputs="):
        esper.export(model)
    model(torch.ones(2, 3))
    model(torch.ones(2, 4, 3))
    with pytest.raises(ExportError, match=r"several kinds.*choose by example_inputs=") as caught:
        esper.export(model)
    assert "float32[2, 4, 3]" in str(caught.value)
    assert len(esper.export(model, example_inputs=np.ones((2, 4, 3), np.float32)).in_avals[0].shape) == 3


def test_sizes_that_cannot_be_open_are_refused_and_can_be_fixed():
    class Halves(nn.Module):
        def forward(self, x):
            return x.reshape(x.shape[0] // 2, 2, -1).sum(1)

    model = wrapped(Halves(), torch.ones(4, 6))
    with pytest.raises(ExportError, match=r"sizes='fixed'.*constraints="):
        esper.export(model)
    assert esper.export(model, sizes="fixed").call(jnp.ones((4, 6))).shape == (2, 6)
    exported = esper.export(model, constraints=["mod(batch, 2) == 0"])
    assert exported.call(jnp.ones((6, 6))).shape == (3, 6)
    with pytest.raises(ValueError, match="remainder"):
        exported.call(jnp.ones((5, 6)))


def test_refusals(tmp_path):
    class Texts(nn.Module):
        def forward(self, x):
            return x, "a text"

    linear, x = nn.Linear(3, 2), torch.ones(2, 3)
    model = wrapped(linear, x)
    sharded = esper.shard(model, jax.sharding.Mesh(jax.devices()[:1], ("data",)), data_parallel("data"))
    cases = [
        (WrapError, "use esper.wrap first", lambda: esper.export(linear)),
        (ArgumentError, "parameters is one of", lambda: esper.export(model, parameters="outside")),
        (ArgumentError, "sizes is one of", lambda: esper.export(model, sizes="open")),
        (ArgumentError, "platforms is a sequence", lambda: esper.export(model, platforms="cpu")),
        (ArgumentError, "platforms is a sequence", lambda: esper.export(model, platforms=("abacus",))),
        (ShardingError, "before esper.shard", lambda: esper.export(sharded)),
        (ExportError, "cannot be written", lambda: esper.export(model, tmp_path / "no" / "folder.jax")),
        (ExportError, "cannot be kept", lambda: esper.export(model, constraints=["batch >"])),
        (ExportError, "every size is fixed", lambda: esper.export(model, sizes="fixed", constraints=["batch >= 2"])),
        (ExportError, r"output \[1\] is 'a text'", lambda: esper.export(esper.wrap(Texts()), example_inputs=x)),
        (ExportError, "inside a JAX transformation", lambda: jax.jit(lambda m: esper.export(m) and 0)(model)),
    ]
    for kind, message, act in cases:
        with pytest.raises(kind, match=message) as caught:
            act()
        assert isinstance(caught.value, EsperError)


def test_a_file_needs_flatbuffers(monkeypatch, tmp_path):
    monkeypatch.setattr("esper.serving.find_spec", lambda name: None)
    model = wrapped(nn.Linear(3, 2), torch.ones(2, 3))
    with pytest.raises(MissingExtraError, match=r"esper\[serve\]"):
        esper.export(model, tmp_path / "a.jax")
    assert esper.export(model).call(jnp.ones((1, 3))).shape == (1, 2)
