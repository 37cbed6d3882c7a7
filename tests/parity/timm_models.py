"""timm's image models: the smallest variant of every architecture family, values and gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import nn

from parity.case import Call, Case
from parity.torchvision_stand_in import torchvision_stand_in


@dataclass(frozen=True)
class Row:
    """What stands for a family.

    Attributes:
        model: The registered model with the fewest parameters.
        size: Height and width of the input.
        sized: The constructor is told the size, as `img_size`.
        batch: 8 where batch norm meets one value for each image; fewer have no statistics to speak of.
        train: Batch norm and whatever else differs works as in training; drop rates are 0 either way.
        wide: Judged in float64.
        options: For the constructor.
        note: Why the row is not as the others are.
    """

    model: str
    size: int
    sized: bool = False
    batch: int = 2
    train: bool = True
    wide: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


# Sizes are the smallest that keep maps of two by two, which batch norm and shifted windows need.
TABLE = {
    "beit": Row("beit_base_patch16_224", 32, sized=True),
    "byoanet": Row("halonet_h1", 256, sized=True, train=False),
    "byobnet": Row("test_byobnet", 48),
    "cait": Row("cait_xxs24_224", 32, sized=True, options={"depth": 6}, note="6 of 24 blocks: time"),
    "coat": Row("coat_tiny", 64, sized=True),
    "convit": Row("convit_tiny", 32, sized=True),
    "convmixer": Row("convmixer_768_32", 32, train=False),
    "convnext": Row("test_convnext", 64),
    "cpubone": Row("cpubone_nano", 48),
    "crossvit": Row("crossvit_tiny_240", 48),
    "csatv2": Row("csatv2", 64, options={"depths": (2, 2, 3, 3)}, note="10 of 18 blocks: time"),
    "cspnet": Row("cs3darknet_focus_s", 48),
    "cspnext": Row("cspnext_tiny", 48, batch=4),  # of two, its last norms see 8 values and make much of rounding
    "davit": Row("davit_tiny", 64),
    "deepseek_vit": Row("deepseek_vit_412m", 28, sized=True, options={"depth": 2}, note="2 of 32 blocks: time"),
    "deit": Row("deit_tiny_patch16_224", 32, sized=True),
    "densenet": Row("densenet121", 64, options={"block_config": (2, 2, 2, 2)}, note="8 of 58 layers: time"),
    "dla": Row("dla46x_c", 64, train=False),
    "dpn": Row("dpn48b", 48, train=False),
    "edgenext": Row("edgenext_xx_small", 64),
    "efficientformer": Row(
        "efficientformer_l1", 224, wide=True, note="in float32 a value of 3e-7 lies on either side of a ReLU's kink"
    ),
    "efficientformer_v2": Row("efficientformerv2_s0", 64, sized=True),
    "efficientnet": Row("test_efficientnet", 48),
    "efficientvim": Row("efficientvim_m1", 96),
    "efficientvit_mit": Row("efficientvit_b0", 48),
    "efficientvit_msra": Row("efficientvit_m0", 64, sized=True, batch=8),
    "eva": Row("vit_tiny_patch16_dinov3_qkvb", 32, sized=True),
    "fasternet": Row("fasternet_t0", 64),
    "fastvit": Row("fastvit_t8", 48),
    "focalnet": Row("focalnet_tiny_srf", 64),
    "gcvit": Row("gcvit_xxtiny", 64, sized=True),
    "gemma4_vit": Row("gemma4_vit_167m", 32, sized=True, options={"depth": 2}, note="2 of 16 blocks: time"),
    "ghostnet": Row("ghostnet_050", 48),
    "hardcorenas": Row("hardcorenas_b", 48),
    "hgnet": Row("hgnetv2_b0", 48, train=False),
    "hiera": Row("hiera_tiny_224", 64, sized=True),
    "hieradet_sam2": Row("sam2_hiera_tiny", 64),
    "hrnet": Row("hrnet_w18_small", 64, train=False),
    "iformer": Row("iformer_t", 64, batch=8),
    "inception_next": Row("inception_next_atto", 64),
    "inception_resnet_v2": Row("inception_resnet_v2", 96, train=False),
    "inception_v3": Row("inception_v3", 96, train=False),
    "inception_v4": Row("inception_v4", 112, train=False),
    "lcnetv2": Row("lcnetv2_small", 48, train=False),
    "levit": Row("levit_128s", 64, sized=True, batch=8),
    "lowformer": Row("lowformer_b0", 48),
    "mambaout": Row("test_mambaout", 64),
    "maxxvit": Row("test_coatnet", 64, sized=True),
    "metaformer": Row("poolformerv2_s12", 64),
    "mlp_mixer": Row("gmlp_ti16_224", 32, sized=True),
    "mobilenetv3": Row("mobilenetv3_small_050", 48),
    "mobilenetv5": Row("mobilenetv5_base", 64),
    "mobilevit": Row("mobilevit_xxs", 48, sized=True),
    "mvitv2": Row("mvitv2_tiny", 64, sized=True),
    "naflexvit": Row("naflexvit_base_patch16_parfac_gap", 32, sized=True),
    "nasnet": Row("nasnetalarge", 48, train=False),
    "nest": Row("nest_tiny", 64, sized=True),
    "nextvit": Row("nextvit_small", 64, batch=4, options={"depths": (3, 4, 5, 3)}, note="15 of 20 blocks: time"),
    "nfnet": Row("test_nfnet", 64),
    "pit": Row("pit_ti_224", 64, sized=True),
    "pnasnet": Row("pnasnet5large", 48, train=False),
    "pvt_v2": Row("pvt_v2_b0", 64),
    "qwen3_vit": Row("qwen3_vit_88m", 32, sized=True),
    "rdnet": Row("rdnet_tiny", 64),
    "regnet": Row("regnetx_002", 48),
    "repghost": Row("repghostnet_050", 64, batch=4),
    "repvit": Row("repvit_m1", 64, batch=8, options={"depth": (1, 1, 2, 1)}, note="5 of 20 blocks: time"),
    "res2net": Row("res2next50", 48, options={"layers": (1, 1, 1, 1)}, note="4 of 16 blocks: time"),
    "resnest": Row(
        "resnest14d", 48, batch=8, wide=True, note="in float32 a value of 5e-8 lies on either side of a ReLU's kink"
    ),
    "resnet": Row("test_resnet", 48),
    "resnetv2": Row("resnetv2_18", 48),
    "rexnet": Row("rexnet_100", 64, batch=8),
    "selecsls": Row("selecsls42", 96, train=False),
    "senet": Row("legacy_seresnet18", 48),
    "sequencer": Row("sequencer2d_s", 32, sized=True),
    "shvit": Row("shvit_s1", 64, train=False, options={"depth": (1, 2, 2)}, note="5 of 11 blocks: time"),
    "sknet": Row("skresnet18", 48, batch=8),
    "starnet": Row("starnet_s050", 48),
    "swiftformer": Row("swiftformer_xs", 48, sized=True),
    "swin_transformer": Row("swin_tiny_patch4_window7_224", 64, sized=True),
    "swin_transformer_v2": Row("swinv2_tiny_window16_256", 64, sized=True),
    "swin_transformer_v2_cr": Row("swinv2_cr_tiny_224", 64, sized=True),
    "tiny_vit": Row("tiny_vit_5m_224", 64),
    "tnt": Row("tnt_s_legacy_patch16_224", 32, sized=True, options={"depth": 4}, note="4 of 12 blocks: time"),
    "tresnet": Row("tresnet_m", 48, options={"layers": (1, 1, 2, 1)}, note="5 of 21 blocks: time"),
    "twins": Row("twins_svt_small", 64, sized=True),
    "vgg": Row("vgg11", 32, wide=True, note="in float32 a value of 6e-7 lies on either side of a ReLU's kink"),
    "visformer": Row("visformer_tiny", 64, sized=True),
    "vision_transformer": Row("test_vit", 32, sized=True),
    "vision_transformer_hybrid": Row("vit_tiny_r_s16_p8_224", 32, sized=True),
    "vision_transformer_relpos": Row("test_vit_relpos", 32, sized=True),
    "vision_transformer_sam": Row("samvit_base_patch16_224", 32, sized=True),
    "vitamin": Row("vitamin_small_224", 64, sized=True),
    "volo": Row("volo_d1_224", 64, sized=True),
    "vovnet": Row("ese_vovnet19b_slim_dw", 64),
    "xception": Row("legacy_xception", 64),
    "xception_aligned": Row("xception41p", 48),
    "xcit": Row("xcit_nano_12_p8_224", 32, sized=True),
}


def cases() -> list[Case]:
    """One case for every family.

    Raises:
        ModuleNotFoundError: timm is not installed.
        LookupError: The table does not name timm's families.
    """
    timm = _timm()
    check_table(timm)
    return [Case(family, _build(timm, row)) for family, row in TABLE.items()]


def check_table(timm: ModuleType) -> None:
    """Raises LookupError unless the table has a row for each of timm's families and for nothing else."""
    families = set(timm.list_modules())
    odd = {"without a row": families - set(TABLE), "unknown to timm": set(TABLE) - families}
    found = [f"{what}: {', '.join(sorted(names))}" for what, names in odd.items() if names]
    if found:
        raise LookupError(f"timm {timm.__version__} and the table differ; families {'; '.join(found)}")


def _timm() -> ModuleType:
    try:
        with torchvision_stand_in():
            import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise ModuleNotFoundError("timm is not installed; `make parity` installs it", name="timm") from error
    return timm


def _build(timm: ModuleType, row: Row) -> Callable[[], list[Call]]:
    def build() -> list[Call]:
        torch.manual_seed(0)
        size = {"img_size": row.size} if row.sized else {}
        module = timm.create_model(row.model, pretrained=False, **size, **row.options)
        _never_drop(module)
        _stir(module)
        image = torch.randn(row.batch, 3, row.size, row.size)
        if row.wide:
            module, image = module.double(), image.double()
        return [Call(module, (image,), train=row.train, wide=row.wide)]

    return build


def _never_drop(module: nn.Module) -> None:
    """Sets the rates of everything that drops at random to 0."""
    for part in module.modules():
        names = ("p", "drop_prob") if "Drop" in type(part).__name__ else ("drop_rate",)
        for name in names:
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)


def _stir(module: nn.Module) -> None:
    """Adds noise to parameters that start out constant: a gain of zero would hide what it multiplies."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
