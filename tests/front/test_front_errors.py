"""The one table from error to answer."""

from __future__ import annotations

import json

import pytest

from container.errors import ERRORS, BadRequest, MemoryBusy, ModelFailed, ModelNotFound, ServingError
from container.front import errors


def test_every_leaf_of_the_error_tree_has_a_row_and_every_row_a_leaf() -> None:
    assert set(errors.TABLE) == set(ERRORS)


def test_the_statuses_are_those_that_the_contract_names() -> None:
    by_status: dict[int, set[str]] = {}
    for code, row in errors.TABLE.items():
        by_status.setdefault(row.status, set()).add(code)
    assert by_status[507] == {"memory.no_room", "memory.exhausted"}
    assert by_status[404] == {"request.no_route", "model.not_found", "model.missing"}
    assert by_status[409] == {"model.exists"}
    assert by_status[503] == {
        *("server.restarting", "server.draining", "server.queue_full", "memory.busy", "model.quarantined"),
    }
    assert set(by_status) == {400, 404, 405, 406, 409, 413, 415, 500, 503, 504, 507}


def test_an_error_becomes_the_body_that_multi_model_server_gives_and_our_reason() -> None:
    answer = errors.answer(ModelNotFound("no model 'x' is registered"), b"id-1")
    assert json.loads(answer.body) == {
        "code": 404,
        "type": "ModelNotFoundException",
        "message": "no model 'x' is registered",
        "reason": "model.not_found",
    }
    assert (answer.status, answer.headers) == (
        404,
        [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(answer.body)),
            (b"x-amzn-sagemaker-inference-id", b"id-1"),
        ],
    )


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ModelFailed("x", status=422), 422),
        (ModelFailed("x", status=599), 599),
        (ModelFailed("x", status=200), 500),
        (ModelFailed("x", status=600), 500),
        (ModelFailed("x", status=0), 500),
        (ModelFailed("x"), 500),
    ],
)
def test_an_author_s_status_wins_if_it_is_one_of_an_error(error: ServingError, status: int) -> None:
    answer = errors.answer(error)
    assert (answer.status, json.loads(answer.body)["code"]) == (status, status)


@pytest.mark.parametrize(
    ("error", "header"),
    [
        (MemoryBusy("x", retry_after_s=2.1), b"3"),
        (MemoryBusy("x", retry_after_s=0.0), b"1"),
        (MemoryBusy("x"), b"1"),
        (BadRequest("x", retry_after_s=5), None),
    ],
)
def test_retry_after_is_whole_seconds_and_only_where_trying_again_helps(
    error: ServingError, header: bytes | None
) -> None:
    assert dict(errors.answer(error).headers).get(b"retry-after") == header


def test_a_long_message_is_cut_and_a_broken_one_still_becomes_json() -> None:
    message = json.loads(errors.answer(BadRequest("é" * 5000)).body)["message"]
    assert message == "é" * 2045 + "..."
    assert json.loads(errors.answer(BadRequest("a\udcffb")).body)["message"] == "a?b"


def test_an_error_class_without_a_row_is_told_as_internal() -> None:
    class Stranger(ServingError):
        code = "not.in.the.table"

    try:
        assert errors.answer(Stranger("x")).status == 500
    finally:
        del Stranger
