import json

import pytest
from archives_at_hand import ARCHIVES, bodies, results, script

from container.errors import BadArchive, Failure
from container.model.functions import ScriptContext, bind, preferred
from container.payload import Payload
from tests.makers import tiny_bert

CONTEXT = ScriptContext("m", {}, {})


@pytest.fixture
def beside_bert(tmp_path):
    """An archive of tests/archives with a tiny BERT at its root; returns its Manifest."""

    def make(name):
        home = tmp_path / name
        tiny_bert(home)
        (home / "code").mkdir()
        (home / "code/inference.py").write_text((ARCHIVES / name / "code/inference.py").read_text())
        return script(name, tmp_path, task="embeddings", architectures=["BertModel"])

    return make


def test_json_and_csv_reach_a_script_as_text_and_all_else_as_bytes(opened):
    model = opened("takes_context")
    answers = [
        json.loads(body)
        for body in bodies(
            model.handler,
            Payload(b"[1]"),
            Payload(b"a,b", "text/csv; header=absent"),
            Payload("ü".encode("latin-1"), "Text/CSV; charset=latin-1"),
            Payload(b"\x00\xff", "application/octet-stream"),
            Payload(b"\xff\xd8", "image/jpeg"),
            Payload(b"plain", "text/plain"),
        )
    ]
    assert [(each["type"], each["content_type"]) for each in answers] == [
        ("str", "application/json"),
        ("str", "text/csv"),
        ("str", "text/csv"),
        ("bytes", "application/octet-stream"),
        ("bytes", "image/jpeg"),
        ("bytes", "text/plain"),
    ]


def test_context_is_given_wherever_it_is_asked_for_and_answers_may_name_their_type(opened):
    (answer,) = results(opened("takes_context").handler, Payload(b"1", accept="text/html;q=0.3, Application/JSON"))
    assert answer.content_type == "application/json; of=takes_context"
    assert json.loads(answer.body) == {
        "type": "str",
        "content_type": "application/json",
        "context": True,
        "model_dir": script("takes_context").model_dir,
        "same": True,
        "accept": "application/json",
    }


def test_transform_fn_takes_the_place_of_the_three(opened):
    (answer,) = results(opened("transforms").handler, Payload(b"x", "image/png; a=b", "text/plain"))
    assert (answer.body, answer.content_type) == (b"seen bytes image/png text/plain None", "text/plain")


def test_gpu_id_is_the_number_of_the_device(opened):
    model = opened("transforms", device="cuda:1")
    assert bodies(model.handler, Payload(b"1"))[0].endswith(b" 1")


def test_a_script_of_the_oldest_style_runs_unchanged(opened, baseline):
    handler = opened("answers_its_repr").handler
    assert bodies(handler, Payload(b"Hello", "text/csv"), Payload(b'"Hello"', "text/csv"), Payload(b'"Hello"')) == [
        b"(5, (1, 2))",
        b"(7, (1, 2))",
        b"(5, (1, 2))",
    ]


def test_missing_functions_are_refused_by_name(opened, write_archive):
    with pytest.raises(BadArchive, match=r"inference.py has no predict_fn \(it has model_fn\), and no config.json"):
        opened("lacks_predict_fn")
    with pytest.raises(BadArchive, match=r"has no model_fn and no predict_fn \(it has none of the functions\)"):
        opened(write_archive({"code/inference.py": ""}))
    with pytest.raises(BadArchive, match="predict_fn of the script is a int"):
        opened(write_archive({"code/inference.py": "model_fn = print\npredict_fn = 3\n"}))


def test_transform_fn_beside_predict_fn_is_refused(opened):
    with pytest.raises(BadArchive, match="transform_fn beside predict_fn"):
        opened("mixes_transform_and_predict")


def test_a_function_that_cannot_be_called_is_refused_at_load(opened):
    with pytest.raises(BadArchive, match=r"predict_fn\(data, model, context, more\) cannot be called"):
        opened("wants_too_much")


