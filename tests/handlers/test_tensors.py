"""Exported graphs: how their tensors are named, batched, checked and answered; TorchScript, torch.export, ONNX."""

from __future__ import annotations

import json
import logging
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from container.errors import BadAnswer, BadArchive, BadInput, BadRequest, LoadFailed, MediaType, ModelNotFound
from container.handler import Context
from container.payload import Payload
from container.protocol import v2_header
from handlers import graphs
from handlers.tensors import Tensors
from tests.rows.graphs import RESNET_CONFIG, TinyResNet, scripted, tiny_bert, traced, traced_bert, write_repository

BINARY = v2_header.BINARY_TYPE


def port(kind: str, name: str, datatype: str = "FP32", dims: str = "[-1]", more: str = "") -> str:
    return f'{kind} {{ name: "{name}" data_type: TYPE_{datatype} dims: {dims} {more} }}\n'


def loaded(folder: Path, config: str, module: Any, name: str = "m", **more: Any) -> Tensors:
    handler = Tensors()
    handler.load(write_repository(folder, config, module, **more), Context(name))
    return handler


def request(**arrays: np.ndarray | tuple[str, list[int], Any]) -> Payload:
    """A JSON request; an input is an array, or (datatype, shape, data)."""
    names = {"f": "FP32", "i": "INT64", "b": "BOOL"}
    inputs = []
    for name, given in arrays.items():
        if isinstance(given, np.ndarray):
            given = (names[given.dtype.kind], list(given.shape), given.ravel().tolist())
        datatype, shape, data = given
        inputs.append({"name": name, "shape": shape, "datatype": datatype, "data": data})
    return Payload(json.dumps({"inputs": inputs}).encode())


def ask(handler: Tensors, *payloads: Payload) -> list[dict[str, Any]]:
    replies = handler.predict([handler.decode(payload) for payload in payloads])
    return [json.loads(handler.encode(reply, "").body) for reply in replies]


def answers(handler: Tensors, payload: Payload) -> dict[str, Any]:
    (reply,) = ask(handler, payload)
    return {output["name"]: output["data"] for output in reply["outputs"]}


class Minus(nn.Module):
    """Not symmetric, so that swapped inputs show."""

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return left - right, left * 10


OUT = port("output", "diff") + port("output", "tens")
TWO, ONE = np.array([2.0], np.float32), np.array([1.0], np.float32)


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        ("right", "left", "by the names of forward's arguments, whatever their order in the file"),
        ("b__1", "a__0", "by index"),
        ("b__0", "a__1", "by index, the other way round"),
        ("one", "two", "in the file's order"),
        ("left", "two", "in the file's order, since one name is not an argument"),
        ("b__1", "two", "in the file's order, since one name has no index"),
    ],
)
def test_inputs_find_their_arguments(first: str, second: str, what: str, tmp_path: Path) -> None:
    handler = loaded(tmp_path, port("input", first) + port("input", second) + OUT, scripted(Minus()))
    swapped = (first, second) in (("right", "left"), ("b__1", "a__0"))
    found = answers(handler, request(**{first: TWO, second: ONE}))
    assert found == {"diff": [-1.0 if swapped else 1.0], "tens": [10.0 if swapped else 20.0]}


@pytest.mark.parametrize(
    ("outputs", "found"),
    [
        (("a", "b"), {"a": [1.0], "b": [20.0]}),
        (("b__1", "a__0"), {"b__1": [20.0], "a__0": [1.0]}),
        (("tens__1",), {"tens__1": [20.0]}),
        (("OUTPUT",), {"OUTPUT": [1.0]}),
    ],
)
def test_outputs_are_taken_by_index_or_by_order(
    outputs: tuple[str, ...], found: dict[str, Any], tmp_path: Path
) -> None:
    config = port("input", "left") + port("input", "right") + "".join(port("output", name) for name in outputs)
    assert answers(loaded(tmp_path, config, scripted(Minus())), request(left=TWO, right=ONE)) == found


