"""Rows to predictions: every form XGBoost saves, what is refused and why, batches of several requests."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import xgboost

from container.archive.describe import describe
from container.errors import BadArchive, BadInput
from container.handler import Context
from container.payload import Payload
from handlers.tabular import Tabular
from tests.handlers.models import ask, loaded, payload

ROWS = np.random.default_rng(3).normal(size=(60, 4)).astype(np.float32)


def train(objective: str = "reg:squarederror", **more: object) -> xgboost.Booster:
    labels = ROWS.sum(1) if objective.startswith("reg") else (ROWS[:, 0] > 0) + (ROWS[:, 1] > 0).astype(int)
    with xgboost.config_context(verbosity=0):
        settings = {"objective": objective, "max_depth": 3, "nthread": 1, **more}
        return xgboost.train(settings, xgboost.DMatrix(ROWS, label=labels), 5)


@pytest.mark.parametrize("name, form", [("xgboost-model", "deprecated"), ("xgboost-model", "ubj"), ("m.json", "json")])
def test_a_model_in_any_form_that_xgboost_saves_predicts_as_the_library_does(
    tmp_path: Path, name: str, form: str
) -> None:
    booster = train()
    with xgboost.config_context(verbosity=0):
        (tmp_path / name).write_bytes(booster.save_raw(form))
    manifest = describe(tmp_path)
    assert (manifest.kind, manifest.task) == ("tabular", "tabular")
    handler = loaded(Tabular(), tmp_path)
    assert handler.weights_bytes == (tmp_path / name).stat().st_size
    wanted = booster.predict(xgboost.DMatrix(ROWS[:3]))
    np.testing.assert_allclose(ask(handler, ROWS[:3].tolist()), wanted, rtol=1e-6)
    assert len(ask(handler, handler.example.body, handler.example.content_type)) == 1


def test_requests_of_one_batch_each_get_their_own_rows(tmp_path: Path) -> None:
    train().save_model(tmp_path / "m.ubj")
    handler = loaded(Tabular(), tmp_path)
    requests = [ROWS[:2].tolist(), ROWS[5].tolist(), ROWS[7:10].tolist()]
    batch = [handler.decode(payload(value)) for value in requests]
    batch.insert(1, handler.decode(Payload(b"  \n", "text/csv")))
    together = handler.predict(batch)
    assert [handler.size(value) for value in batch] == [2, 1, 1, 3]
    assert together[1] is None and handler.encode(together[1], "").status == 204
    del together[1]
    for value, output in zip(requests, together, strict=True):
        assert output.tolist() == ask(handler, value)


def test_classes_come_as_a_row_each_and_only_the_best_rounds_count(tmp_path: Path) -> None:
    booster = train("multi:softprob", num_class=3)
    booster.set_attr(best_iteration="1")
    booster.save_model(tmp_path / "m.json")
    handler = loaded(Tabular(), tmp_path)
    wanted = booster.predict(xgboost.DMatrix(ROWS[:2]), iteration_range=(0, 2))
    np.testing.assert_allclose(ask(handler, ROWS[:2].tolist()), wanted, rtol=1e-6)
    (output,) = handler.predict([handler.decode(payload(ROWS[:2].tolist()))])
    csv = handler.encode(output, "text/csv")
    assert (csv.content_type, len(csv.body.splitlines())) == ("text/csv", 2)


def test_arrays_are_read_and_arrays_of_text_are_not(tmp_path: Path) -> None:
    import io

    train().save_model(tmp_path / "m.json")
    handler = loaded(Tabular(), tmp_path)
    for array, right in ((ROWS[:2], True), (ROWS[0], True), (np.array([["a", "b", "c", "d"]]), False)):
        buffer = io.BytesIO()
        np.save(buffer, array)
        if right:
            answer = ask(handler, buffer.getvalue(), "application/x-npy")
            assert answer == ask(handler, array.tolist())
        else:
            with pytest.raises(BadInput, match="expected numbers"):
                ask(handler, buffer.getvalue(), "application/x-npy")


@pytest.mark.parametrize(
    "value, said",
    [
        ([], "expected a row of numbers"),
        ("1,2,3,4", "expected a row of numbers"),
        ([[1, 2, 3, 4], [1, 2, 3]], "row 1 is a list of 3; expected 4 numbers"),
        ([[1, 2, 3, 4], 5], "row 1 is a number, 5"),
        ([1, 2, True, 4], "row 0, column 2 is a boolean"),
        ([1, 2, [3], 4], "row 0, column 2 is a list of 1"),
        ([1, 2, 3], "3 columns; this model takes 4"),
        ({"rows": [1, 2, 3, 4]}, "neither inputs nor instances"),
    ],
)
def test_rows_that_are_none_are_refused_with_the_place(tmp_path: Path, value: object, said: str) -> None:
    train().save_model(tmp_path / "m.json")
    handler = loaded(Tabular(), tmp_path)
    with pytest.raises(BadInput) as caught:
        handler.decode(payload(json.dumps(value).encode()))
    assert said in str(caught.value)


def test_a_pickled_booster_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "xgboost-model").write_bytes(pickle.dumps(train()))
    with pytest.raises(BadArchive, match=r"pickled Booster.*save_model"):
        Tabular().load(tmp_path, Context("m"))


def test_a_broken_model_and_two_models_are_refused(tmp_path: Path) -> None:
    train().save_model(tmp_path / "m.json")
    (tmp_path / "m.json").write_bytes((tmp_path / "m.json").read_bytes()[:500])
    with pytest.raises(BadArchive) as caught:
        Tabular().load(tmp_path, Context("m"))
    assert "cannot read m.json: " in str(caught.value)
    assert "Stack trace" not in str(caught.value) and "/" not in str(caught.value)
    (tmp_path / "n.json").write_bytes(b"{}")
    with pytest.raises(BadArchive, match=r"several models: m\.json, n\.json"):
        Tabular().load(tmp_path, Context("m"))


def test_without_xgboost_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train().save_model(tmp_path / "m.json")
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(BadArchive, match=r"pip install 'berth\[xgboost\]'"):
        Tabular().load(tmp_path, Context("m"))
