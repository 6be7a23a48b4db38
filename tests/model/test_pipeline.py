import gc
import json
import logging
import weakref

import pytest
import torch
from archives_at_hand import bodies, results

from container.errors import BadInput, Failure
from container.handler import Handler
from container.model import attempt, pipeline
from container.payload import Payload


class Asked(Exception):
    """As sagemaker-inference's BaseInferenceToolkitError: arguments, no text of its own."""

    def __init__(self, status_code, message, phrase):
        self.status_code, self.message, self.phrase = status_code, message, phrase


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class Scripted(Handler):
    """Does in predict what the test says, and remembers the batches."""

    registered_name = "scripted"

    def __init__(self, act, size=lambda value: 1):
        self.act, self.measure, self.batches = act, size, []

    def size(self, value):
        return self.measure(value)

    def predict(self, batch):
        self.batches.append(list(batch))
        return self.act(batch)


def raising(error):
    def act(batch):
        raise error

    return act


def payloads(*values):
    return [Payload(json.dumps(value).encode()) for value in values]


def test_answers_come_in_order_whatever_the_batches():
    handler = Scripted(lambda batch: [value * 2 for value in batch], size=lambda value: value)
    assert bodies(handler, *payloads(3, 40, 1, 39, 2)) == [b"6", b"80", b"2", b"78", b"4"]
    assert sorted(map(len, handler.batches)) == [2, 3]


def test_each_batch_is_answered_as_soon_as_it_is_done():
    handler = Scripted(lambda batch: batch, size=lambda value: value)
    steps = pipeline.answer(handler, payloads(100, 1, 1), 4096, 32)
    first = next(steps)
    assert [index for index, _ in first] == [1, 2]
    assert len(handler.batches) == 1
    assert [index for index, _ in next(steps)] == [0]
    assert next(steps, None) is None


def test_a_body_that_cannot_be_read_is_its_callers_error_only_and_not_in_the_log(caplog):
    handler = Scripted(lambda batch: batch)
    first, second, third = results(handler, Payload(b"1"), Payload(b"{"), Payload(b"x", "nothing/known"))
    assert (first.body, second.code, third.code) == (b"1", "request.malformed", "request.media_type")
    assert handler.batches == [[1]]
    assert caplog.records == []


def test_one_bad_input_does_not_fail_its_neighbours(caplog):
    def act(batch):
        if 0 in batch:
            raise ZeroDivisionError("division by zero")
        return [1 / value for value in batch]

    handler = Scripted(act)
    one, zero, two = results(handler, *payloads(1, 0, 2))
    assert (one.body, two.body) == (b"1.0", b"0.5")
    assert zero == Failure("model.failed", "the model failed: ZeroDivisionError: division by zero")
    assert handler.batches == [[1, 0, 2], [1], [0], [2]]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_a_refusal_for_the_whole_batch_is_found_to_be_one_callers():
    def act(batch):
        if "bad" in batch:
            raise BadInput("no 'bad' here")
        return batch

    assert [type(each).__name__ for each in results(Scripted(act), *payloads("a", "bad", "b"))] == [
        "Payload",
        "Failure",
        "Payload",
    ]


def test_an_output_may_be_an_exception_for_one_caller():
    handler = Scripted(lambda batch: [BadInput("not this") if value == 0 else value for value in batch])
    assert results(handler, *payloads(0, 1)) == [Failure("request.input", "not this"), Payload(b"1")]
    assert results(Scripted(lambda batch: [ValueError("odd")]), *payloads(0)) == [
        Failure("model.failed", "the model failed: ValueError: odd")
    ]


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (lambda batch: batch[1:], "predict returned 2 outputs for 3 inputs; it must return one for each, in order"),
        (lambda batch: batch * 2, "predict returned 6 outputs for 3 inputs; it must return one for each, in order"),
        (
            lambda batch: None,
            "predict returned nothing; it must return a list with one output for each of its 3 inputs",
        ),
        (lambda batch: "abc", "predict returned a str; it must return a list with one output for each of its 3 inputs"),
        (lambda batch: {1: 2}, "predict returned a dict; it must"),
        (lambda batch: iter(batch), "predict returned a list_iterator; it must"),
        (lambda batch: 3, "predict returned a int; it must"),
        (lambda batch: torch.tensor(3), "the model failed: TypeError: len() of a 0-d tensor"),
    ],
)
def test_a_wrong_number_of_answers_is_said_with_both_numbers_and_not_tried_again(act, text):
    handler = Scripted(act)
    for failure in results(handler, *payloads(1, 2, 3)):
        assert failure.code in ("model.bad_answer", "model.failed")
        assert failure.message.startswith(text)
    assert len(handler.batches) == 1


