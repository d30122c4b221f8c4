"""Classes of timm, torchvision, segmentation-models-pytorch and ultralytics."""

from typing import Any

from torch import nn

from benchmarks.packages.published_class import (
    HEIGHT_AND_WIDTH,
    PublishedClass,
    fixed_pictures,
    pictures,
)

_SIZES = ((64, 96), (96, 64), (128, 128))


def _timm(name: str, side: int | None = None, dynamic: str | None = None, **options: Any) -> PublishedClass:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, **options)

    shown = ", ".join(f"{key}={value}" for key, value in options.items() if value is True)
    label = f"{name}({shown})" if shown else name
    if dynamic is None:
        return PublishedClass("timm", label, build, fixed_pictures(side or 224))
    return PublishedClass("timm", label, build, pictures, _SIZES, {dynamic: HEIGHT_AND_WIDTH})


def _torchvision(name: str, side: int | None = None, **options: Any) -> PublishedClass:
    def build() -> nn.Module:
        import torchvision.models

        return torchvision.models.get_model(name, weights=None, **options)

    if side is not None:
        return PublishedClass("torchvision", name, build, fixed_pictures(side))
    return PublishedClass("torchvision", name, build, pictures, _SIZES, {_PARAMETER[name]: HEIGHT_AND_WIDTH})


_PARAMETER = {
    "deeplabv3_mobilenet_v3_large": "x",
    "lraspp_mobilenet_v3_large": "input",
    "fcn_resnet50": "x",
    "resnet18": "x",
}


def _segmentation(name: str, encoder: str = "resnet18", **options: Any) -> PublishedClass:
    def build() -> nn.Module:
        import segmentation_models_pytorch

        return getattr(segmentation_models_pytorch, name)(
            encoder_name=encoder, encoder_weights=None, classes=3, **options
        )

    return PublishedClass(
        "segmentation-models-pytorch", f"{name}({encoder})", build, pictures, _SIZES, {"x": HEIGHT_AND_WIDTH}
    )


def _yolo(file: str, dynamic: bool, model: str = "DetectionModel") -> PublishedClass:
    def build() -> nn.Module:
        from ultralytics.nn import tasks

        return getattr(tasks, model)(file, verbose=False)

    name = f"{model}({file})"
    if not dynamic:
        return PublishedClass("ultralytics", name, build, fixed_pictures(64))
    return PublishedClass("ultralytics", name, build, pictures, _SIZES, {"x": HEIGHT_AND_WIDTH})


# torch itself takes minutes to reason about the sizes of this encoder on five levels; ResNet has all five.
_THREE_LEVELS: dict[str, Any] = {"encoder_depth": 3, "decoder_channels": (32, 16, 8)}

CLASSES = (
    _timm("vit_tiny_patch16_224", 64, img_size=64, depth=2),
    _timm("vit_tiny_patch16_224", dynamic="x", img_size=64, depth=2, dynamic_img_size=True),
    _timm("swin_tiny_patch4_window7_224", 56, img_size=56, depths=(2, 2), embed_dim=24, num_heads=(2, 4)),
    _timm("levit_128s"),
    _timm("convnext_atto", dynamic="x"),
    _timm("efficientnet_b0", 96),
    _timm("mobilenetv3_small_100", dynamic="x"),
    _timm("resnet18", dynamic="x", features_only=True),
    _timm("convnext_atto", dynamic="x", features_only=True),
    _timm("eva02_tiny_patch14_224", 56, img_size=56, depth=2),
    _timm("maxvit_rmlp_pico_rw_256", 64, img_size=64),
    _torchvision("resnet18"),
    _torchvision("swin_t", 64),
    _torchvision("vit_b_16", 32, image_size=32),
    _torchvision("deeplabv3_mobilenet_v3_large", weights_backbone=None, aux_loss=True),
    _torchvision("lraspp_mobilenet_v3_large", weights_backbone=None),
    _segmentation("Unet"),
    _segmentation("Unet", "timm-mobilenetv3_small_075", **_THREE_LEVELS),
    _segmentation("UnetPlusPlus", "timm-mobilenetv3_small_075", **_THREE_LEVELS),
    _segmentation("DeepLabV3Plus", "timm-mobilenetv3_small_075"),
    _segmentation("FPN"),
    _segmentation("Segformer", "mit_b0"),
    _yolo("yolov8n.yaml", dynamic=False),
    _yolo("yolov8n.yaml", dynamic=True),
    _yolo("yolo11n.yaml", dynamic=False),
    _yolo("yolov8n-seg.yaml", dynamic=False, model="SegmentationModel"),
    _yolo("yolov8n-cls.yaml", dynamic=True, model="ClassificationModel"),
)
