"""Image classification: labels and scores, by ResNet natively and by other networks through transformers.

    a JPEG or PNG as the body (image/*, application/x-image, application/octet-stream)
                                     -> [{"label": "tiger cat", "score": 0.94}, ...]   best first, five at most
    {"inputs": "<base64>"}           -> the same; a list of them gives a list of such lists
    an array of whole numbers (npy, nested lists): pixels 0 to 255, [H, W, 3], [3, H, W] or [H, W], treated as an image
    an array of fractions, [3, H, W]: taken as prepared, straight to the network; [N, ...] is a list of N

``parameters``: top_k (5; null = all), function_to_apply (softmax | sigmoid | none).
"""

from __future__ import annotations

import base64
import binascii
import io
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from container.errors import BadInput
from container.handler import Context, Handler, Weights
from container.nets import checkpoint, resnet
from container.nets.config import Unsupported, fields, labels
from container.payload import Payload
from container.protocol import codecs, media
from handlers import body
from handlers.pixels import Array, Preprocessor, from_array, open_image
from handlers.pretrained import pretrained
from handlers.scores import Function, Parameters, ranked, usual
from handlers.steps import in_inference, outcome, shares

#: Images in one run; more gain nothing and their activations add up (ResNet-50: 30 MB an image).
_RUN_IMAGES = 16
#: Labels that a sunk model may keep.
_KEPT_LABELS = 100
#: Images in one request; prepared ones take 600 KB each, however few bytes they came in.
_MAX_IMAGES = 256


class Request(NamedTuple):
    """One decoded request: images as [3, H, W] float32. single: it was one image, not a list."""

    pixels: list[Array]
    single: bool
    top_k: int | None
    function: Function


def _example() -> Payload:
    """A small PNG with a horizon."""
    image = Image.new("RGB", (64, 48), (120, 170, 220))
    image.paste((30, 60, 90), (0, 30, 64, 48))
    out = io.BytesIO()
    image.save(out, "PNG")
    return Payload(out.getvalue(), "image/png")


class ResNet:
    """Our ResNet and its preprocessing; keeps nothing between calls."""

    def __init__(self, model_dir: Path, found: dict[str, Any], classes: int, context: Context) -> None:
        config = resnet.read(found)
        self.prepare = Preprocessor.read(fields(model_dir, "preprocessor_config.json"))
        self.weights: Weights = (context.open_weights or checkpoint.read)(model_dir)
        self.layout = resnet.layout_of(config, self.weights, classes)

    def logits(self, pixels: Array) -> Tensor:
        """Return [B, classes] of ``pixels`` [B, 3, H, W] float32."""
        kernel = self.weights[self.layout.stem.keys[0]]
        moved = torch.from_numpy(pixels).to(kernel.device, kernel.dtype)
        return resnet.forward(self.weights, self.layout, moved)


class TransformersClassifier:
    """A model and an image processor of transformers. One call at a time."""

    def __init__(self, model_dir: Path) -> None:
        import transformers  # seconds, for these models only

        self.model = pretrained("AutoModelForImageClassification", model_dir)
        processors: Any = transformers.AutoImageProcessor
        self._processor = processors.from_pretrained(str(model_dir), local_files_only=True)

    def prepare(self, image: Image.Image) -> Array:
        """Return ``image`` as [3, H, W] float32."""
        return np.asarray(self._processor(image, return_tensors="np")["pixel_values"][0], dtype=np.float32)

    def logits(self, pixels: Array) -> Tensor:
        """Return [B, classes] of ``pixels`` [B, 3, H, W] float32."""
        logits: Tensor = self.model(pixel_values=torch.from_numpy(pixels).to(self.model.dtype)).logits
        return logits


