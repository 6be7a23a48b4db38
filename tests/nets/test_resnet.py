import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from container.errors import BadArchive
from container.nets import resnet
from container.nets.config import Unsupported

SMALL = {"embedding_size": 8, "hidden_sizes": [16, 24, 40], "depths": [2, 1, 2], "num_labels": 7}


def small(**changes):
    torch.manual_seed(2)
    model = ResNetForImageClassification(ResNetConfig(**{**SMALL, **changes})).eval()
    for name, buffer in model.named_buffers():  # as trained, not the ones and zeros of a fresh model
        if "running_mean" in name:
            buffer.normal_(0, 0.2)
        if "running_var" in name:
            buffer.uniform_(0.5, 2)
    return model


def ours(model, pixels, classes=7):
    weights = model.state_dict()
    return resnet.forward(weights, resnet.layout_of(resnet.read(model.config.to_dict()), weights, classes), pixels)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layer_type": "basic"},
        {"downsample_in_first_stage": True},
        {"downsample_in_bottleneck": True},
        {"layer_type": "basic", "embedding_size": 16},
    ],
)
@pytest.mark.parametrize("batch", [1, 9])
@torch.inference_mode()
def test_logits_are_transformers_for_every_kind_of_layer_and_memory_format(changes, batch):
    model = small(**changes)
    pixels = torch.randn(batch, 3, 64, 80)
    torch.testing.assert_close(ours(model, pixels), model(pixels).logits, atol=1e-4, rtol=1e-5)


@torch.inference_mode()
def test_resnet_50_computes_what_transformers_does():
    torch.manual_seed(0)
    model = ResNetForImageClassification(ResNetConfig(num_labels=10)).eval()
    pixels = torch.randn(1, 3, 224, 224)
    theirs = model(pixels).logits
    torch.testing.assert_close(
        ours(model, pixels, 10) / theirs.abs().max(), theirs / theirs.abs().max(), atol=1e-5, rtol=0
    )


@torch.inference_mode()
def test_the_input_and_the_weights_are_not_written():
    model = small()
    weights = model.state_dict()
    before = {name: value.clone() for name, value in weights.items()}
    pixels = torch.randn(8, 3, 32, 32)
    kept = pixels.clone()
    ours(model, pixels)
    assert torch.equal(pixels, kept)
    assert all(torch.equal(weights[name], before[name]) for name in before)


@pytest.mark.parametrize(
    "change", [{"model_type": "regnet"}, {"hidden_act": "gelu"}, {"depths": [2]}, {"quantization_config": {"bits": 8}}]
)
def test_what_the_function_does_not_do_is_refused(change):
    with pytest.raises(Unsupported):
        resnet.read({**SMALL, **change})


def test_a_layer_type_that_does_not_exist_is_the_archives_mistake():
    with pytest.raises(BadArchive, match="layer_type"):
        resnet.read({"layer_type": "wide"})


def test_a_checkpoint_of_another_depth_is_refused_with_the_tensor_named():
    model = small()
    with pytest.raises(BadArchive, match=r"stages\.0\.layers\.2"):
        resnet.layout_of(resnet.read({**model.config.to_dict(), "depths": [3, 1, 2]}), model.state_dict(), 7)
