"""Rows of numbers to predictions, by XGBoost; asks and answers like the AWS XGBoost container.

    text/csv            1990,2500,3,2,0.5,1      a row a line, an empty cell is a missing value
    application/json    [1990, 2500, 3, ...]        one row; or a list of rows; null is a missing value
                        {"inputs": ...} and {"instances": [...]} hold the same
    application/x-npy   an array of rows

The answer is a JSON list with one prediction a row (a list of classes' for multi-class objectives); ``Accept:
text/csv`` gives the same with commas between. An empty body gets 204. XGBoost comes with the extra ``berth[xgboost]``.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from container.errors import BadArchive, BadInput, MediaType
from container.handler import Context, Handler
from container.payload import JSON, Payload
from container.protocol import codecs, media
from handlers.body import shown

Rows = np.ndarray[Any, np.dtype[np.float32]]

_READ = (JSON, "text/csv", "application/x-npy")
#: One thread a request: the others serve other models, and a few rows are not worth waking them.
_THREADS = 1


class Tabular(Handler):
    """Rows to predictions."""

    task = "tabular"
    example = Payload(b"1997,2527,6,2.5,0.57,1", "text/csv")  # as many columns as this model has, once loaded

    _booster: Any
    _features: int
    _rounds: tuple[int, int]

    def load(self, model_dir: Path, context: Context) -> None:
        """See Handler. Raises BadArchive, also where XGBoost is not installed."""
        xgboost = _library()
        file = model_file(model_dir)
        if _pickled(file):
            raise BadArchive(
                f"{file.name} is a pickled Booster, which runs code when it is opened; save it with "
                'booster.save_model("model.json") and pack that'
            )
        try:
            self._booster = xgboost.Booster({"nthread": _THREADS}, model_file=str(file))
        except xgboost.core.XGBoostError as error:
            raise BadArchive(f"XGBoost {xgboost.__version__} cannot read {file.name}: {_first_line(error)}") from error
        self._features = int(self._booster.num_features())
        best = self._booster.attributes().get("best_iteration")
        self._rounds = (0, int(best) + 1 if best is not None else 0)  # 0 = all of them
        self.weights_bytes = file.stat().st_size
        self.reentrant = True  # inplace_predict locks nothing and keeps nothing
        row = ",".join(["1"] * self._features).encode()
        self.example = Payload(row, "text/csv")  # how many columns is the model's own affair

    def decode(self, payload: Payload) -> Rows | None:
        """Return the rows [n, features] in ``payload`` as float32, None for an empty body."""
        if not payload.body.strip():
            return None
        kind = media.parse(payload.content_type).type
        if kind not in _READ:
            raise MediaType(f"this model reads {', '.join(_READ)}, not {kind}")
        return self._rows(codecs.decode(payload.body, payload.content_type))

    def size(self, value: Rows | None) -> int:
        """Return the number of rows."""
        return 1 if value is None else len(value)

    def predict(self, batch: list[Rows | None]) -> list[Any]:
        """Return the predictions [n] or [n, classes] of each request, None where there was nothing to predict."""
        rows = [each for each in batch if each is not None]
        if not rows:
            return [None] * len(batch)
        found = self._booster.inplace_predict(np.concatenate(rows), iteration_range=self._rounds)
        answers: list[Any] = []
        start = 0
        for each in batch:
            count = 0 if each is None else len(each)
            answers.append(None if each is None else found[start : start + count])
            start += count
        return answers

    def encode(self, output: Any, accept: str) -> Payload:
        """Return the predictions as a JSON list, or with commas for text/csv; 204 where nothing was asked."""
        if output is None:
            return Payload(b"", JSON, status=204)
        if output.ndim == 1 and media.rank(accept, codecs.OFFERED)[:1] == ("text/csv",):
            return Payload(",".join(map(str, output.tolist())).encode(), "text/csv")
        return super().encode(output, accept)

    def _rows(self, value: Any) -> Rows:
        if isinstance(value, dict):
            name = next((name for name in ("inputs", "instances") if name in value), None)
            if name is None:
                raise BadInput(
                    "the object has neither inputs nor instances; send a row, a list of rows, or one of them"
                )
            value = value[name]
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in "biuf":
                raise BadInput(f"the array is of {value.dtype}; expected numbers")
            rows = np.asarray(value, dtype=np.float32)
            rows = rows[None] if rows.ndim == 1 else rows
        else:
            rows = _numbers(value)
        if rows.ndim != 2 or rows.shape[1] != self._features:
            wrong = f"shape {list(rows.shape)}" if rows.ndim != 2 else f"{rows.shape[1]} columns"
            raise BadInput(f"the rows have {wrong}; this model takes {self._features} numbers a row, no target")
        return rows


def model_file(model_dir: Path) -> Path:
    """Return the one model file in ``model_dir``. Raises BadArchive for none, or for several."""
    for pattern in ("xgboost-model", "*.ubj", "*.json"):
        found = sorted(path for path in model_dir.glob(pattern) if path.name not in ("berth.json", "config.json"))
        if len(found) > 1:
            raise BadArchive(f"several models: {', '.join(path.name for path in found)}; an archive holds one")
        if found:
            return found[0]
    raise BadArchive("no XGBoost model: none of xgboost-model, *.ubj and *.json is in the folder")


def _library() -> ModuleType:
    try:
        import xgboost
    except ImportError as error:
        raise BadArchive(
            "this is an XGBoost model and XGBoost is not installed here; install berth with its extra xgboost "
            "(pip install 'berth[xgboost]'; in the image: EXTRAS=xgboost)"
        ) from error
    module: ModuleType = xgboost
    return module


def _pickled(file: Path) -> bool:
    """Say whether ``file`` is a pickle: it begins with a protocol mark and ends with STOP, which no model does."""
    data = file.read_bytes()
    return data[:1] == b"\x80" and data[1:2] in b"\x02\x03\x04\x05" and data[-1:] == b"."


def _numbers(value: Any) -> Rows:
    """Return JSON or CSV values as rows. Raises BadInput naming the cell that is no number."""
    if not isinstance(value, list) or not value:
        raise BadInput(f"the body is {shown(value)}; expected a row of numbers or a list of rows")
    if isinstance(value[0], dict) and "features" in value[0]:  # SageMaker's {"instances": [{"features": [...]}]}
        value = [each.get("features") if isinstance(each, dict) else each for each in value]
    given = value if isinstance(value[0], list) else [value]
    rows = []
    for number, row in enumerate(given):
        if not isinstance(row, list) or len(row) != len(given[0]):
            raise BadInput(f"row {number} is {shown(row)}; expected {len(given[0])} numbers, as in the first")
        rows.append([_number(cell, number, column) for column, cell in enumerate(row)])
    return np.asarray(rows, dtype=np.float32)


def _number(cell: Any, row: int, column: int) -> float:
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return math.nan
    try:
        if isinstance(cell, (int, float, str)) and not isinstance(cell, bool):
            return float(cell)
    except ValueError:
        pass
    raise BadInput(f"row {row}, column {column} is {shown(cell)}; expected a number, or nothing for a missing value")


def _first_line(error: Exception) -> str:
    """XGBoost's message without its time, source line and C++ stack."""
    line = re.split(r"\s*\n", str(error).strip())[0]
    return re.sub(r"^\[[\d:]+\] \S+: ", "", line)[:200]
