"""What grew becomes part of its layer where that is exact algebra, and stays beside it elsewhere."""

import types

import jax
import pytest
import torch
from growing import fitted, is_ordinary, trained
from test_blueprints import FIRST, KEY, built, fits
from torch import nn

import esper
from esper.errors import ArgumentError, WrapError
from esper.lifecycle import SeedLifecycleState as State
from esper.torch_frontend.blueprints import blueprint, names_for

PLAIN = {"linear", "linear on sequences", "the root", "conv1d", "conv2d", "conv2d, dilated, padded by name", "conv3d"}
PLAIN |= {"transposed conv2d", "grouped conv2d"}
NORMS = {"layer norm", "batch norm", "batch norm of rows", "batch norm of signals", "group norm"}
BLOCKS = {"two linear layers", "two convolutions"}
FOLDS = {
    "low_rank": PLAIN | {"embedding"},
    "scale_shift": PLAIN | NORMS | BLOCKS | {"embedding", "a module of one's own"},
    "widen": BLOCKS,
    "mlp": {"a module of one's own"},
}
"""By recipe, the hosts that take it in."""


PAIRS = [(name, recipe) for name in FIRST for recipe in names_for("Module") if fits(name, recipe)]


@pytest.mark.parametrize(("name", "recipe"), PAIRS)
def test_a_trained_kernel_folds_or_stays_and_the_result_agrees(name, recipe):
    folds = name in FOLDS.get(recipe, ())
    for blend in ("add", "lerp") if folds else ("add",):
        model, layer, x = built(name)
        grown = trained(model, layer, recipe, x, blend=blend)
        module = esper.unwrap(grown, probe=x, fold=True)
        certificate = esper.certificate(grown, module, x)
        assert certificate.holds
        assert certificate.gradients or name == "embedding"  # which is all there is, and takes integers
        assert is_ordinary(module) == folds
        assert module.esper_folding["merged"] == {layer: int(folds)} and bool(module.esper_folding["kept"]) != folds
        whole = esper.unwrap(grown, probe=x)
        assert esper.certificate(grown, whole, x).holds and not is_ordinary(whole)


def kept(module):
    (reason,) = module.esper_folding["kept"].values()
    return reason


@pytest.mark.parametrize("recipe", ["low_rank", "scale_shift"])
@pytest.mark.parametrize("blend", ["multiply", "gate"])
def test_blends_that_are_no_sums_stay(recipe, blend):
    model, layer, x = built("linear")
    module = esper.unwrap(trained(model, layer, recipe, x, blend=blend), probe=x, fold=True)
    assert blend in kept(module) and not is_ordinary(module)


def branches(**made):
    """Registers recipes for convolutions that are fed what the layer is fed."""
    for name, make in made.items():
        blueprint(f"test_{name}", kinds=("Conv2d",))(lambda site, make=make: zeroed(make(site)))


def zeroed(layer):
    nn.init.zeros_(layer.weight)
    return layer


branches(
    pointwise=lambda site: nn.Conv2d(site["in_channels"], site["out_channels"], 1, site["stride"]),
    depthwise=lambda site: nn.Conv2d(4, 4, 3, padding=1, groups=4),
    row=lambda site: nn.Conv2d(4, 4, (1, 3), padding=(0, 1), bias=False),
    wider=lambda site: nn.Conv2d(4, 4, 5, padding=2),
)


