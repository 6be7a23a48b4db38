import base64
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from container.errors import BadArchive, BadInput, MediaType
from container.nets.config import Unsupported
from handlers import pixels
from handlers.image_classification import ImageClassification
from handlers.pixels import Preprocessor
from tests.handlers.models import ask, loaded, payload, resnet

CONVNEXT = {
    "image_processor_type": "ConvNextImageProcessor",
    "size": {"shortest_edge": 56},
    "crop_pct": 0.875,
    "resample": 3,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def picture(width=90, height=70, mode="RGB", seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(noise, "RGBA").resize((width, height)).convert(mode)


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return resnet(tmp_path_factory.mktemp("resnet"), CONVNEXT)


@pytest.fixture(scope="module")
def ours(path):
    return loaded(ImageClassification(), path)


@pytest.fixture(scope="module")
def theirs(path):
    model = transformers.ResNetForImageClassification.from_pretrained(str(path)).eval()
    processor = ConvNextImageProcessorPil.from_pretrained(str(path))

    def scores(image):
        with torch.inference_mode():
            logits = model(torch.from_numpy(np.stack(processor(image)["pixel_values"]))).logits[0]
        best = logits.softmax(0).sort(descending=True)
        names = model.config.id2label
        return [
            {"label": names[number], "score": score}
            for score, number in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    return scores


def check_same(found, wanted):
    assert [each["label"] for each in found] == [each["label"] for each in wanted]
    assert np.allclose([each["score"] for each in found], [each["score"] for each in wanted], atol=1e-5)


@pytest.mark.parametrize(
    ("image", "kind", "content_type"),
    [
        (picture(), "PNG", "image/png"),
        (picture(), "JPEG", "image/jpeg"),
        (picture(mode="L"), "JPEG", "application/x-image"),
        (picture(mode="CMYK"), "JPEG", "image/jpeg"),
        (picture(mode="RGBA"), "PNG", "application/octet-stream"),
        (picture().quantize(16), "PNG", "image/png"),
        (picture(60, 200), "WEBP", "image/webp"),
        (picture(57, 300), "BMP", "image/bmp"),
    ],
)
def test_image_bytes_of_every_kind_are_classified_as_transformers_does(ours, theirs, image, kind, content_type):
    raw = encoded(image, kind)
    check_same(ask(ours, raw, content_type), theirs(Image.open(io.BytesIO(raw)).convert("RGB"))[:5])


def test_base64_alone_in_a_list_and_as_a_data_url(ours):
    raw = encoded(picture())
    text = base64.b64encode(raw).decode()
    wanted = ask(ours, raw, "image/png")
    assert ask(ours, {"inputs": text}) == wanted
    assert ask(ours, {"inputs": "data:image/png;base64," + text}) == wanted
    both = ask(ours, {"inputs": [text, base64.b64encode(encoded(picture(seed=1))).decode()]})
    check_same(both[0], wanted)
    assert len(both) == 2


def test_arrays_of_whole_numbers_are_treated_as_images(ours):
    image = picture()
    array = np.asarray(image)
    wanted = ask(ours, encoded(image), "image/png")

    def npy(value):
        out = io.BytesIO()
        np.save(out, value)
        return out.getvalue()

    assert ask(ours, npy(array), "application/x-npy") == wanted
    assert ask(ours, npy(np.moveaxis(array, -1, 0)), "application/x-npy") == wanted
    assert ask(ours, {"inputs": array.tolist()}) == wanted
    batch = ask(ours, npy(np.stack([array, array])), "application/x-npy")
    assert len(batch) == 2
    check_same(batch[1], wanted)
    out = io.BytesIO()
    np.savez(out, image=array)
    assert ask(ours, out.getvalue(), "application/x-npz") == wanted


def test_arrays_of_fractions_go_to_the_network_as_they_are(ours):
    image = picture()
    prepared = Preprocessor.read(CONVNEXT)(image)
    check_same(ask(ours, {"inputs": prepared.tolist()}), ask(ours, encoded(image), "image/png"))


def test_a_photograph_is_turned_as_its_exif_says(ours):
    upright = picture(60, 90)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    lying = encoded(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    assert ask(ours, lying, "image/png") == ask(ours, encoded(upright), "image/png")


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (100, 7), (None, 7)])
def test_top_k_bounds_the_answer_and_may_be_chosen(ours, top_k, count):
    text = base64.b64encode(encoded(picture())).decode()
    assert len(ask(ours, {"inputs": text, "parameters": {"top_k": top_k}})) == count


def test_requests_in_a_batch_get_their_own_answers(ours):
    asked = [payload(encoded(picture(40 + seed, 60, seed=seed)), "image/png") for seed in range(20)]
    requests = [ours.decode(each) for each in asked]
    for request, output in zip(requests, ours.predict(requests), strict=True):
        check_same(output, ours.predict([request])[0])
    assert ours.size(requests[0]) == 1


def test_the_example_is_answered(ours):
    (answer,) = ours.predict([ours.decode(ImageClassification.example)])
    assert len(answer) == 5
    assert sum(each["score"] for each in answer) <= 1


# --- what is no image ------------------------------------------------------------------------------------------------

WHOLE = encoded(picture(), "JPEG")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "the body is empty"),
        (b"hello, is this an image?", r"\(24 bytes\) is no image of a known format \(JPEG, PNG"),
        (WHOLE[: len(WHOLE) // 2], "is a broken image"),
        (encoded(picture())[:-400], "is a broken image"),
        (encoded(picture(), "TIFF"), "is no image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image of a known format"),
    ],
)
def test_bytes_that_are_no_whole_image_are_the_callers_mistake(ours, raw, said):
    with pytest.raises(BadInput, match=said):
        ours.decode(payload(raw, "image/jpeg"))


def bomb(width, height):
    """A PNG whose header promises more pixels than its few bytes hold."""
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1_000_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 14_000, 60_000])
def test_a_bomb_is_refused_before_it_unpacks(ours, side):
    with pytest.raises(BadInput, match=r"pixels"):
        ours.decode(payload(bomb(side, side), "image/png"))


