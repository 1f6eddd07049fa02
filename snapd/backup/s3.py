"""`S3Place`: backups in a bucket, through boto3."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from typing_extensions import Buffer

from snapd.backup.stream import Sink, Source
from snapd.errors import DiskError, NothingThereError

_PART_BYTES = 16 * 2**20
"""Of a multipart upload, which has 10,000 parts at most: no archive of ours comes near."""
_ERRORS = (BotoCoreError, ClientError, HTTPClientError)
_MISSING = {"NoSuchKey", "404", "NotFound"}


class S3Place:
    """Objects below a prefix. Credentials, region and endpoint come from where AWS's own tools take
    them: `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL_S3`, `~/.aws/config`, the instance's role.

    An object is there when its upload was completed, or not at all. Names are listed by the
    service, which is consistent since 2020; two backups into one prefix at a time are not kept
    apart by a lock, as a bucket has none.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        config = Config(connect_timeout=10, read_timeout=60, retries={"mode": "standard"})
        with _told("reach", bucket):
            self._client: Any = boto3.client("s3", config=config)
        self._bucket = bucket
        self._prefix = prefix.strip("/")

    def names(self, directory: str) -> list[str]:
        """See `Place`."""
        start = self._key(directory) + "/"
        with _told("list", start):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=start
            )
            keys = [one["Key"] for page in pages for one in page.get("Contents", ())]
        return sorted(key.removeprefix(start) for key in keys)

    @contextmanager
    def reading(self, name: str) -> Iterator[Source]:
        """See `Place`."""
        with _told("read", name):
            body = self._client.get_object(Bucket=self._bucket, Key=self._key(name))["Body"]
        try:
            yield _ObjectSource(body, name)
        finally:
            body.close()

    def write(self, name: str, produce: Callable[[Sink], None]) -> None:
        """See `Place`. The parts of an upload that fails are given up; those of one that is killed
        are for a life-cycle rule of the bucket."""
        where = {"Bucket": self._bucket, "Key": self._key(name)}
        with _told("write", name):
            upload = self._client.create_multipart_upload(**where)["UploadId"]
        sink = _UploadSink(self._client, where | {"UploadId": upload}, name)
        try:
            produce(sink)
            sink.finish()
        except BaseException:
            with _told("give up", name):
                self._client.abort_multipart_upload(**where, UploadId=upload)
            raise

    def remove(self, name: str) -> None:
        """See `Place`."""
        with _told("remove", name):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(name))

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name


class _ObjectSource:
    """An object's bytes."""

    def __init__(self, body: Any, name: str) -> None:
        self._body = body
        self._name = name

    def read(self, length: int) -> bytes:
        """See `Source`."""
        with _told("read", self._name):
            data: bytes = self._body.read(length)
        return data


class _UploadSink:
    """Gathers parts of a multipart upload."""

    def __init__(self, client: Any, where: dict[str, str], name: str) -> None:
        self._client = client
        self._where = where
        self._name = name
        self._buffer = bytearray()
        self._parts: list[dict[str, Any]] = []

    def __call__(self, data: Buffer) -> None:
        """See `Sink`."""
        self._buffer += memoryview(data)
        if len(self._buffer) >= _PART_BYTES:
            self._send()

    def finish(self) -> None:
        """Send the last part and make the object."""
        self._send()
        with _told("write", self._name):
            self._client.complete_multipart_upload(
                **self._where, MultipartUpload={"Parts": self._parts}
            )

    def _send(self) -> None:
        number = len(self._parts) + 1
        with _told("write", self._name):
            done = self._client.upload_part(
                **self._where, PartNumber=number, Body=bytes(self._buffer)
            )
        self._parts.append({"PartNumber": number, "ETag": done["ETag"]})
        self._buffer.clear()


@contextmanager
def _told(action: str, name: str) -> Iterator[None]:
    """What the service or the network says, as errors of ours."""
    try:
        yield
    except _ERRORS as error:
        code = ""
        if isinstance(error, ClientError):
            code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _MISSING:
            raise NothingThereError(f"there is no {name} in the bucket") from error
        raise DiskError(f"cannot {action} {name} in the bucket: {error}", errno.EIO) from error