class ImageClassification(Handler):
    """Images to the classes that the model knows."""

    task = "image_classification"
    example = _example()

    _network: ResNet | TransformersClassifier
    _labels: list[str]
    _function: Function

    @classmethod
    def native(cls, model_dir: Path) -> bool:
        """Return whether the model is served by our function: without transformers, re-entrant, shareable."""
        try:
            resnet.read(fields(model_dir))
            Preprocessor.read(fields(model_dir, "preprocessor_config.json"))
        except Unsupported:
            return False
        return True

    def load(self, model_dir: Path, context: Context) -> None:
        """See Handler. Raises BadArchive."""
        found = fields(model_dir)
        self._labels = labels(found)
        self._function = usual(found, len(self._labels))
        try:
            self._network = ResNet(model_dir, found, len(self._labels), context)
            self.reentrant = True
        except Unsupported:
            self._network = TransformersClassifier(model_dir)
            self.reentrant = False

    def rest(self) -> bool:
        """See Handler: many labels are too much to keep (ImageNet's: 80 KB)."""
        return isinstance(self._network, ResNet) and len(self._labels) <= _KEPT_LABELS

    def wake(self) -> bool:
        """See Handler."""
        return True

    def decode(self, payload: Payload) -> Request:
        """Return the Request in ``payload``, its images decoded and prepared."""
        kind = media.parse(payload.content_type).type
        if kind.startswith("image/") or kind in ("application/x-image", "application/octet-stream"):
            return Request([self._network.prepare(open_image(payload.body, "the body"))], True, 5, self._function)
        if kind in ("application/x-npy", "application/x-npz"):
            value = codecs.decode(payload.body, payload.content_type)
            value = next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else value
            inputs, given = body.Body(value, {})
        else:
            inputs, given = body.read(payload)
        wanted = body.parameters(given, Parameters)
        pixels, single = self._images(inputs)
        return Request(pixels, single, wanted.top_k, wanted.function_to_apply or self._function)

    def predict(self, batch: list[Request]) -> list[Any]:
        """Return a list of {"label", "score"} an image; for a request that was a list, a list of these."""
        return outcome(self.steps(batch))

    def steps(self, batch: list[Request]) -> Iterator[list[Any] | None]:
        """Yield None between runs of the network and the answers last."""
        images = [image for request in batch for image in request.pixels]
        logits = torch.empty(len(images), len(self._labels))
        for _ in in_inference(self._runs(images), lambda run: logits.index_copy_(0, *run)):
            yield None
        mine = zip(batch, shares(len(request.pixels) for request in batch), strict=True)
        yield [self._answer(request, logits[part]) for request, part in mine]

    def size(self, value: Request) -> int:
        """Return how many images there are."""
        return len(value.pixels)

    def _runs(self, images: list[Array]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (indices [n] into ``images``, their logits [n, classes] float32), on the CPU; one size at a time."""
        by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            by_shape[image.shape].append(index)
        for indices in by_shape.values():
            for start in range(0, len(indices), _RUN_IMAGES):
                run = indices[start : start + _RUN_IMAGES]
                logits = self._network.logits(np.stack([images[index] for index in run]))
                yield torch.tensor(run), logits.float().cpu()

    def _answer(self, request: Request, logits: Tensor) -> Any:
        rows = ranked(logits, self._labels, request.top_k, request.function)
        return rows[0] if request.single else rows

    def _images(self, inputs: Any) -> tuple[list[Array], bool]:
        """Return the images of ``inputs``, prepared, and whether it was one by itself. Raises BadInput."""
        if isinstance(inputs, str):
            return [self._encoded(inputs, "inputs")], True
        if isinstance(inputs, list) and inputs and isinstance(inputs[0], str):
            body.bounded(inputs, _MAX_IMAGES)
            return [self._encoded(each, f"inputs[{index}]") for index, each in enumerate(inputs)], False
        array = _array(inputs)
        if array.ndim == 4:
            body.bounded(list(array), _MAX_IMAGES)
            return [self._pixels(each, f"inputs[{index}]") for index, each in enumerate(array)], False
        return [self._pixels(array, "inputs")], True

    def _encoded(self, text: Any, where: str) -> Array:
        if not isinstance(text, str):
            raise BadInput(f"{where} is {body.shown(text)}; expected an image in base64")
        if text.startswith(("http://", "https://")):
            raise BadInput(f"{where} is an address; images are not fetched, send the image itself in base64")
        encoded = text.partition(",")[2] if text.startswith("data:") else text
        try:
            raw = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadInput(f"{where} is not base64: {error}") from error
        return self._network.prepare(open_image(raw, where))

    def _pixels(self, array: Array, where: str) -> Array:
        if array.dtype.kind in "iu":
            return self._network.prepare(from_array(array, where))
        if array.ndim != 3 or array.shape[0] != 3 or min(array.shape) < 1:
            raise BadInput(f"{where} has shape {list(array.shape)}; prepared pixels (fractions) are [3, H, W]")
        return np.ascontiguousarray(array, dtype=np.float32)


def _array(inputs: Any) -> Array:
    try:
        array = np.asarray(inputs)
    except ValueError as error:
        raise BadInput("inputs is a list whose rows differ in length; expected an array of pixels") from error
    if array.dtype.kind not in "iuf" or array.ndim < 2 or array.size == 0:
        raise BadInput(f"inputs is {body.shown(inputs)}; expected an image in base64, or an array of pixels")
    return array
