"""Base URLs as people write them all lead to the same routes."""

import pytest

from services.api.middleware import Middleware

ROUTES = frozenset({"/v1/chat/completions", "/v1/models", "/health", "/api/v1/chat/completions"})


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("//v1/chat/completions", "/v1/chat/completions"),
        ("/v1//chat///completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/v1/models", "/v1/models"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/models", "/v1/models"),
        ("/v1/chat/completions/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/models/a/b", "/v1/models/a/b"),
        ("/health", "/health"),
        ("/nothing", "/nothing"),
        ("/", "/"),
    ],
)
def test_path_is_normalised(path: str, known: str) -> None:
    assert Middleware(lambda *_: (), ROUTES, "", ()).normalise(path) == known


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("/api/v1/chat/completions", "/api/v1/chat/completions"),
        ("/api/chat/completions", "/api/v1/chat/completions"),
        ("/api//v1/v1/chat/completions", "/api/v1/chat/completions"),
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/apiv1/chat/completions", "/apiv1/chat/completions"),
    ],
)
def test_operators_prefix_is_kept(path: str, known: str) -> None:
    assert Middleware(lambda *_: (), ROUTES, "api", ()).normalise(path) == known