def test_an_image_too_narrow_to_be_resized_is_refused(ours):
    with pytest.raises(BadInput, match="too narrow"):
        ours.decode(payload(encoded(picture(1, 60_000), "PNG"), "image/png"))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"inputs": "no base64!"}, "inputs is not base64"),
        ({"inputs": "https://example.org/cat.jpg"}, "images are not fetched"),
        ({"inputs": ["aGk=", 5]}, r"inputs\[0\] \(2 bytes\) is no image"),
        ({"inputs": 7}, "inputs is a number, 7"),
        ({"inputs": [[1, 2], [3]]}, "rows differ in length"),
        ({"inputs": [[[1, 2], [3, 4]]]}, r"inputs has shape \[1, 2, 2\]; expected \[H, W, 3\]"),
        ({"inputs": [[300, 2], [3, 4]]}, "inputs has values from 2 to 300"),
        ({"inputs": [[0.5, 0.2], [0.3, 0.1]]}, r"prepared pixels \(fractions\) are \[3, H, W\]"),
        ({"inputs": {"a": 1}}, "inputs is an object"),
        ({"inputs": []}, "inputs is a list of 0"),
        ({"inputs": "aGk=", "topk": 2}, r"did you mean top_k\?"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(ours, value, said):
    with pytest.raises(BadInput, match=said):
        ours.decode(payload(value))


def test_text_is_not_an_image(ours):
    with pytest.raises((MediaType, BadInput)):
        ours.decode(payload(b"a cat", "text/plain"))


# --- preparing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"size": 56},
        {"crop_pct": None},
        {"crop_pct": 0.95},
        {"size": {"shortest_edge": 400}},
        {"do_resize": False},
        {"do_rescale": False},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"resample": 2},
        {"image_processor_type": None, "feature_extractor_type": "ConvNextFeatureExtractor"},
    ],
)
@pytest.mark.parametrize("shape", [(90, 70), (64, 64), (61, 203)])
def test_convnext_preparation_is_that_of_transformers_pillow_processor(changes, shape):
    found = {key: value for key, value in {**CONVNEXT, **changes}.items() if value is not None}
    image = picture(*shape)
    theirs = ConvNextImageProcessorPil(**{key: found[key] for key in found if not key.endswith("_type")})
    wanted = np.asarray(theirs(image)["pixel_values"][0], dtype=np.float32)
    ours = Preprocessor.read(found)(image)
    assert (ours.shape, ours.dtype, ours.flags.c_contiguous) == (wanted.shape, np.float32, True)
    assert np.allclose(ours, wanted, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"size": 30}, {"size": {"height": 20, "width": 50}}, {"do_resize": False}])