class Named(nn.Module):
    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sum": x["a"] + x["b"], "a": x["a"]}


def test_a_network_of_dicts_gets_and_gives_tensors_by_their_names(tmp_path: Path) -> None:
    config = port("input", "a") + port("input", "b") + port("output", "a") + port("output", "sum")
    handler = loaded(tmp_path, config, scripted(Named()))
    assert answers(handler, request(b=ONE, a=TWO)) == {"a": [2.0], "sum": [3.0]}


class Defaulted(nn.Module):
    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return x if scale is None else x * scale


def test_an_optional_input_may_be_left_out(tmp_path: Path) -> None:
    config = port("input", "x") + port("input", "scale", more="optional: true") + port("output", "y")
    handler = loaded(tmp_path, config, scripted(Defaulted()))
    assert answers(handler, request(x=TWO)) == {"y": [2.0]}
    assert answers(handler, request(x=TWO, scale=TWO)) == {"y": [4.0]}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (port("input", "left") + OUT, "forward needs right too"),
        (port("input", "a__0") + port("input", "b__2") + OUT, "forward takes 2: left, right"),
        (port("input", "a__0") + port("input", "b__0") + OUT, "forward takes 2: left, right"),
        ("".join(port("input", name) for name in "abc") + OUT, "forward takes 2: left, right"),
        (OUT, "declares no input"),
        (port("input", "left") + port("input", "right"), "declares no output"),
    ],
)
def test_names_that_cannot_be_are_refused_at_load(config: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadArchive) as caught:
        loaded(tmp_path, config, scripted(Minus()))
    assert said in caught.value.message


def test_more_outputs_than_the_network_has_are_told_when_it_answers(tmp_path: Path) -> None:
    config = port("input", "left") + port("input", "right") + OUT + port("output", "third")
    handler = loaded(tmp_path, config, scripted(Minus()))
    with pytest.raises(BadAnswer, match="declares output 'third', number 2 from 0, but the network returned 2"):
        ask(handler, request(left=TWO, right=ONE))


# --- values ----------------------------------------------------------------------------------------------------------


class Same(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("BOOL", [True, False]),
        ("UINT8", [0, 255]),
        ("UINT16", [0, 2**16 - 1]),
        ("UINT32", [0, 2**32 - 1]),
        ("UINT64", [0, 2**64 - 1]),
        ("INT8", [-128, 127]),
        ("INT16", [-(2**15), 2**15 - 1]),
        ("INT32", [-(2**31), 2**31 - 1]),
        ("INT64", [-(2**63), 2**63 - 1]),
        ("FP16", [0.5, -65504.0]),
        ("BF16", [0.5, -3.0]),
        ("FP32", [0.5, -3.0]),
        ("FP64", [0.1, -1e300]),
    ],
)
def test_every_datatype_goes_in_and_comes_out_unchanged(datatype: str, data: list[Any], tmp_path: Path) -> None:
    config = port("input", "x", datatype) + port("output", "y", datatype)
    (reply,) = ask(loaded(tmp_path, config, scripted(Same())), request(x=(datatype, [2], data)))
    assert reply["outputs"] == [{"name": "y", "datatype": datatype, "shape": [2], "data": data}]


class Shout(nn.Module):
    def forward(self, words: list[str]) -> list[str]:
        return [word.upper() for word in words]


def test_texts_go_in_and_come_out(tmp_path: Path) -> None:
    config = port("input", "words", "STRING") + port("output", "loud", "STRING")
    handler = loaded(tmp_path, config, scripted(Shout()))
    assert answers(handler, request(words=("BYTES", [2], ["sea", "ship"]))) == {"loud": ["SEA", "SHIP"]}
    raw = handler.decode(Payload(b"boat", f"{BINARY};json-header-size=0"))
    assert handler.predict([raw])[0].outputs[0][0].data.tolist() == [b"BOAT"]
    with pytest.raises(BadInput, match="not UTF-8"):
        handler.predict([handler.decode(Payload(b"\xff", f"{BINARY};json-header-size=0"))])


