"""Files in an S3 bucket, so that all replicas share them. boto3 is needed only for this."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, unquote

from services.config import ConfigErrors, Files, Problem
from services.files.sniff import Data
from services.files.storage import AREAS, Area, Body, Entry, FileGone, Found, StorageAway, is_name

log = logging.getLogger(__name__)

_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})


class S3Storage:
    """Objects `<prefix>/<area>/<name>`; the label is in the object's metadata, percent-encoded.

    `client` is boto3's S3 client, which threads and greenlets may share.
    """

    def __init__(self, client: Any, bucket: str, prefix: str = "") -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""

    @classmethod
    def from_settings(cls, files: Files) -> S3Storage:
        """Raise `ConfigErrors` if boto3 is not installed. Credentials come from boto3's chain."""
        try:
            import boto3
            from botocore.config import Config
        except ImportError as exc:
            wanted = "s3 needs the package boto3, which is not installed"
            raise ConfigErrors([Problem("", "files.storage", wanted)]) from exc
        endpoint = files.s3_endpoint or None
        # other services than Amazon's know neither host-named buckets nor the newer checksums
        options = Config(
            connect_timeout=5,
            read_timeout=20,
            retries={"mode": "standard", "max_attempts": 2},
            max_pool_connections=50,
            s3={"addressing_style": "path" if endpoint else "auto"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        client = boto3.session.Session().client("s3", endpoint_url=endpoint, config=options)
        return cls(client, files.s3_bucket, files.s3_prefix)

    def put(self, area: Area, name: str, data: Data, label: str, mime: str) -> None:
        metadata = {"label": quote(label, safe="")} if label else {}
        with _explained():
            self._client.put_object(
                **self._at(area, name), Body=data, ContentType=mime, Metadata=metadata
            )

    def find(self, area: Area, name: str) -> Found | None:
        try:
            with _explained():
                head = self._client.head_object(**self._at(area, name))
        except FileGone:
            return None
        label = unquote(head["Metadata"].get("label", ""))
        entry = Entry(area, name, head["ContentLength"], head["LastModified"].timestamp())
        return Found(entry, label, lambda start, length: self._open(area, name, start, length))

    def delete(self, area: Area, name: str) -> None:
        with _explained():
            self._client.delete_object(**self._at(area, name))

    def entries(self) -> Iterator[Entry]:
        for area in AREAS:
            folder = f"{self._prefix}{area}/"
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=folder
            )
            with _explained():
                items = (item for page in pages for item in page.get("Contents", ()))
                for item in items:
                    name = item["Key"].removeprefix(folder)
                    if is_name(name):
                        yield Entry(area, name, item["Size"], item["LastModified"].timestamp())

    def tidy(self, before: float) -> None:
        """Nothing: an object is whole or absent, and carries its own label."""

    def _at(self, area: Area, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": f"{self._prefix}{area}/{name}"}

    def _open(self, area: Area, name: str, start: int, length: int) -> Body:
        span = {"Range": f"bytes={start}-{start + length - 1}"} if length else {}
        with _explained():
            body: Body = self._client.get_object(**self._at(area, name), **span)["Body"]
        return body


@contextmanager
def _explained() -> Iterator[None]:
    """Turn boto3's errors into `FileGone` or `StorageAway`."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as exc:
        reason = type(exc).__name__
        if isinstance(exc, ClientError):
            reason = str(exc.response.get("Error", {}).get("Code", ""))
        if reason in _MISSING:
            raise FileGone from exc
        log.error("file storage failed storage=s3 reason=%s", reason)
        raise StorageAway("the file storage of this service is not available") from exc