def test_vit_preparation_is_that_of_transformers_pillow_processor(changes):
    image = picture(91, 33)
    wanted = np.asarray(ViTImageProcessorPil(**changes)(image)["pixel_values"][0], dtype=np.float32)
    ours = Preprocessor.read({"image_processor_type": "ViTImageProcessor", **changes})(image)
    assert np.allclose(ours, wanted, atol=1e-5)


def test_a_resnet_without_preprocessor_config_is_prepared_as_the_published_ones():
    published = {**CONVNEXT, "size": {"shortest_edge": 224}}
    assert np.array_equal(Preprocessor.read({})(picture()), Preprocessor.read(published)(picture()))


@pytest.mark.parametrize(
    "found",
    [
        {"image_processor_type": "CLIPImageProcessor"},
        {"feature_extractor_type": "Odd"},
        {**CONVNEXT, "do_center_crop": True},
        {"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 30}},
    ],
)
def test_other_processors_are_left_to_transformers(found):
    with pytest.raises(Unsupported):
        Preprocessor.read(found)


@pytest.mark.parametrize(
    "change", [{"size": "large"}, {"size": {}}, {"resample": 77}, {"image_mean": [1, 2]}, {"rescale_factor": "x"}]
)
def test_a_broken_preprocessor_config_is_the_archives_mistake(change):
    with pytest.raises(BadArchive, match=r"preprocessor_config\.json"):
        Preprocessor.read({**CONVNEXT, **change})


def test_the_bound_on_pixels_is_pillows_own():
    assert pixels.MAX_PIXELS == Image.MAX_IMAGE_PIXELS


def test_another_family_is_served_by_transformers(tmp_path):
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, num_labels=3
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    handler = loaded(ImageClassification(), tmp_path)
    assert (handler.reentrant, ImageClassification.native(tmp_path)) == (False, False)
    pipe = transformers.pipeline("image-classification", model=str(tmp_path), device="cpu")
    check_same(ask(handler, encoded(picture()), "image/png"), pipe(picture()))


def test_our_own_network_needs_no_transformers(path):
    script = f"""
import sys
from pathlib import Path
from container.handler import Context
from handlers.image_classification import ImageClassification
handler = ImageClassification()
handler.load(Path({str(path)!r}), Context("m"))
handler.predict([handler.decode(ImageClassification.example)])
assert handler.reentrant
print("transformers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_more_images_than_are_answered_in_one_request_are_refused_before_they_are_prepared(ours):
    with pytest.raises(BadInput, match="inputs has 257 members; at most 256"):
        ours.decode(payload(["aGk="] * 257))


def test_long_work_gives_way_between_runs(ours):
    request = ours.decode(payload([base64.b64encode(encoded(picture())).decode()] * 40))
    seen = list(ours.steps([request]))
    assert [each is None for each in seen] == [True, True, True, False]
    assert len(seen[-1][0]) == 40