def test_a_size_that_is_no_number_is_one_callers_error():
    handler = Scripted(lambda batch: batch, size=lambda value: None if value == 0 else torch.tensor(value))
    one, zero = results(handler, *payloads(1, 0))
    assert (one.body, zero.code) == (b"1", "model.failed")


def test_what_failed_is_free_at_once_without_the_garbage_collector():
    class Big:
        pass

    held = []

    def act(batch):
        big = Big()
        held.append(weakref.ref(big))
        raise MemoryError

    gc.collect()
    gc.disable()
    try:
        attempt.forget("scripted")
        logging.disable()  # pytest keeps what is logged
        assert results(Scripted(act), *payloads(1))[0].code == "memory.exhausted"
        assert held[0]() is None
    finally:
        logging.disable(logging.NOTSET)
        gc.enable()


def test_arrays_and_tuples_are_lists_of_answers():
    assert bodies(Scripted(lambda batch: torch.tensor(batch)), *payloads(1, 2)) == [b"1", b"2"]
    assert bodies(Scripted(tuple), *payloads(1, 2)) == [b"1", b"2"]


def test_long_work_yields_between_its_steps_and_keeps_no_state_of_the_thread():
    class Stepwise(Handler):
        def steps(self, batch):
            assert not torch.is_grad_enabled()
            yield None
            assert not torch.is_grad_enabled()
            yield None
            yield [value + 1 for value in batch]

    steps = pipeline.answer(Stepwise(), payloads(1, 2), 10, 10)
    for _ in range(2):
        assert next(steps) is None
        assert torch.is_grad_enabled()
    assert [(index, result.body) for index, result in next(steps)] == [(0, b"2"), (1, b"3")]


def test_steps_that_end_without_an_answer_or_fail_between_are_said():
    class Silent(Handler):
        def steps(self, batch):
            yield None

    class Breaks(Handler):
        def steps(self, batch):
            yield None
            raise KeyError("k")

    class NotStepwise(Handler):
        def steps(self, batch):
            return [1]

    assert results(Silent(), *payloads(1))[0].message.startswith("predict returned nothing")
    assert results(Breaks(), *payloads(1))[0].message == "the model failed: KeyError: 'k'"
    assert results(NotStepwise(), *payloads(1))[0].code == "model.failed"


def test_encode_must_return_a_payload_and_its_errors_are_one_callers():
    class Encodes(Scripted):
        def encode(self, output, accept):
            return super().encode(output, accept) if output else output

    answers = results(Encodes(lambda batch: batch), *payloads(1, 0, 2))
    assert [each.body for each in (answers[0], answers[2])] == [b"1", b"2"]
    assert answers[1] == Failure("model.bad_answer", "encode returned a int; it must return a Payload")
    refused = results(Scripted(lambda batch: batch), Payload(b"1", accept="video/mp4"), Payload(b"1"))
    assert (refused[0].code, refused[1].body) == ("request.not_acceptable", b"1")