def test_integer_ids_are_looked_up_as_they_are(tmp_path: Path) -> None:
    bert = tiny_bert()
    both = port("input", "input_ids", "INT32", "[1, -1]") + port("input", "attention_mask", "INT32", "[1, -1]")
    handler = loaded(tmp_path, both + port("output", "OUTPUT", "FP32", "[-1, 32]"), traced_bert(bert))
    for length in (5, 30):
        ids = np.random.default_rng(length).integers(0, 64, (1, length))
        with torch.no_grad():
            wanted = bert(torch.from_numpy(ids), torch.ones(1, length, dtype=torch.long))[0].numpy()
        flat = ("INT32", [1, length], ids.ravel().tolist())
        (found,) = answers(
            handler, request(input_ids=flat, attention_mask=("INT32", [1, length], [1] * length))
        ).values()
        np.testing.assert_allclose(np.reshape(found, wanted.shape), wanted, atol=1e-5)


# --- requests --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    config = RESNET_CONFIG.replace("dims: 224\n  dims: 224", "dims: 8\n  dims: -1").replace("128", "4")
    return loaded(tmp_path_factory.mktemp("resnet"), config, scripted(TinyResNet().eval()))


def image(rows: int, width: int = 8, seed: int = 0) -> Payload:
    pixels = np.random.default_rng(seed).random((rows, 3, 8, width), np.float32)
    fields = {
        "name": "INPUT__0",
        "shape": pixels.shape,
        "datatype": "FP32",
        "parameters": {"binary_data_size": pixels.nbytes},
    }
    head = json.dumps({"inputs": [fields]}).encode()
    return Payload(head + pixels.tobytes(), v2_header.content_type(len(head)))


def logits(resnet: Tensors, *payloads: Payload) -> list[np.ndarray]:
    return [reply.outputs[0][0].data for reply in resnet.predict([resnet.decode(each) for each in payloads])]


def test_requests_of_the_same_shape_run_together_and_are_answered_apart(
    resnet: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    payloads = [image(1, seed=0), image(2, seed=1), image(1, 16, seed=2), image(2, seed=3), image(1, seed=4)]
    alone = [logits(resnet, payload)[0] for payload in payloads]
    runs: list[int] = []
    run = resnet._graph.run

    def counted(inputs: Any) -> Any:
        runs.append(inputs["INPUT__0"].shape[0])
        return run(inputs)

    monkeypatch.setattr(resnet._graph, "run", counted)
    together = logits(resnet, *payloads)
    assert runs == [3, 1, 3], "rows in each run: at most max_batch_size, which is 4, and one width a run"
    for found, wanted in zip(together, alone, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert [found.shape for found in together] == [(1, 1000), (2, 1000), (1, 1000), (2, 1000), (1, 1000)]


def test_without_a_batch_size_every_request_runs_alone(tmp_path: Path) -> None:
    handler = loaded(tmp_path, port("input", "x") + port("output", "y"), scripted(Same()))
    assert not handler.batched
    assert [reply["outputs"][0]["data"] for reply in ask(handler, request(x=ONE), request(x=TWO))] == [[1.0], [2.0]]


class Summed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(0, keepdim=True)


def test_a_network_that_does_not_keep_rows_apart_is_told_so_when_requests_would_mix(tmp_path: Path) -> None:
    handler = loaded(tmp_path, "max_batch_size: 4\n" + port("input", "x") + port("output", "y"), scripted(Summed()))
    x = np.ones((1, 2), np.float32)
    assert answers(handler, request(x=x)) == {"y": [1.0, 1.0]}
    with pytest.raises(BadAnswer, match=r"shape \[1, 2\] for 2 rows.*max_batch_size: 0"):
        ask(handler, request(x=x), request(x=x))


PIXELS = ("FP32", [1, 3, 8, 1], [0.0] * 24)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (request(INPUT=PIXELS), "unknown input 'INPUT'; this model takes INPUT__0"),
        (request(), "input 'INPUT__0' is missing"),
        (request(INPUT__0=("FP64", [1, 3, 8, 1], [0.0] * 24)), "is FP64; the model takes FP32"),
        (request(INPUT__0=("FP32", [3, 8, 1], [0.0] * 24)), "shape [3, 8, 1]; the model takes ['batch', 3, 8, -1]"),
        (request(INPUT__0=("FP32", [1, 3, 1, 8], [0.0] * 24)), "the model takes ['batch', 3, 8, -1]"),
        (request(INPUT__0=("FP32", [], [0.0])), "the model takes ['batch', 3, 8, -1]"),
        (request(INPUT__0=("FP32", [0, 3, 8, 1], [])), "from 1 to max_batch_size, 4"),
        (request(INPUT__0=("FP32", [5, 3, 8, 1], [0.0] * 120)), "have 5 rows"),
        (Payload(b"\0" * 95, f"{BINARY};json-header-size=0"), "95 bytes do not tell the shape"),
    ],
)
def test_inputs_are_held_to_what_the_configuration_declares(payload: Payload, said: str, resnet: Tensors) -> None:
    with pytest.raises(BadInput) as caught:
        resnet.decode(payload)
    assert said in caught.value.message


