"""The document against the routes, both ways."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from container.errors import ERRORS
from container.front import openapi
from container.front.counts import Requests
from container.front.pages import Pages, flask_app
from container.front.routes import PAGE, ROUTES

from .inside import Stub

DOCUMENT = openapi.document("1.2.3")


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_the_document_names_exactly_the_routes_and_methods_that_there_are() -> None:
    described = {(path, method.upper()) for path, method, _ in operations()}
    assert described == {(path, method) for path, methods in ROUTES.items() for method in methods}


def test_each_operation_bears_the_name_it_has_in_the_route_table() -> None:
    for path, method, operation in operations():
        if ROUTES[path][method.upper()] != PAGE:
            assert operation["operationId"] == ROUTES[path][method.upper()]
    identifiers = [operation["operationId"] for _, _, operation in operations()]
    assert len(identifiers) == len(set(identifiers))


def test_the_flask_app_has_exactly_the_pages_of_the_route_table() -> None:
    app = flask_app(Pages(Stub(), Requests(), None))  # type: ignore[arg-type]
    assert {rule.rule for rule in app.url_map.iter_rules()} == {
        path for path, methods in ROUTES.items() if PAGE in methods.values()
    }


def test_the_parameters_of_a_path_are_declared() -> None:
    for path, _, operation in operations():
        declared = {each["name"] for each in operation.get("parameters", []) if each["in"] == "path"}
        assert declared == set(re.findall(r"{(\w+)}", path))


def test_every_reference_leads_somewhere_and_every_operation_can_succeed() -> None:
    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key == "$ref":
                    yield inner
                else:
                    yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    known = {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]}
    assert set(references(DOCUMENT)) == known
    assert all("200" in operation["responses"] for _, _, operation in operations())


def test_the_reasons_are_those_of_the_error_tree() -> None:
    error = DOCUMENT["components"]["schemas"]["Error"]["properties"]
    assert error["reason"]["enum"] == sorted(ERRORS)
    described = " ".join(each["description"] for _, _, op in operations() for each in op["responses"].values())
    unexplained = {code for code in ERRORS if code not in described}
    assert unexplained == {"request.method"}, "which no operation of the table can answer"


def test_the_document_is_the_same_for_everyone(tmp_path: Path) -> None:
    assert openapi.document("1.2.3") == DOCUMENT
