"""The networks of the coverage benchmark, and their image sizes.

Widths and depths are always those of the constructor. Images are small where a network takes any size: no channel depends on it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TORCHVISION = "torchvision"
TIMM = "timm"
_LARGEST = ("convnext_large", "regnet_y_128gf", "vit_h_14", "vit_l_16", "vit_l_32")


@dataclass(frozen=True)
class Case:
    """A network and the sides of its square images in pixels: to run it, to run it at another size, to trace it for times and MACs."""

    spec: str
    side: int
    second_side: int
    timed_side: int
    model_args: Mapping[str, Any] = field(default_factory=dict)


def torchvision_cases() -> list[Case]:
    """All of torchvision's classification networks, those that need most memory last."""
    from prunetrain.models.torchvision_models import names

    return [_torchvision_case(name) for name in sorted(names(), key=lambda name: name in _LARGEST)]


def timm_cases() -> list[Case]:
    """Networks of timm at timm's image sizes."""
    import timm

    configs = {name: timm.get_pretrained_cfg(name) for name in TIMM_NAMES}
    sides = {name: int(config.input_size[1]) if config else 224 for name, config in configs.items()}
    return [Case(f"{TIMM}:{name}", side, side + 64, side) for name, side in sides.items()]


def timm_family(name: str) -> str:
    """The module of timm that a network is from."""
    import timm

    return str(timm.model_entrypoint(name).__module__.rpartition(".")[2])


def _torchvision_case(name: str) -> Case:
    side, second, timed = 64, 96, 224
    if name.startswith("vit_"):
        side = 56 if name.endswith("14") else 64
        timed = side  # the network declares a number per patch, so a build has one size
    elif name.startswith(("maxvit", "swin")):
        side, second = 224, 256
    elif name.startswith("inception"):
        side, second, timed = 299, 331, 299  # its auxiliary head takes no smaller images
    arguments = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}  # slow, and weights are random anyway
    return Case(f"{TORCHVISION}:{name}", side, second, timed, arguments)


TIMM_NAMES = (
    "bat_resnext26ts",
    "botnet26t_256",
    "convformer_s18",
    "convmixer_768_32",
    "convnext_pico",
    "convnextv2_pico",
    "cs3darknet_s",
    "cspresnet50",
    "cspresnext50",
    "darknet53",
    "densenet121",
    "densenet264d",
    "dla34",
    "dla60_res2net",
    "dm_nfnet_f0",
    "dpn68",
    "eca_resnet33ts",
    "ecaresnet26t",
    "edgenext_xx_small",
    "efficientnet_b0",
    "efficientnetv2_rw_t",
    "efficientvit_b0",
    "ese_vovnet19b_slim",
    "ese_vovnet19b_slim_dw",
    "fasternet_t0",
    "fastvit_t8",
    "fbnetc_100",
    "focalnet_tiny_srf",
    "gc_efficientnetv2_rw_t",
    "gcresnet50t",
    "gernet_s",
    "ghostnet_100",
    "ghostnetv2_100",
    "halonet26t",
    "hardcorenas_a",
    "hgnet_tiny",
    "hgnetv2_b0",
    "hrnet_w18_small",
    "inception_next_atto",
    "inception_resnet_v2",
    "inception_v3",
    "inception_v4",
    "lambda_resnet26t",
    "lcnet_050",
    "legacy_senet154",
    "legacy_seresnet18",
    "legacy_xception",
    "lowformer_b0",
    "mambaout_femto",
    "mixnet_s",
    "mnasnet_small",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "mobilenetv4_conv_small",
    "mobileone_s0",
    "mobilevit_xxs",
    "nasnetalarge",
    "nextvit_small",
    "nf_regnet_b0",
    "nf_resnet50",
    "pnasnet5large",
    "poolformer_s12",
    "rdnet_tiny",
    "regnetx_002",
    "regnety_002",
    "regnetz_b16",
    "repghostnet_100",
    "repvgg_a0",
    "repvit_m1",
    "res2net50_26w_4s",
    "res2next50",
    "resnest14d",
    "resnet14t",
    "resnet26d",
    "resnetblur50",
    "resnetv2_18",
    "resnetv2_50x1_bit",
    "resnext26ts",
    "rexnet_100",
    "sebotnet33ts_256",
    "selecsls42b",
    "semnasnet_075",
    "seresnet33ts",
    "seresnext26d_32x4d",
    "shvit_s1",
    "skresnet18",
    "skresnext50_32x4d",
    "spnasnet_100",
    "starnet_s1",
    "swiftformer_xs",
    "tinynet_a",
    "tresnet_m",
    "vgg11_bn",
    "visformer_tiny",
    "xception41",
    "xception41p",
    "xception71",
)
