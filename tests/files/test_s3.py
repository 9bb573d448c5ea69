"""The bucket, against moto's server over real HTTP."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from services.config import Files
from services.files.cache import FileCache
from services.files.s3 import S3Storage
from services.files.storage import Kind, Storage, StorageAway
from tests.gateway import free_port

from .storage_contract import StorageContract
from .support import BASE, make_app, picture, settings

BUCKET = "shared"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def storage(endpoint: str, prefix: str = "a/b") -> S3Storage:
    files = Files(storage="s3", s3_bucket=BUCKET, s3_endpoint=endpoint, s3_prefix=prefix)
    return S3Storage.from_settings(files)


@pytest.fixture
def bucket(endpoint: str) -> Iterator[str]:
    client = storage(endpoint)._client
    client.create_bucket(Bucket=BUCKET)
    yield endpoint
    for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", ()):
        client.delete_object(Bucket=BUCKET, Key=item["Key"])
    client.delete_bucket(Bucket=BUCKET)


class TestS3Storage(StorageContract):
    @pytest.fixture
    def pair(self, bucket: str) -> tuple[Storage, Storage]:
        return storage(bucket), storage(bucket)


def test_prefixes_keep_services_apart(bucket: str) -> None:
    one, other = storage(bucket, "one"), storage(bucket, "")
    name = f"f{'x' * 32}.csv"
    one.put("files", name, b"x", "", "text/csv")
    assert other.find("files", name) is None
    assert list(other.entries()) == []
    keys = one._client.list_objects_v2(Bucket=BUCKET)["Contents"]
    assert [item["Key"] for item in keys] == [f"one/files/{name}"]


def test_cache_is_built_from_settings(bucket: str, tmp_path: Path) -> None:
    files = Files(storage="s3", s3_bucket=BUCKET, s3_endpoint=bucket)
    cache = FileCache.from_settings(settings(tmp_path, files=files))
    url = cache.adopt(picture("GIF"), Kind.IMAGE, base=BASE)
    answer = make_app(cache).test_client().get(url.removeprefix(BASE))
    assert (answer.status_code, answer.content_type) == (200, "image/gif")
    assert list(tmp_path.iterdir()) == []


def test_large_object_streams(bucket: str) -> None:
    cache = FileCache.from_settings(
        settings(Path("unused"), files=Files(storage="s3", s3_bucket=BUCKET, s3_endpoint=bucket))
    )
    data = bytes(range(256)) * 8192
    url = cache.adopt(data, Kind.FILE, "x.bin", base=BASE)
    client = make_app(cache).test_client()
    assert client.get(url.removeprefix(BASE), buffered=True).data == data
    part = client.get(
        url.removeprefix(BASE), headers={"Range": "bytes=300000-1300000"}, buffered=True
    )
    assert part.data == data[300_000:1_300_001]


def test_missing_bucket_and_dead_service_are_503(endpoint: str) -> None:
    for place in (endpoint, f"http://127.0.0.1:{free_port()}"):
        away = storage(place)
        with pytest.raises(StorageAway) as caught:
            away.put("files", f"f{'x' * 32}.csv", b"x", "", "text/csv")
        assert caught.value.status == 503
        assert "127.0.0.1" not in caught.value.message