def test_an_authors_status_is_carried_and_so_is_its_message():
    (failure,) = results(Scripted(raising(Asked(422, "too long", "Unprocessable"))), *payloads(1))
    assert failure == Failure("model.failed", "the model failed: Asked: too long", status=422)
    (failure,) = results(Scripted(raising(Asked(200, "odd", "OK"))), *payloads(1))
    assert failure.status is None


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("x" * 1000), "ValueError: " + "x" * 488),
        (
            FileNotFoundError(2, "No such file", "/opt/ml/models/secret/weights.bin"),
            "[Errno 2] No such file: 'weights.bin'",
        ),
        (
            ValueError("see https://host/a/b or text/plain and a/b/c"),
            "ValueError: see https://host/a/b or text/plain and a/b/c",
        ),
        (Unprintable(), "Unprintable: <exception str() failed>"),
        (SystemExit(3), "SystemExit: 3"),
        (RecursionError("deep"), "RecursionError: deep"),
        (ValueError(), "the model failed: ValueError"),
        (StopIteration(), "generator raised StopIteration"),
    ],
)
def test_a_caller_is_told_type_and_text_but_no_path_and_no_traceback(error, text):
    (failure,) = results(Scripted(raising(error)), *payloads(1))
    assert failure.code == "model.failed"
    assert text in failure.message
    assert "Traceback" not in failure.message
    assert "/opt" not in failure.message


OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory"),
    OSError(12, "Cannot allocate memory"),
    OSError(28, "No space left on device"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
]
LOOK_ALIKES = [
    ValueError("out of memory"),
    RuntimeError("out of memory"),
    RuntimeError("CUDA error: device-side assert triggered"),
    OSError(13, "Permission denied"),
    ValueError("CUBLAS_STATUS_ALLOC_FAILED"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_real_memory_errors_are_told_and_the_batch_is_left_to_the_engine(error):
    handler = Scripted(raising(error))
    assert {each.code for each in results(handler, *payloads(1, 2))} == {"memory.exhausted"}
    assert len(handler.batches) == 1
    wrapped = RuntimeError("could not compute")
    wrapped.__cause__ = error
    assert results(Scripted(raising(wrapped)), *payloads(1))[0].code == "memory.exhausted"


@pytest.mark.parametrize("error", LOOK_ALIKES, ids=repr)
def test_errors_that_only_look_like_memory_are_the_models(error):
    assert results(Scripted(raising(error)), *payloads(1))[0].code == "model.failed"
    after_memory = ValueError("your input is bad")
    after_memory.__context__ = MemoryError()
    assert results(Scripted(raising(after_memory)), *payloads(1))[0].code == "model.failed"


def test_a_real_allocation_that_is_too_large_is_out_of_memory():
    for act in (lambda batch: torch.empty(1 << 60), lambda batch: bytearray(1 << 60)):
        assert results(Scripted(act), *payloads(1))[0].code == "memory.exhausted"


def test_the_traceback_is_logged_once_with_the_models_name_and_then_a_line(caplog):
    attempt.forget("scripted")  # as loading the model does
    handler = Scripted(raising(ValueError("odd")))
    results(handler, *payloads(1))
    results(handler, *payloads(1))
    assert [bool(record.exc_info) for record in caplog.records] == [True, False]
    assert {record.getMessage() for record in caplog.records} == {
        "failed in predict: the model failed: ValueError: odd"
    }


def test_what_the_code_prints_carries_model_and_request(monkeypatch):
    from container import log

    seen = []

    class Notes(Scripted):
        def decode(self, payload):
            seen.append(dict(log._bound.get()))
            return super().decode(payload)

    handler = Notes(lambda batch: seen.append(dict(log._bound.get())) or batch)
    results(handler, Payload(b"1", request_id="r1"), Payload(b"2"))
    results(handler, Payload(b"1", request_id="r2"))
    assert seen == [
        {"model": "scripted", "request": "r1"},
        {"model": "scripted"},
        {"model": "scripted"},
        {"model": "scripted", "request": "r2"},
        {"model": "scripted", "request": "r2"},
    ]
    assert log._bound.get() == {}


def test_an_abandoned_run_ends_the_handlers_steps():
    ended = []

    class Stepwise(Handler):
        def steps(self, batch):
            try:
                while True:
                    yield None
            finally:
                ended.append(True)

    steps = pipeline.answer(Stepwise(), payloads(1), 1, 1)
    next(steps)
    steps.close()
    del steps
    gc.collect()
    assert ended == [True]
