"""Fixed paths and patterns."""

import pytest

from gateway.app import ROUTES
from gateway.routing import Routes

FILES = Routes(["/v1/files", "/v1/files/{file_id}", "/v1/files/{file_id}/content", "/v1/models/{model}", "/a.b/{id}"])


@pytest.mark.parametrize(
    ("path", "route", "params"),
    [
        ("/v1/files", "/v1/files", {}),
        ("/v1/files/file-1_A", "/v1/files/{file_id}", {"file_id": "file-1_A"}),
        ("/v1/files/file-1/content", "/v1/files/{file_id}/content", {"file_id": "file-1"}),
        ("/v1/models/org/name v1", "/v1/models/{model}", {"model": "org/name v1"}),
        (f"/v1/files/{'x' * 128}", "/v1/files/{file_id}", {"file_id": "x" * 128}),
    ],
)
def test_a_path_and_its_route(path: str, route: str, params: dict[str, str]) -> None:
    assert FILES.find(path) == (route, params)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/file",
        "/v1/files/",
        "/v1/files/../../etc/passwd",
        "/v1/files/a.b",
        "/v1/files/a\n",
        "/v1/files/é",
        f"/v1/files/{'x' * 129}",
        "/v1/files//content",
        "/v1/files/a/content/",
        "/v1/files/{file_id}/",
        "/v1/models/",
        "/axb/1",
        "x/v1/files/a",
    ],
)
def test_what_belongs_to_no_route(path: str) -> None:
    assert FILES.find(path) is None


def test_every_route_of_ours_is_found() -> None:
    routes = Routes(ROUTES)
    for route in ROUTES:
        found = routes.find(route.replace("{", "").replace("}", ""))
        assert found is not None
        assert found.route == route