@pytest.mark.parametrize(
    ("recipe", "host", "folds"),
    [
        ("pointwise", nn.Conv2d(4, 6, 3, 2, 1, bias=False), True),
        ("pointwise", nn.Conv2d(4, 6, 5, 1, "same"), True),
        ("pointwise", nn.Conv2d(4, 6, 3, 1, 2, 2, padding_mode="circular"), True),
        ("pointwise", nn.Conv2d(4, 6, 4, 1, 1), False),  # one position fewer: torch itself refuses to add them
        ("depthwise", nn.Conv2d(4, 4, 3, padding=1), True),
        ("depthwise", nn.Conv2d(4, 4, 3, padding=1, groups=4), True),
        ("depthwise", nn.Conv2d(4, 4, 5, padding=2), True),
        ("depthwise", nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), False),
        ("row", nn.Conv2d(4, 4, 3, padding=1), True),
        ("row", nn.Conv2d(4, 4, 3, padding=1, groups=4), False),  # 144 weights in one group for 36 and 48
        ("row", nn.Conv2d(4, 4, (3, 1), padding=(1, 0)), False),
        ("wider", nn.Conv2d(4, 4, 3, padding=1), False),
    ],
)
def test_branches_of_convolutions_fold_where_the_layer_reads_the_same_places(recipe, host, folds):
    x = torch.randn(2, 4, 8, 8)
    model = esper.wrap(host, seeds_per_layer=1)
    if recipe == "pointwise" and host.kernel_size == (4, 4):
        with pytest.raises(esper.errors.SeedError, match="returns shape"):
            trained(model, "", f"test_{recipe}", x)
        return
    grown = trained(model, "", f"test_{recipe}", x)
    module = esper.unwrap(grown, probe=x, fold=True)
    assert is_ordinary(module) == folds and esper.certificate(grown, module, x).holds
    assert module.groups == host.groups


def test_groups_are_not_joined_at_the_price_of_more_weights():
    x, host = torch.randn(2, 32, 6, 6), nn.Conv2d(32, 32, 3, padding=1, groups=32)
    model = esper.wrap(host, seeds_per_layer=1)
    module = esper.unwrap(trained(model, "", "low_rank", x, rank=2), probe=x, fold=True)
    assert "more weights" in kept(module) and module.groups == 32
    shifted = esper.unwrap(trained(model, "", "scale_shift", x), probe=x, fold=True)
    assert is_ordinary(shifted) and shifted.groups == 32


def several(model, layer, x, *recipes):
    model(x)
    for seed, (recipe, blend) in enumerate(recipes):
        model, _ = esper.germinate(model, None, layer=layer, seed=seed, blueprint=recipe, key=KEY, blend=blend)
        model = esper.transition(model, layer=layer, seed=seed, to=State.GRAFTING)
        model = esper.set_alpha(model, layer=layer, seed=seed, alpha=0.5 + 0.1 * seed)
    return fitted(model, x)


@pytest.mark.parametrize(
    ("recipes", "left"),
    [
        ([("low_rank", "add"), ("scale_shift", "add"), ("low_rank", "lerp")], 0),
        ([("scale_shift", "lerp"), ("scale_shift", "add"), ("low_rank", "add")], 0),
        ([("low_rank", "add"), ("mlp", "add"), ("scale_shift", "add")], 1),  # sums may be taken in any order
        ([("low_rank", "lerp"), ("mlp", "multiply"), ("low_rank", "add")], 2),  # and what is no sum may not
        ([("low_rank", "add"), ("squeeze_excite", "add")], 2),  # it reads what the layer itself gives
    ],
)
def test_several_kernels_fold_as_far_as_their_order_allows(recipes, left):
    x = torch.randn(5, 12)
    model = esper.wrap(nn.Sequential(nn.Linear(12, 7), nn.Tanh()))
    grown = several(model, "0", x, *recipes)
    module = esper.unwrap(grown, probe=x, fold=True)
    assert esper.certificate(grown, module, x).holds
    assert len(getattr(module[0], "grown", ())) == left == len(recipes) - module.esper_folding["merged"]["0"]


def test_a_block_takes_in_units_and_scales_at_once_and_is_an_ordinary_wider_one():
    x = torch.randn(5, 5)
    model = esper.wrap(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Dropout(0.1), nn.Linear(6, 5)), [nn.Sequential])
    grown = several(model, "", x, ("widen", "add"), ("scale_shift", "lerp"), ("widen", "lerp"))
    module = esper.unwrap(grown, probe=x, fold=True)
    assert is_ordinary(module) and esper.certificate(grown, module, x).holds
    assert [type(part) for part in module] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert (module[0].out_features, module[3].in_features) == (6 + 32, 38) and "38" in repr(module)


class Halved(nn.Module):
    def forward(self, x):
        return x / 2 if self.training else x


OWN = [("Tanh", None, True), ("GELU", None, False), ("Tanh", torch.sin, False), ("Tanh", Halved(), False)]