def test_without_input_and_output_functions_the_content_type_decides(write_archive, opened):
    handler = opened(
        write_archive({"code/inference.py": "def model_fn(d): ...\ndef predict_fn(x, m): return x\n"})
    ).handler
    answers = results(handler, Payload(b"1,2\n3,4\n", "text/csv"), Payload(b"[1]", accept="text/csv"), Payload(b"{"))
    assert (answers[0].body, answers[0].content_type) == (b"[[1,2],[3,4]]", "application/json")
    assert (answers[1].body, answers[1].content_type) == (b"1\n", "text/csv")
    assert answers[2].code == "request.malformed"


def test_what_output_fn_returns_that_is_no_text_is_written_by_accept(write_archive, opened):
    code = "def model_fn(d): ...\ndef predict_fn(x, m): return x\ndef output_fn(x, accept): return {'a': x}\n"
    assert bodies(opened(write_archive({"code/inference.py": code})).handler, Payload(b"[1]")) == [b'{"a":[1]}']


def test_beside_a_config_what_a_script_leaves_out_is_the_built_in_tasks(opened, beside_bert):
    whole = opened(beside_bert("shouts_the_output"))
    (answer,) = results(whole.handler, Payload(b'{"inputs": "abc"}'))
    vector = eval(answer.body[:-1], {})
    assert (len(vector), answer.content_type, whole.bytes > 0) == (32, "text/plain", True)

    asked = opened(beside_bert("asks_the_stock_model"))
    (answer,) = results(asked.handler, Payload(b'{"inputs": "abc", "parameters": {"normalize": true}}'))
    normalised = json.loads(answer.body)["stock says"]
    assert sum(x * x for x in normalised) == pytest.approx(1, abs=1e-5)
    assert normalised[0] / normalised[1] == pytest.approx(vector[0] / vector[1], rel=1e-4)
    (refused,) = results(asked.handler, Payload(b'{"inputs": 5}'))
    assert refused.code == "request.input"


def test_its_own_model_is_called_as_a_pipeline_when_there_is_no_predict_fn(write_archive, opened):
    code = "def model_fn(d):\n    return lambda inputs, twice=False: [inputs] * (2 if twice else 1)\n"
    handler = opened(write_archive({"code/inference.py": code}, architectures=["SomeModel"], task="odd")).handler
    asked = Payload(b'{"inputs": "x", "parameters": {"twice": true}}')
    assert bodies(handler, asked, Payload(b'"y"')) == [b'["x","x"]', b'["y"]']


@pytest.mark.parametrize(
    ("function", "takes"),
    [
        (lambda data, model: "none", False),
        (lambda data, model, context: "third", True),
        (lambda data, model, other: "needed third", True),
        (lambda data, model, device="cpu": device, False),
        (lambda data, model, context=None: "named", True),
        (lambda data, model, *, context: "keyword", True),
        (lambda *given: given, False),
        (lambda data, model, *rest, **named: rest, False),
        (max, False),
    ],
)
def test_context_is_bound_once_by_name_or_count(function, takes):
    bound = bind(function, "predict_fn", CONTEXT)
    assert (bound is not function) == takes
    bound(1, 2)


@pytest.mark.parametrize("function", [lambda: 1, lambda data: 1, lambda data, model, context, more: 1, lambda *, a: 1])
def test_what_cannot_take_the_arguments_is_refused(function):
    with pytest.raises(BadArchive, match=r"it is given \(data, model\)"):
        bind(function, "predict_fn", CONTEXT)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/*", "application/json"),
        ("Text/CSV; header=absent", "text/csv"),
        ("text/csv;q=0.2, image/png;q=0.9, */*;q=0.1", "image/png"),
        ("text/csv;q=x", "text/csv"),
        (",,", "application/json"),
    ],
)
def test_scripts_are_told_the_one_type_that_is_liked_best(accept, kind):
    assert preferred(accept) == kind


def test_a_failing_body_of_text_is_the_callers(opened):
    (failure,) = results(opened("takes_context").handler, Payload(b"\xff\xfe\xfd", "text/csv"))
    assert isinstance(failure, Failure)
    assert failure.code == "request.malformed"
