"""Where links point, depending on how a request came."""

from __future__ import annotations

from typing import Any

import pytest

from services.config import Server, Settings
from services.files.public_url import PublicUrlUnknown, public_base

DIRECT = {"wsgi.url_scheme": "http", "HTTP_HOST": "gw:8080", "REMOTE_ADDR": "203.0.113.5"}
PROXY = {**DIRECT, "REMOTE_ADDR": "10.1.2.3", "HTTP_X_FORWARDED_FOR": "198.51.100.7"}


def base(environ: dict[str, Any], url: str = "", trusted: tuple[str, ...] = ("10.0.0.0/8",)) -> str:
    settings = Settings(backend_container_url=url, server=Server(trusted_proxies=trusted))
    return public_base(settings, environ)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (DIRECT, "http://gw:8080"),
        ({**DIRECT, "HTTP_HOST": "gw:80"}, "http://gw"),
        ({**DIRECT, "HTTP_HOST": "gw:443", "wsgi.url_scheme": "https"}, "https://gw"),
        ({**DIRECT, "HTTP_HOST": "[2001:db8::1]:8080"}, "http://[2001:db8::1]:8080"),
        ({**DIRECT, "HTTP_HOST": "my_gateway:8080"}, "http://my_gateway:8080"),
        (PROXY, "http://gw:8080"),
        (
            {**PROXY, "HTTP_X_FORWARDED_PROTO": "https", "HTTP_HOST": "a.example"},
            "https://a.example",
        ),
        (
            {
                **PROXY,
                "HTTP_X_FORWARDED_PROTO": "HTTPS",
                "HTTP_X_FORWARDED_HOST": "evil.example, a.example",
            },
            "https://a.example",
        ),
        (
            {
                **PROXY,
                "HTTP_X_FORWARDED_PROTO": "https",
                "HTTP_X_FORWARDED_HOST": "a.example",
                "HTTP_X_FORWARDED_PORT": "8443",
            },
            "https://a.example:8443",
        ),
        (
            {
                **PROXY,
                "HTTP_X_FORWARDED_PROTO": "https",
                "HTTP_X_FORWARDED_HOST": "a.example",
                "HTTP_X_FORWARDED_PORT": "443",
            },
            "https://a.example",
        ),
        ({**PROXY, "REMOTE_ADDR": "::ffff:10.1.2.3"}, "http://gw:8080"),
    ],
)
def test_base_of_the_request(environ: dict[str, Any], expected: str) -> None:
    assert base(environ) == expected


@pytest.mark.parametrize(
    "environ",
    [
        {**PROXY, "REMOTE_ADDR": "192.0.2.1"},
        {**PROXY, "REMOTE_ADDR": ""},
        {**DIRECT, "HTTP_X_FORWARDED_HOST": "evil.example"},
        {**DIRECT, "HTTP_X_REAL_IP": "1.2.3.4"},
        {**DIRECT, "HTTP_FORWARDED": "for=1.2.3.4"},
        {**DIRECT, "HTTP_HOST": ""},
        {**DIRECT, "HTTP_HOST": "a/b"},
        {**DIRECT, "HTTP_HOST": "a b"},
        {**DIRECT, "HTTP_HOST": "user@host"},
        {**DIRECT, "HTTP_HOST": "host:x"},
        {**DIRECT, "HTTP_HOST": "host\n.example"},
        {**DIRECT, "HTTP_HOST": 'a"onload=x'},
        {**DIRECT, "HTTP_HOST": "x)[y](javascript:z"},
        {**PROXY, "HTTP_X_FORWARDED_PROTO": "javascript"},
        {"wsgi.url_scheme": "http"},
    ],
)
def test_unknown_base_names_the_key(environ: dict[str, Any]) -> None:
    with pytest.raises(PublicUrlUnknown, match="backend_container_url") as caught:
        base(environ)
    assert caught.value.status == 503
    assert base(environ, url="https://set.example/sub") == "https://set.example/sub"


def test_no_proxy_is_trusted_unless_named() -> None:
    with pytest.raises(PublicUrlUnknown, match="trusted_proxies"):
        base({**PROXY, "REMOTE_ADDR": "127.0.0.1"}, trusted=())