class Own(nn.Module):
    """A block whose activation only its forward knows."""

    def __init__(self, then=None):
        super().__init__()
        self.up, self.down, self.then = nn.Linear(5, 6), nn.Linear(6, 5), then

    def forward(self, x):
        y = self.down(torch.tanh(self.up(x)))
        return self.then(y) if self.then else y


@pytest.mark.parametrize(
    ("activation", "then", "folds"), [("Tanh", None, True), ("GELU", None, False), ("Tanh", torch.sin, False)]
)
def test_a_block_of_ones_own_is_tried_before_it_is_folded(activation, then, folds):
    x = torch.randn(2, 3, 5)
    model = esper.wrap(nn.Sequential(Own(then), nn.Linear(5, 2)), target_layers=[Own])
    grown = trained(model, "0", "widen", x, activation=activation)
    module = esper.unwrap(grown, probe=x, fold=True)
    assert is_ordinary(module) == folds and esper.certificate(grown, module, x).holds
    assert module[0].up.out_features == (6 + 16 if folds else 6)
    assert folds or "does more than" in kept(module)


@pytest.mark.parametrize(
    ("host", "folds"),
    [
        (lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)), True),
        (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)), True),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect")),
            True,
        ),
        (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2)), True),
        (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)), False),
        (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3)), False),
        (lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.LayerNorm(6)), False),
        (lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Sequential(nn.Linear(6, 4))), False),
    ],
)
def test_a_scale_behind_a_layer_without_weights_goes_into_the_one_that_reads_it(host, folds):
    host = host()
    x = torch.randn(2, 3, 9, 9) if isinstance(host[0], nn.Conv2d) else torch.randn(3, 5)
    grown = trained(esper.wrap(host, target_layers=["1"]), "1", "scale_shift", x)
    module = esper.unwrap(grown, probe=x, fold=True)
    assert is_ordinary(module) == folds and esper.certificate(grown, module, x).holds


def test_a_reader_that_has_grown_itself_reads_something_else():
    x = torch.randn(3, 5)
    model = esper.wrap(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)), target_layers=["1", "2"])
    for recipe, left in (("mlp", 2), ("low_rank", 0)):
        grown = trained(trained(model, "2", recipe, x), "1", "scale_shift", x)
        module = esper.unwrap(grown, probe=x, fold=True)
        assert len(module.esper_folding["kept"]) == left and esper.certificate(grown, module, x).holds


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


def test_weights_that_others_have_too_stay_as_they_are():
    x = torch.randint(0, 11, (2, 5))
    model = esper.wrap(Tied(), target_layers=["embed"])
    module = esper.unwrap(trained(model, "embed", "low_rank", x), probe=x, fold=True)
    assert "shares" in kept(module) and module.head.weight is module.embed.weight


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 5)
        self.again = self.layer

    def forward(self, x):
        return self.again(torch.tanh(self.layer(x)))


def test_a_layer_that_is_called_twice_folds_once():
    x = torch.randn(3, 5)
    grown = trained(esper.wrap(Twice()), "layer", "low_rank", x)
    module = esper.unwrap(grown, probe=x, fold=True)
    assert is_ordinary(module) and module.again is module.layer and esper.certificate(grown, module, x).holds


class WeightStandardised(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight - weight.mean(), bias)


def own_forward():
    layer = nn.Linear(5, 5)
    layer.forward = types.MethodType(lambda self, x: torch.tanh(nn.functional.linear(x, self.weight)), layer)
    return layer


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    layer = nn.Linear(5, 5)
    layer.register_forward_hook(lambda module, args, output: output * 2)
    return layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: Doubled(5, 5),
        hooked,
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 5)),
        lambda: nn.Embedding(5, 5, max_norm=1.0),
        own_forward,
        lambda: WeightStandardised(5, 5, 1),
    ],
)
def test_a_layer_that_is_not_all_that_torchs_class_is_stays(make):
    host = nn.Sequential(make())
    x = torch.randint(0, 5, (3, 4)) if isinstance(host[0], nn.Embedding) else torch.randn(3, 5)
    x = torch.randn(2, 5, 4, 4) if isinstance(host[0], nn.Conv2d) else x
    grown = trained(esper.wrap(host, target_layers=["0"]), "0", "low_rank", x)
    module = esper.unwrap(grown, probe=x, fold=True)
    assert not is_ordinary(module) and esper.certificate(grown, module, x).holds