def test_a_raw_body_takes_its_free_dimension_from_its_size(resnet: Tensors) -> None:
    call = resnet.decode(Payload(b"\0" * 96 * 5, f"{BINARY};json-header-size=0"))
    assert call.inputs["INPUT__0"].shape == (1, 3, 8, 5)
    assert [wanted.binary for wanted in call.outputs] == [True]


def test_other_media_types_and_versions_are_refused(resnet: Tensors) -> None:
    for kind in ("application/json", "application/octet-stream", f"{v2_header.JSON_TYPE};version=1", ""):
        assert resnet.decode(Payload(request(INPUT__0=PIXELS).body, kind)).rows == 1
    with pytest.raises(MediaType, match="reads tensors of the KServe v2 protocol"):
        resnet.decode(Payload(b"1,2", "text/csv"))
    with pytest.raises(ModelNotFound, match="no version '2'; served is 1"):
        resnet.decode(Payload(request(INPUT__0=PIXELS).body, f"{v2_header.JSON_TYPE};version=2"))
    with pytest.raises(BadRequest):
        resnet.decode(Payload(b"", f"{BINARY};json-header-size=-1"))


def test_the_answer_names_the_model_as_its_caller_does(tmp_path: Path) -> None:
    config = 'name: "net"\n' + port("input", "x") + port("output", "y")
    body = request(x=ONE)
    assert ask(loaded(tmp_path, config, scripted(Same()), "registered"), body)[0]["model_name"] == "registered"
    single = loaded(tmp_path, config, scripted(Same()), "model")
    assert ask(single, body)[0]["model_name"] == "net"
    told = Payload(body.body, headers={"x-amzn-sagemaker-target-model": "a.tar.gz"})
    assert ask(single, told)[0]["model_name"] == "a.tar.gz"


def test_outputs_are_answered_in_the_order_and_form_asked_for(tmp_path: Path) -> None:
    handler = loaded(tmp_path, port("input", "left") + port("input", "right") + OUT, scripted(Minus()))
    body = json.loads(request(left=TWO, right=ONE).body)
    body |= {"id": "x", "outputs": [{"name": "tens", "parameters": {"binary_data": True}}, {"name": "diff"}]}
    answer = handler.encode(handler.predict([handler.decode(Payload(json.dumps(body).encode()))])[0], "text/csv")
    size = v2_header.header_size(answer.content_type)
    assert json.loads(answer.body[:size]) == {
        "model_name": "m",
        "model_version": "1",
        "id": "x",
        "outputs": [
            {"name": "tens", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}},
            {"name": "diff", "datatype": "FP32", "shape": [1], "data": [1.0]},
        ],
    }
    assert answer.body[size:] == np.float32(20).tobytes()


