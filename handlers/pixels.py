"""From an image as it came to the numbers a network takes, as preprocessor_config.json says.

Follows transformers' Pillow processors (the ones it uses without torchvision), to 1e-6: ConvNextImageProcessor, which
the published ResNets use, and ViTImageProcessor. Other processors are left to transformers (Unsupported).
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from container.errors import BadArchive, BadInput
from container.nets.config import Unsupported

Array = np.ndarray[Any, Any]

#: What is opened at all: formats whose decoders are plain and widely fuzzed, none that runs an interpreter (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
#: Pixels of the largest image that is decoded; Pillow's own bound, past which it warns (268 MB as RGB).
MAX_PIXELS = 89_478_485
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, OverflowError)
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)

#: microsoft/resnet-50's, for a ResNet that comes without preprocessor_config.json.
_RESNET: dict[str, Any] = {
    "image_processor_type": "ConvNextImageProcessor",
    "size": {"shortest_edge": 224},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
_KINDS = {
    name + kind: family
    for name, family in (("ConvNext", "convnext"), ("ViT", "vit"))
    for kind in ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
}


def open_image(raw: bytes, where: str) -> Image.Image:
    """Return the image in ``raw`` as RGB, turned as its EXIF says. Raises BadInput naming ``where``."""
    if not raw:
        raise BadInput(f"{where} is empty; expected an image ({', '.join(FORMATS)})")
    try:
        image = Image.open(io.BytesIO(raw), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise BadInput(f"{where} is {image.width} x {image.height} pixels; at most {MAX_PIXELS} in all are decoded")
        ImageOps.exif_transpose(image, in_place=True)
        return image.convert("RGB")
    except _BOMB as error:
        raise BadInput(f"{where} has more pixels than are decoded ({MAX_PIXELS})") from error
    except UnidentifiedImageError as error:
        raise BadInput(f"{where} ({len(raw)} bytes) is no image of a known format ({', '.join(FORMATS)})") from error
    except _BROKEN as error:
        raise BadInput(f"{where} ({len(raw)} bytes) is a broken image: {error}") from error


def from_array(array: Array, where: str) -> Image.Image:
    """Return ``array`` of whole numbers 0 to 255, [H, W, 3], [3, H, W] or [H, W], as RGB. Raises BadInput."""
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[-1] != 3:
        array = np.moveaxis(array, 0, -1)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] != 3) or 0 in array.shape:
        raise BadInput(f"{where} has shape {list(array.shape)}; expected [H, W, 3], [3, H, W] or [H, W] of 0 to 255")
    if array.min() < 0 or array.max() > 255:
        raise BadInput(
            f"{where} has values from {array.min()} to {array.max()}; pixels are whole numbers from 0 to 255"
        )
    return Image.fromarray(array.astype(np.uint8)).convert("RGB")


class Preprocessor(NamedTuple):
    """Resize, cut, scale and normalise. resize: (height, width), or the shortest edge as a whole number; None = keep.

    crop: (height, width) cut from the middle, None = all. scale: what 0..255 is multiplied with.
    """

    resize: tuple[int, int] | int | None
    crop: tuple[int, int] | None
    resample: Image.Resampling
    scale: float
    mean: Array
    std: Array

    @staticmethod
    def read(found: Mapping[str, Any]) -> Preprocessor:
        """Return what preprocessor_config.json says ({} = the file is missing). Raises Unsupported or BadArchive."""
        found = found or _RESNET
        name = str(found.get("image_processor_type") or found.get("feature_extractor_type"))
        family = _KINDS.get(name)
        if family is None:
            raise Unsupported(f"image processor {name!r}")
        if found.get("do_center_crop") or found.get("do_pad"):
            raise Unsupported("an image processor that crops or pads beyond its kind")
        try:
            return _convnext(found) if family == "convnext" else _vit(found)
        except (KeyError, TypeError, ValueError) as error:
            raise BadArchive(f"preprocessor_config.json cannot be used: {error!r}") from error

    def __call__(self, image: Image.Image) -> Array:
        """Return ``image`` (RGB) as [3, H, W] float32."""
        if self.resize is not None:
            height, width = self.resize if isinstance(self.resize, tuple) else _shortest(image, self.resize)
            if height * width > MAX_PIXELS:
                raise BadInput(f"the image is {image.width} x {image.height} pixels, too narrow to be resized")
            image = image.resize((width, height), self.resample)
        if self.crop is not None:
            height, width = self.crop
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        pixels: Array = np.asarray(image, dtype=np.float32)
        pixels = (pixels * np.float32(self.scale) - self.mean) / self.std
        return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def _shortest(image: Image.Image, edge: int) -> tuple[int, int]:
    """Height and width with the shorter one ``edge`` and the proportions kept (image_transforms.py)."""
    if image.width <= image.height:
        return int(edge * image.height / image.width), edge
    return edge, int(edge * image.width / image.height)


def _numbers(found: Mapping[str, Any], usual: float) -> tuple[float, Array, Array]:
    """Scale, mean and standard deviation; 1, 0 and 1 for what is switched off."""
    scale = float(found.get("rescale_factor", 1 / 255)) if found.get("do_rescale", True) else 1.0
    if not found.get("do_normalize", True):
        return scale, np.zeros(3, np.float32), np.ones(3, np.float32)
    mean, std = (np.array(found.get(name) or [usual] * 3, np.float32) for name in ("image_mean", "image_std"))
    if mean.shape != (3,) or std.shape != (3,):
        raise ValueError("image_mean and image_std must be three numbers each")
    return scale, mean, std


def _resample(found: Mapping[str, Any], usual: Image.Resampling) -> Image.Resampling:
    return Image.Resampling(found.get("resample", usual))


def _convnext(found: Mapping[str, Any]) -> Preprocessor:
    """image_processing_pil_convnext.py: below 384 larger by 1/crop_pct and then cut, from 384 on squeezed."""
    size = found.get("size", 384)
    edge = int(size["shortest_edge"] if isinstance(size, dict) else size)
    numbers = _numbers(found, 0.5)
    resample = _resample(found, Image.Resampling.BICUBIC)
    if not found.get("do_resize", True):
        return Preprocessor(None, None, resample, *numbers)
    if edge >= 384:
        return Preprocessor((edge, edge), None, resample, *numbers)
    return Preprocessor(int(edge / (found.get("crop_pct") or 224 / 256)), (edge, edge), resample, *numbers)


def _vit(found: Mapping[str, Any]) -> Preprocessor:
    """image_processing_pil_vit.py: squeezed to a fixed size."""
    size = found.get("size", 224)
    if isinstance(size, dict) and set(size) != {"height", "width"}:
        raise Unsupported(f"size {size}")
    target = (int(size["height"]), int(size["width"])) if isinstance(size, dict) else (int(size), int(size))
    resize = target if found.get("do_resize", True) else None
    return Preprocessor(resize, None, _resample(found, Image.Resampling.BILINEAR), *_numbers(found, 0.5))