def test_norms_get_weights_where_they_had_none():
    for norm in (nn.LayerNorm(6, elementwise_affine=False), nn.GroupNorm(2, 6, affine=False), nn.InstanceNorm1d(6)):
        x = torch.randn(2, 6) if isinstance(norm, nn.LayerNorm) else torch.randn(2, 6, 5)
        grown = trained(esper.wrap(nn.Sequential(norm), target_layers=["0"]), "0", "scale_shift", x)
        module = esper.unwrap(grown, probe=x, fold=True)
        assert is_ordinary(module) and set(module.state_dict()) >= {"0.weight", "0.bias"}
        assert "False" not in repr(module).replace("track_running_stats=False", "")
    x = torch.randn(2, 6)
    grown = trained(esper.wrap(nn.RMSNorm(6), target_layers=[nn.RMSNorm]), "", "scale_shift", x)
    assert "adds nothing" in kept(esper.unwrap(grown, probe=x, fold=True))


def test_what_is_frozen_stays_frozen_and_a_half_stays_half():
    host = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4)).to(torch.bfloat16)
    host[0].requires_grad_(False)
    x = torch.randn(3, 5).to(torch.bfloat16)
    model = esper.wrap(host)
    model(x)
    grown, _ = esper.germinate(model, None, layer="0", blueprint="low_rank", key=KEY)
    kernel = jax.tree.map(lambda leaf: leaf + 0.1, grown.params["kernels"])
    grown = esper.transition(grown.replace(params={**grown.params, "kernels": kernel}), layer="0", to=State.GRAFTING)
    module = esper.unwrap(esper.set_alpha(grown, layer="0", alpha=1.0), probe=x, fold=True)
    assert is_ordinary(module) and module[0].weight.dtype == torch.bfloat16
    assert [p.requires_grad for p in module.parameters()] == [False, False, True, True]


def test_a_model_is_written_into_an_instance_that_is_there():
    x = torch.randn(3, 5)
    host = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)).eval()
    grown = trained(esper.wrap(host), "0", "low_rank", x)
    weight, before = host[2].weight, host[2].weight.detach().clone()
    assert esper.unwrap(grown, probe=x, fold=True, into=host) is host
    assert host[2].weight is weight and not torch.equal(weight, before) and not host.training
    torch.testing.assert_close(host(x), grown(x))
    with pytest.raises(ArgumentError, match="a Linear, and the model was made of a Sequential"):
        esper.unwrap(grown, into=nn.Linear(5, 6))
    with pytest.raises(ArgumentError, match=r"2.weight: .*4, 7.* for .*4, 6"):
        esper.unwrap(grown, into=nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(7, 4)))


def test_the_certificate_finds_a_wrong_gradient():
    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, slope):
            return slope / 2

    host, x = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4)), torch.randn(3, 5)
    model = esper.wrap(host)
    module = esper.unwrap(model, probe=x)
    assert esper.certificate(model, module, x).holds
    module[0].register_forward_hook(lambda module, args, output: Half.apply(output))
    found = esper.certificate(model, module, x)
    assert found.scaled <= 1e-5 and found.gradient_scaled > 0.01 and not found.holds