def test_the_example_is_made_from_the_configuration_and_answered(resnet: Tensors, tmp_path: Path) -> None:
    assert ask(resnet, resnet.example)[0]["outputs"][0]["shape"] == [1, 1000]
    texts = loaded(tmp_path, port("input", "w", "STRING") + port("output", "y", "STRING"), scripted(Shout()))
    assert answers(texts, texts.example) == {"y": [""]}


class Column(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def test_a_reshape_stands_between_what_is_declared_and_what_the_network_has(tmp_path: Path) -> None:
    config = port("input", "x", dims="[1]", more="reshape { shape: [] }") + port(
        "output", "y", dims="[1]", more="reshape { shape: [] }"
    )
    handler = loaded(tmp_path, "max_batch_size: 8\n" + config, scripted(Column()))
    rows = [request(x=np.full((n, 1), n, np.float32)) for n in (1, 2)]
    assert handler.decode(rows[1]).inputs["x"].shape == (2,)
    assert [reply["outputs"][0] for reply in ask(handler, *rows)] == [
        {"name": "y", "datatype": "FP32", "shape": [1, 1], "data": [2.0]},
        {"name": "y", "datatype": "FP32", "shape": [2, 1], "data": [4.0, 4.0]},
    ]


def test_an_output_of_another_shape_or_type_is_sent_as_it_is_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = port("input", "x", dims="[-1, 2]") + port("output", "y", "FP16", "[7]")
    handler = loaded(tmp_path, config, scripted(Same()))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            (reply,) = ask(handler, request(x=np.zeros((1, 2), np.float32)))
    assert (reply["outputs"][0]["datatype"], reply["outputs"][0]["shape"]) == ("FP32", [1, 2])
    assert [record.getMessage() for record in caplog.records] == [
        "output y is FP32 [1, 2] where config.pbtxt declares FP16 [7]; it is sent as it is"
    ]


# --- other devices, other formats, broken files ----------------------------------------------------------------------


class Baked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.zeros(1, device=x.device)


def test_a_device_that_a_trace_names_is_replaced_by_the_one_it_runs_on(tmp_path: Path) -> None:
    module = traced(Baked(), torch.ones(1))
    nodes = graphs._device_nodes(module)
    assert nodes, "tracing bakes the device in, or this test tests nothing"
    for _, node in nodes:
        node.s_("value", "cuda:7")
    module.save(str(tmp_path / "there.pt"))
    with pytest.raises((RuntimeError, AssertionError)):
        torch.jit.load(str(tmp_path / "there.pt"))(torch.ones(1))
    handler = loaded(tmp_path, port("input", "x") + port("output", "y"), (tmp_path / "there.pt").read_bytes())
    assert answers(handler, request(x=TWO)) == {"y": [2.0]}


def test_torch_export_answers_as_the_network_does(tmp_path: Path) -> None:
    any_length = {0: torch.export.Dim("n")}
    shapes = {"left": any_length, "right": any_length}
    program = torch.export.export(Minus(), (torch.ones(2), torch.ones(2)), dynamic_shapes=shapes)
    config = port("input", "right") + port("input", "left") + OUT
    handler = loaded(tmp_path, config, program, file="model.pt2")
    three = np.array([3.0, 4.0, 5.0], np.float32)
    assert answers(handler, request(left=three, right=three * 2)) == {"diff": [-3, -4, -5], "tens": [30, 40, 50]}
    with pytest.raises(BadArchive, match=r"takes left, right; config\.pbtxt declares 1"):
        loaded(tmp_path / "one", port("input", "left") + OUT, program, file="model.pt2")


def test_a_torch_export_file_with_pickles_or_compiled_code_is_refused(tmp_path: Path) -> None:
    config = port("input", "x") + port("output", "y")
    torch.export.save(torch.export.export(Same(), (torch.ones(1),)), tmp_path / "good.pt2")
    with zipfile.ZipFile(tmp_path / "good.pt2") as good:
        members = {name: good.read(name) for name in good.namelist()}
    pickled = b'{"config": {"w": {"path_name": "weight_0", "use_pickle": true}}}'
    object_pickle = pickle.dumps(Path("x"), protocol=2)
    for change, said in (
        ({"good/data/weights/model_weights_config.json": pickled}, "holds 'w' pickled"),
        ({"good/data/sample_inputs/model.pt": object_pickle}, "holds pickled objects"),
        ({"good/data/aotinductor/model/model.so": b"\x7fELF"}, "compiled for one kind of machine"),
    ):
        with zipfile.ZipFile(tmp_path / "bad.pt2", "w") as bad:
            for name, content in {**members, **change}.items():
                bad.writestr(name, content)
        with pytest.raises(BadArchive, match=said):
            loaded(tmp_path / "m", config, (tmp_path / "bad.pt2").read_bytes(), file="model.pt2")


def onnx_model(texts: bool = False) -> bytes:
    """y = x + x, or the identity of texts; [rows, 2]."""
    from onnx import TensorProto, helper

    kind = TensorProto.STRING if texts else TensorProto.FLOAT
    node = helper.make_node("Identity", ["x"], ["y"]) if texts else helper.make_node("Add", ["x", "x"], ["y"])
    ends = [[helper.make_tensor_value_info(name, kind, ["rows", 2])] for name in ("x", "y")]
    graph = helper.make_graph([node], "g", *ends)
    opset = [helper.make_opsetid("", 17)]
    content: bytes = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    return content


def test_onnx_answers_and_tells_what_the_configuration_leaves_out(tmp_path: Path) -> None:
    handler = loaded(tmp_path, 'platform: "onnxruntime_onnx" max_batch_size: 4', onnx_model(), file="model.onnx")
    assert handler.weights_bytes == (tmp_path / "1" / "model.onnx").stat().st_size
    pairs = [np.full((n, 2), n, np.float32) for n in (1, 2)]
    assert [reply["outputs"][0]["data"] for reply in ask(handler, *(request(x=pair) for pair in pairs))] == [
        [2.0, 2.0],
        [4.0] * 4,
    ]
    with pytest.raises(BadInput, match="batch"):
        handler.decode(request(x=np.zeros((1, 3), np.float32)))


def test_onnx_takes_and_gives_texts(tmp_path: Path) -> None:
    handler = loaded(tmp_path, "", onnx_model(texts=True), file="model.onnx")
    assert answers(handler, request(x=("BYTES", [1, 2], ["sea", "ü"]))) == {"y": ["sea", "ü"]}


def test_names_that_the_onnx_file_does_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadArchive, match="declares input z; the ONNX file has x"):
        loaded(tmp_path, port("input", "z"), onnx_model(), file="model.onnx")


@pytest.mark.parametrize("file", ["model.pt", "model.pt2", "model.onnx"])
@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04 not a zip either"])
def test_a_broken_file_is_the_archives_fault(file: str, content: bytes, tmp_path: Path) -> None:
    config = port("input", "x") + port("output", "y")
    with pytest.raises(BadArchive) as caught:
        loaded(tmp_path, config, content, file=file)
    assert file in caught.value.message
    assert str(tmp_path) not in caught.value.message


def test_a_checkpoint_that_is_no_torchscript_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(Same().state_dict(), tmp_path / "state.pt")
    config = port("input", "x") + port("output", "y")
    with pytest.raises(BadArchive, match=r"model\.pt is not a TorchScript file"):
        loaded(tmp_path, config, (tmp_path / "state.pt").read_bytes())


def test_without_onnxruntime_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(LoadFailed, match=r"pip install 'berth\[onnx\]'"):
        loaded(tmp_path, "", onnx_model(), file="model.onnx")
