"""Files that are not what was written: an error or an exact load, never a silent change, never code that runs."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import esper
from esper.errors import CorruptFileError, EsperError, StateError
from esper.persistence.folder import MANIFEST, _canonical
from esper.persistence.tensors import read_tensors, write_tensors

KEY = jax.random.key(0)
FLIPS = 2400  # spread evenly over all files, their headers apart
FORGERIES = 400


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.1), nn.Linear(6, 3))
    model = esper.wrap(module, example_inputs=torch.randn(5, 4))
    model, _ = esper.germinate(model, None, layer="0", blueprint="low_rank", key=KEY)
    return esper.save(model, tmp_path_factory.mktemp("saved"), state={"step": 3, "key": KEY}), model


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to be spoilt."""
    for file in saved[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def equal(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return one.structure.kernels == other.structure.kernels and all(
        a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs
    )


def outcome(folder, model):
    """What a load comes to."""
    try:
        found = esper.load(folder)
    except EsperError as error:
        return type(error)
    assert equal(found, model)
    return "loaded"


def places(file, size):
    """Bits of a file: some of each class of bytes it has."""
    draw = random.Random(file.name)
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little") if file.suffix == ".safetensors" else size
    regions = [(0, 8), (8, header), (header, size)] if file.suffix == ".safetensors" else [(0, size)]
    share = FLIPS // 10 if file.suffix == ".safetensors" else FLIPS // 5
    for start, end in regions:
        yield from (
            draw.randrange(8 * start, 8 * end) for _ in range(min(share, 64 if start == 0 < end == 8 else share))
        )


def test_every_flipped_bit_is_found(saved, folder):
    _, model = saved
    count = 0
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for bit in places(file, len(whole)):
            spoilt = bytearray(whole)
            spoilt[bit // 8] ^= 1 << bit % 8
            file.write_bytes(spoilt)
            assert outcome(folder, model) is CorruptFileError, (file.name, bit)
            count += 1
        file.write_bytes(whole)
    assert count > 2000 and outcome(folder, model) == "loaded"


def test_every_other_length_is_found(saved, folder):
    _, model = saved
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        lengths = {
            0,
            1,
            7,
            8,
            9,
            len(whole) // 2,
            len(whole) - 1,
            *random.Random(file.name).sample(range(len(whole)), 40),
        }
        for spoilt in (*(whole[:length] for length in lengths), whole + b"\0", whole + b"\n", whole * 2):
            file.write_bytes(spoilt)
            assert outcome(folder, model) is CorruptFileError
        file.unlink()
        assert issubclass(outcome(folder, model), StateError)
        file.write_bytes(whole)


def forge(folder, change):
    """Changes a part and gives it the digests that it has then, as somebody would who means harm."""
    body = json.loads((folder / MANIFEST).read_text())
    del body["sha256"]
    change(folder, body)
    for name, (file, _, _) in body["parts"].items():
        data = (folder / file).read_bytes() if (folder / file).is_file() else b""
        digest = hashlib.sha256(data).hexdigest()
        body["parts"][name] = [file, len(data), digest]
    sign(folder, body)


def sign(folder, body):
    (folder / MANIFEST).write_bytes(_canonical({**body, "sha256": hashlib.sha256(_canonical(body)).hexdigest()}))


def mutated(value, draw):
    """JSON with one thing changed, somewhere."""
    kinds = [None, True, -1, 2**70, 0.5, "", "x" * 50, [], {}, {"data": ["models.SavedModel", {}]}, {"float": "nan"}]
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(sorted(value))
        return {**value, key: mutated(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.9:
        place = draw.randrange(len(value))
        if draw.random() < 0.1:
            return value[:place] + value[place + 1 :]
        return [*value[:place], mutated(value[place], draw), *value[place + 1 :]]
    return draw.choice(kinds)


@pytest.mark.parametrize("part", ["model.json", "programs.json"])
def test_forged_data_are_refused_or_run(saved, folder, part):
    """With the right digests anything may come; it is refused by name, or is a model that says what is wrong itself."""
    (file,) = folder.glob(f"{part.split('.')[0]}-*.json")
    whole, draw = file.read_bytes(), random.Random(part)
    refused = 0
    for _ in range(FORGERIES // 2):
        file.write_text(json.dumps(mutated(json.loads(whole), draw)))
        forge(folder, lambda folder, body: None)
        try:
            esper.load(folder, state={"step": 0, "key": KEY})
        except EsperError:
            refused += 1
    assert refused > FORGERIES // 8


def test_forged_tensors_are_refused(saved, folder):
    (file,) = folder.glob("rest-*.safetensors")
    whole, draw = file.read_bytes(), random.Random(1)
    length = int.from_bytes(whole[:8], "little")
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    refused = 0
    for _ in range(FORGERIES // 2):
        text = json.dumps(mutated(header, draw)).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + body)
        forge(folder, lambda folder, body: None)
        try:
            esper.load(folder)
        except EsperError:
            refused += 1
    assert refused > FORGERIES // 4


def test_kernels_and_seeds_that_do_not_fit_are_refused(saved, folder):
    (file,) = folder.glob("rest-*.safetensors")
    whole = read_tensors(memoryview(file.read_bytes()), "")
    for change in (
        {"kernels/0/0/0.weight": np.zeros((9, 4), np.float32)},
        {"kernels/0/0/0.weight": np.zeros((4, 4), np.int32)},
        {"seeds/alpha": np.zeros((2, 5), np.float32)},
        {"seeds/lifecycle": np.zeros((2, 4), np.float32)},
    ):
        write_tensors(file, {**whole, **change})
        forge(folder, lambda folder, body: None)
        with pytest.raises(CorruptFileError):
            esper.load(folder)


# ---- hostile files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b.json", "model-0000000000000000.json/../x", "", "."])
def test_names_that_lead_elsewhere_are_refused(folder, name):
    body = json.loads((folder / MANIFEST).read_text())
    del body["sha256"]
    body["parts"]["model.json"][0] = name
    sign(folder, body)
    with pytest.raises(CorruptFileError, match="no name that esper gives"):
        esper.load(folder)


@pytest.mark.parametrize("part", ["model", "host", "manifest"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_plain_file_is_refused(folder, part, kind, tmp_path_factory):
    (file,) = folder.glob(f"{part}*")
    data = file.read_bytes()
    file.unlink()
    if kind == "link":
        other = tmp_path_factory.mktemp("other") / "file"
        other.write_bytes(data)
        file.symlink_to(other)
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.mkdir()
    with pytest.raises(StateError):
        esper.load(folder)


@pytest.mark.parametrize("part", ["model", "programs", "manifest"])
def test_deep_json_is_refused(folder, part):
    (file,) = folder.glob(f"{part}*.json")
    file.write_text("[" * 200_000 + "]" * 200_000)
    if part != "manifest":
        forge(folder, lambda folder, body: None)
    with pytest.raises(CorruptFileError):
        esper.load(folder)


def test_a_deep_structure_is_refused(folder):
    (file,) = folder.glob("programs-*.json")
    file.write_text('{"list":[' * 20_000 + "]}" * 20_000)
    forge(folder, lambda folder, body: None)
    with pytest.raises(CorruptFileError):
        esper.load(folder)


def test_a_class_that_is_named_is_not_called(folder):
    """Outputs may be objects of the user's classes; what a file names is called only if it is one of data."""
    (file,) = folder.glob("programs-*.json")
    text = file.read_text()
    leaf = '["leaf",[],[],""]'
    assert f'"out_tree":{leaf}' in text
    for kind, path in (
        ("namedtuple", "subprocess:Popen"),
        ("dataclass", "subprocess:Popen"),
        ("dataclass", "os:system"),
    ):
        hostile = json.dumps([kind, [json.loads(leaf)], ["args"], path], separators=(",", ":"))
        file.write_text(text.replace(f'"out_tree":{leaf}', f'"out_tree":{hostile}'))
        forge(folder, lambda folder, body: None)
        found = esper.load(folder)(jnp.ones((2, 4)))
        assert type(found) is dict or type(found).__mro__[1:] == (tuple, object), found


BOUNDED = """
import resource, sys
import esper
from esper.errors import EsperError
import esper.saving, jax
jax.numpy.ones(3).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    esper.load(sys.argv[1])
    raise SystemExit("it was loaded")
except EsperError as error:
    print(type(error).__name__)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def huge_manifest(folder, body):
    with (folder / MANIFEST).open("r+b") as file:
        file.truncate(1 << 33)


def huge_header(folder, body):
    (file,) = folder.glob("host-*")
    file.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")


def huge_tensors(folder, body):
    """A file of holes costs nothing to send."""
    (file,) = folder.glob("host-*")
    with file.open("r+b") as opened:
        opened.truncate(1 << 29)
    body["parts"]["host.safetensors"][1] = 1 << 29


def huge_json(folder, body):
    (file,) = folder.glob("model-*")
    with file.open("r+b") as opened:
        opened.truncate(1 << 31)
    body["parts"]["model.json"][1] = 1 << 31


@pytest.mark.parametrize(
    "change", [huge_manifest, huge_header, huge_tensors, huge_json], ids=lambda change: change.__name__
)
def test_huge_files_are_refused_in_little_memory(folder, change):
    body = json.loads((folder / MANIFEST).read_text())
    del body["sha256"]
    change(folder, body)
    if change is huge_header:
        forge(folder, lambda folder, body: None)
    elif change is not huge_manifest:
        sign(folder, body)
    root = str(Path(esper.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.returncode == 0, done.stderr
    name, megabytes = done.stdout.split()
    assert name == "CorruptFileError" and int(megabytes) < 100


def test_other_formats_and_kinds_are_named(folder, tmp_path_factory):
    body = json.loads((folder / MANIFEST).read_text())
    del body["sha256"]
    sign(folder, {**body, "format": "esper/9"})
    with pytest.raises(StateError, match="of the format 'esper/9'"):
        esper.load(folder)
    sign(folder, {**body, "kind": "checkpoint"})
    with pytest.raises(StateError, match="holds a checkpoint, and a model is expected"):
        esper.load(folder)
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(StateError, match="has no manifest"):
        esper.load(empty)
    with pytest.raises(StateError, match="is no folder"):
        esper.load(empty / "absent")
    sign(folder, {**body, "parts": 3})
    with pytest.raises(CorruptFileError, match="not what was written"):
        esper.load(folder)