class Saturated(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(5, 6), nn.Linear(6, 5)

    def forward(self, x):
        return self.down(nn.functional.relu6(self.up(x)))


def test_a_block_of_ones_own_is_tried_where_it_saturates_and_with_kernels_that_are_not_zero():
    x = torch.randn(3, 5)
    model = esper.wrap(nn.Sequential(Saturated()), target_layers=[Saturated])
    module = esper.unwrap(trained(model, "0", "widen", x, activation="ReLU", steps=0), probe=x, fold=True)
    assert "does more than" in kept(module)
    model = esper.wrap(nn.Sequential(Own()), target_layers=[Own])
    module = esper.unwrap(trained(model, "0", "widen", x, activation="GELU", steps=0), probe=x, fold=True)
    assert "does more than" in kept(module)


class Reads(nn.Module):
    """Reads a layer's weight beside the layer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)

    def forward(self, x):
        return torch.tanh(self.embed(x)) @ self.embed.weight.T


def test_weights_that_others_read_stay_as_they_are():
    x = torch.randint(0, 11, (2, 5))
    grown = trained(esper.wrap(Reads(), target_layers=["embed"]), "embed", "low_rank", x)
    for verify in (True, False):
        module = esper.unwrap(grown, probe=x, fold=True, verify=verify)
        assert "others than the layer" in kept(module)


def test_a_layer_that_never_ran_stays():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.idle = nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x):
            return self.layer(x)

    model = esper.wrap(Idle())
    model, _ = esper.germinate(model, None, layer="layer", blueprint="low_rank", key=KEY)
    model = esper.set_alpha(esper.transition(model, layer="layer", to=State.GRAFTING), layer="layer", alpha=1.0)
    assert "not been seen to run" in kept(esper.unwrap(model, fold=True))
    model(torch.ones(2, 5))
    assert is_ordinary(esper.unwrap(model, fold=True))


@blueprint("test_of_rows", kinds=("Conv2d",), placement="sequential")
def of_rows(site):
    return zeroed(nn.Linear(6, 6))


@blueprint("test_dropped", kinds=("Sequential",))
def dropped(site):
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Dropout(0.5), zeroed(nn.Linear(4, 5)))


def test_maps_of_another_axis_and_kernels_with_dropout_stay():
    x = torch.randn(2, 3, 6, 6)
    grown = trained(esper.wrap(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1))), "0", "test_of_rows", x)
    assert "no linear map" in kept(esper.unwrap(grown, probe=x, fold=True))
    block, x = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 5)), torch.randn(3, 5)
    grown = trained(esper.wrap(block, target_layers=[nn.Sequential]), "", "test_dropped", x)
    assert "no hidden units" in kept(esper.unwrap(grown, probe=x, fold=True))
    for host, x in (
        (nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), torch.randn(2, 3, 5, 3)),
        (nn.Sequential(nn.ReLU(), nn.Conv1d(3, 2, 1)), torch.randn(2, 3, 3)),
        (nn.Sequential(nn.ReLU(), nn.Conv2d(3, 2, 2, padding="same")), torch.randn(2, 3, 4, 4)),
        (nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 5, 1)), torch.randn(2, 3, 6)),
    ):
        layer = "1" if isinstance(host[1], nn.ReLU) else "0"
        grown = trained(esper.wrap(host, target_layers=[layer]), layer, "scale_shift", x)
        module = esper.unwrap(grown, probe=x, fold=True)
        assert esper.certificate(grown, module, x).holds and not module.esper_folding["merged"][layer], host


class Between(nn.Module):
    """Keeps what passes between the layers of a sequence."""

    def __init__(self):
        super().__init__()
        self.row = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 5))

    def forward(self, x):
        seen = []
        for layer in self.row:
            x = layer(x)
            seen.append(x)
        return x, seen[1]


def test_where_folding_changes_what_the_module_does_nothing_is_folded():
    x = torch.randn(3, 5)
    grown = trained(esper.wrap(Between(), target_layers=["row.1"]), "row.1", "scale_shift", x, steps=0)
    kernel = jax.tree.map(lambda leaf: leaf + 0.5, grown.params["kernels"])
    grown = grown.replace(params={**grown.params, "kernels": kernel})
    module = esper.unwrap(grown, probe=x, fold=True)
    assert "folded, it is" in kept(module) and esper.certificate(grown, module, x).holds


def test_torchs_fast_path_of_a_transformer_layer_does_not_pass_by_what_grew():
    x = torch.randn(2, 5, 8)
    host = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)).eval()
    grown = trained(esper.wrap(host, target_layers=["0.linear1"]), "0.linear1", "mlp", x)
    module = esper.unwrap(grown, probe=x)
    with torch.no_grad():
        torch.testing.assert_close(module(x), grown(x))


def test_an_attribute_of_the_layers_own_is_not_lost():
    class Layer(nn.Linear):
        grown = "mine"

    x = torch.randn(3, 5)
    model = trained(esper.wrap(Layer(5, 5), target_layers=[Layer]), "", "mlp", x)
    with pytest.raises(WrapError, match="has an attribute `grown`"):
        esper.unwrap(model, probe=x)
