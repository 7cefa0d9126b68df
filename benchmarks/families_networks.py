"""The networks of `families.py`: the smallest variant of each family, at an input as small as it takes."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from maskaudit.loading.vision import ready_torchvision


@dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        name: SPEC of timm or torchvision, or `hf:TYPE` for a type of transformers.
        shape: of a point, with inputs from 0 to 1.
        config: the class of transformers and the entries of its configuration that differ from its defaults.
    """

    name: str
    shape: tuple[int, ...]
    config: tuple[str, dict[str, Any]] | None = field(default=None, hash=False)


#: SPEC and side of the image.
TIMM = {
    "timm:beit_base_patch16_224(num_classes=10, img_size=32, depth=2, embed_dim=192, num_heads=3)": 32,
    "timm:test_byobnet(num_classes=10, img_size=32)": 32,
    "timm:cait_xxs24_224(num_classes=10, img_size=32, depth=2)": 32,
    "timm:coat_tiny(num_classes=10, img_size=32)": 32,
    "timm:convit_tiny(num_classes=10, img_size=32, depth=2)": 32,
    "timm:convmixer_768_32(num_classes=10)": 32,
    "timm:test_convnext(num_classes=10)": 32,
    "timm:cpubone_nano(num_classes=10)": 32,
    "timm:crossvit_tiny_240(num_classes=10)": 32,
    "timm:csatv2(num_classes=10)": 64,
    "timm:cs3darknet_focus_s(num_classes=10)": 32,
    "timm:cspnext_tiny(num_classes=10)": 32,
    "timm:davit_tiny(num_classes=10)": 32,
    "timm:deit_tiny_patch16_224(num_classes=10, img_size=32, depth=2)": 32,
    "timm:densenet121(num_classes=10)": 32,
    "timm:dla46x_c(num_classes=10)": 32,
    "timm:dpn48b(num_classes=10)": 32,
    "timm:edgenext_xx_small(num_classes=10)": 32,
    "timm:efficientformer_l1(num_classes=10)": 224,
    "timm:efficientformerv2_s0(num_classes=10, img_size=32)": 32,
    "timm:test_efficientnet(num_classes=10)": 32,
    "timm:efficientvim_m1(num_classes=10)": 32,
    "timm:efficientvit_b0(num_classes=10)": 32,
    "timm:efficientvit_m0(num_classes=10, img_size=32)": 32,
    "timm:vit_tiny_patch16_dinov3_qkvb(num_classes=10, img_size=32, depth=2)": 32,
    "timm:fasternet_t0(num_classes=10)": 32,
    "timm:fastvit_t8(num_classes=10)": 32,
    "timm:focalnet_tiny_srf(num_classes=10)": 32,
    "timm:gcvit_xxtiny(num_classes=10, img_size=32)": 32,
    "timm:ghostnet_050(num_classes=10)": 32,
    "timm:hardcorenas_b(num_classes=10)": 32,
    "timm:hgnetv2_b0(num_classes=10)": 32,
    "timm:hiera_tiny_224(num_classes=10, img_size=32)": 32,
    "timm:sam2_hiera_tiny(num_classes=10)": 32,
    "timm:hrnet_w18_small(num_classes=10)": 32,
    "timm:iformer_t(num_classes=10)": 32,
    "timm:inception_next_atto(num_classes=10)": 32,
    "timm:inception_resnet_v2(num_classes=10)": 96,
    "timm:inception_v3(num_classes=10)": 96,
    "timm:inception_v4(num_classes=10)": 96,
    "timm:lcnetv2_small(num_classes=10)": 32,
    "timm:levit_128s(num_classes=10, img_size=32)": 32,
    "timm:lowformer_b0(num_classes=10)": 32,
    "timm:test_mambaout(num_classes=10)": 32,
    "timm:test_coatnet(num_classes=10, img_size=32)": 32,
    "timm:poolformerv2_s12(num_classes=10)": 32,
    "timm:gmlp_ti16_224(num_classes=10, img_size=32)": 32,
    "timm:lcnet_035(num_classes=10)": 32,
    "timm:mobilevit_xxs(num_classes=10, img_size=32)": 32,
    "timm:mvitv2_tiny(num_classes=10, img_size=32)": 32,
    "timm:naflexvit_base_patch16_parfac_gap(num_classes=10, img_size=32, depth=2, embed_dim=192, num_heads=3)": 32,
    "timm:nest_tiny(num_classes=10, img_size=32)": 32,
    "timm:nextvit_small(num_classes=10)": 32,
    "timm:test_nfnet(num_classes=10)": 32,
    "timm:pit_ti_224(num_classes=10, img_size=32)": 32,
    "timm:pvt_v2_b0(num_classes=10)": 32,
    "timm:qwen3_vit_88m(num_classes=10, img_size=32, depth=2)": 32,
    "timm:rdnet_tiny(num_classes=10)": 32,
    "timm:regnetx_002(num_classes=10)": 32,
    "timm:repghostnet_050(num_classes=10)": 32,
    "timm:repvit_m1(num_classes=10, img_size=32)": 32,
    "timm:res2next50(num_classes=10)": 32,
    "timm:resnest14d(num_classes=10)": 32,
    "timm:test_resnet(num_classes=10)": 32,
    "timm:resnetv2_18(num_classes=10)": 32,
    "timm:rexnet_100(num_classes=10)": 32,
    "timm:selecsls42(num_classes=10)": 32,
    "timm:legacy_seresnet18(num_classes=10)": 32,
    "timm:sequencer2d_s(num_classes=10, img_size=32)": 32,
    "timm:shvit_s1(num_classes=10)": 32,
    "timm:skresnet18(num_classes=10)": 32,
    "timm:starnet_s050(num_classes=10)": 32,
    "timm:swiftformer_xs(num_classes=10, img_size=32)": 32,
    "timm:swin_tiny_patch4_window7_224(num_classes=10, img_size=32)": 32,
    "timm:swinv2_tiny_window8_256(num_classes=10, img_size=32)": 32,
    "timm:swinv2_cr_tiny_224(num_classes=10, img_size=32)": 32,
    "timm:tiny_vit_5m_224(num_classes=10)": 32,
    "timm:tnt_s_legacy_patch16_224(num_classes=10, img_size=32)": 32,
    "timm:tresnet_m(num_classes=10)": 32,
    "timm:twins_svt_small(num_classes=10, img_size=32)": 32,
    "timm:vgg11(num_classes=10)": 32,
    "timm:visformer_tiny(num_classes=10, img_size=32)": 32,
    "timm:test_vit(num_classes=10, img_size=32)": 32,
    "timm:vit_tiny_r_s16_p8_224(num_classes=10, img_size=32)": 32,
    "timm:test_vit_relpos(num_classes=10, img_size=32)": 32,
    "timm:samvit_base_patch16_224(num_classes=10, img_size=32)": 32,
    "timm:vitamin_small_224(num_classes=10, img_size=32)": 32,
    "timm:volo_d1_224(num_classes=10, img_size=32)": 32,
    "timm:ese_vovnet19b_slim_dw(num_classes=10)": 32,
    "timm:legacy_xception(num_classes=10)": 32,
    "timm:xception41p(num_classes=10)": 32,
    "timm:xcit_nano_12_p8_224(num_classes=10, img_size=32, depth=2)": 32,
}
TORCHVISION = {
    "torchvision:alexnet(num_classes=10)": 64,
    "torchvision:convnext_tiny(num_classes=10)": 32,
    "torchvision:densenet121(num_classes=10)": 32,
    "torchvision:efficientnet_b0(num_classes=10)": 32,
    "torchvision:efficientnet_v2_s(num_classes=10)": 32,
    "torchvision:googlenet(num_classes=10, aux_logits=False, init_weights=True)": 32,
    "torchvision:inception_v3(num_classes=10, init_weights=True, aux_logits=False)": 96,
    "torchvision:maxvit_t(num_classes=10)": 224,
    "torchvision:mnasnet0_5(num_classes=10)": 32,
    "torchvision:mobilenet_v2(num_classes=10)": 32,
    "torchvision:mobilenet_v3_small(num_classes=10)": 32,
    "torchvision:regnet_x_400mf(num_classes=10)": 32,
    "torchvision:regnet_y_400mf(num_classes=10)": 32,
    "torchvision:resnet18(num_classes=10)": 32,
    "torchvision:resnext50_32x4d(num_classes=10)": 32,
    "torchvision:shufflenet_v2_x0_5(num_classes=10)": 32,
    "torchvision:squeezenet1_1(num_classes=10)": 32,
    "torchvision:swin_t(num_classes=10)": 32,
    "torchvision:swin_v2_t(num_classes=10)": 32,
    "torchvision:vgg11(num_classes=10)": 32,
    "torchvision:vit_b_16(num_classes=10, image_size=32)": 32,
    "torchvision:wide_resnet50_2(num_classes=10)": 32,
}
#: A small transformer, and small patches of a small image.
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 48, "intermediate_size": 96}
PATCHES = {"image_size": 32, "patch_size": 8}
#: By type: class, shape of a point, and what differs from the defaults of its configuration.
TRANSFORMERS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "audio-spectrogram-transformer": (
        "ASTForAudioClassification",
        (1024, 128),
        SMALL | {"patch_size": 8},
    ),
    "data2vec-audio": ("Data2VecAudioForSequenceClassification", (4000,), SMALL),
    "hubert": ("HubertForSequenceClassification", (4000,), SMALL),
    "sew": ("SEWForSequenceClassification", (4000,), SMALL),
    "sew-d": ("SEWDForSequenceClassification", (4000,), SMALL),
    "unispeech": ("UniSpeechForSequenceClassification", (4000,), SMALL),
    "unispeech-sat": ("UniSpeechSatForSequenceClassification", (4000,), SMALL),
    "wav2vec2": ("Wav2Vec2ForSequenceClassification", (4000,), SMALL),
    "wav2vec2-bert": ("Wav2Vec2BertForSequenceClassification", (100, 160), SMALL),
    "wav2vec2-conformer": ("Wav2Vec2ConformerForSequenceClassification", (4000,), SMALL),
    "wavlm": ("WavLMForSequenceClassification", (4000,), SMALL),
    "whisper": (
        "WhisperForAudioClassification",
        (80, 3000),
        {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 48},
    ),
    "beit": ("BeitForImageClassification", (3, 32, 32), SMALL | PATCHES),
    "bit": ("BitForImageClassification", (3, 32, 32), {"depths": [1, 1, 1, 1]}),
    "convnext": (
        "ConvNextForImageClassification",
        (3, 64, 64),
        {"image_size": 32, "patch_size": 8, "depths": [1, 1, 1, 1]},
    ),
    "convnextv2": (
        "ConvNextV2ForImageClassification",
        (3, 64, 64),
        {"image_size": 32, "patch_size": 8, "depths": [1, 1, 1, 1]},
    ),
    "cvt": ("CvtForImageClassification", (3, 32, 32), {}),
    "data2vec-vision": ("Data2VecVisionForImageClassification", (3, 32, 32), SMALL | PATCHES),
    "deit": ("DeiTForImageClassification", (3, 32, 32), SMALL | PATCHES),
    "dinov2": (
        "Dinov2ForImageClassification",
        (3, 32, 32),
        {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 48, "image_size": 32, "patch_size": 8},
    ),
    "dinov2_with_registers": (
        "Dinov2WithRegistersForImageClassification",
        (3, 32, 32),
        {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 48, "image_size": 32, "patch_size": 8},
    ),
    "focalnet": (
        "FocalNetForImageClassification",
        (3, 32, 32),
        {"image_size": 32, "patch_size": 8, "depths": [1, 1, 1, 1]},
    ),
    "hgnet_v2": ("HGNetV2ForImageClassification", (3, 32, 32), {"depths": [1, 1, 1, 1]}),
    "hiera": ("HieraForImageClassification", (3, 224, 224), {"depths": [1, 1, 1, 1]}),
    "ijepa": ("IJepaForImageClassification", (3, 32, 32), SMALL | PATCHES),
    "levit": ("LevitForImageClassification", (3, 64, 64), {"image_size": 32, "patch_size": 8, "depths": [1, 1, 1]}),
    "mobilenet_v1": ("MobileNetV1ForImageClassification", (3, 32, 32), {"image_size": 32}),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", (3, 32, 32), {"image_size": 32}),
    "mobilevit": (
        "MobileViTForImageClassification",
        (3, 32, 32),
        {"num_attention_heads": 4, "image_size": 32, "patch_size": 8},
    ),
    "mobilevitv2": ("MobileViTV2ForImageClassification", (3, 64, 64), {"image_size": 32}),
    "poolformer": ("PoolFormerForImageClassification", (3, 32, 32), {"patch_size": 8, "depths": [1, 1, 1, 1]}),
    "pvt": ("PvtForImageClassification", (3, 32, 32), {"image_size": 32, "depths": [1, 1, 1, 1]}),
    "pvt_v2": ("PvtV2ForImageClassification", (3, 32, 32), {"depths": [1, 1, 1, 1]}),
    "regnet": ("RegNetForImageClassification", (3, 32, 32), {"depths": [1, 1, 1, 1]}),
    "resnet": ("ResNetForImageClassification", (3, 32, 32), {"depths": [1, 1, 1, 1]}),
    "segformer": ("SegformerForImageClassification", (3, 32, 32), {"depths": [1, 1, 1, 1]}),
    "swiftformer": ("SwiftFormerForImageClassification", (3, 32, 32), {"image_size": 32, "depths": [1, 1, 1, 1]}),
    "swinv2": ("Swinv2ForImageClassification", (3, 32, 32), {"image_size": 32, "depths": [1, 1, 1, 1]}),
    "textnet": ("TextNetForImageClassification", (3, 32, 32), {"depths": [1, 1, 1, 1]}),
    "timm_wrapper": ("TimmWrapperForImageClassification", (3, 32, 32), {}),
    "vit": ("ViTForImageClassification", (3, 32, 32), SMALL | PATCHES),
    "vit_msn": ("ViTMSNForImageClassification", (3, 32, 32), SMALL | PATCHES),
    "clip": (
        "CLIPForImageClassification",
        (3, 32, 32),
        {"vision_config": SMALL | PATCHES},
    ),
    "metaclip_2": (
        "MetaClip2ForImageClassification",
        (3, 32, 32),
        {"vision_config": SMALL | PATCHES},
    ),
    "efficientnet": (
        "EfficientNetForImageClassification",
        (3, 32, 32),
        {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
    ),
    "perceiver": (
        "PerceiverForImageClassificationConvProcessing",
        (3, 32, 32),
        {
            "num_latents": 16,
            "d_latents": 64,
            "num_self_attends_per_block": 2,
            "num_blocks": 1,
            "num_cross_attention_heads": 1,
        },
    ),
}

NETWORKS = {
    network.name: network
    for network in (
        *(Network(spec, (3, side, side)) for spec, side in (TIMM | TORCHVISION).items()),
        *(Network(f"hf:{kind}", shape, config=(made, config)) for kind, (made, shape, config) in TRANSFORMERS.items()),
    )
}


def transformers_model(network: Network) -> nn.Module:
    """A classifier of transformers with random weights."""
    assert network.config is not None
    ready_torchvision()
    made, entries = network.config
    kind = getattr(importlib.import_module("transformers"), made)
    model: nn.Module = kind(kind.config_class(num_labels=10, **entries))
    return model
