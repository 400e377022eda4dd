"""Reads of objects by requests that are signed and sent, and nothing else.

botocore's client takes three more milliseconds of a core for each, which is more than a small image
takes to decode. It is asked again where the answer is not the bytes: it knows about redirects, keys
that are not there, credentials that are refused, and buckets with a signature of their own.
"""

from typing import Any

from botocore import exceptions
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.utils import percent_encode

_FOUND = (200, 206)  # HTTP statuses
_BUSY = 429
_FAILED = 500  # and above
_MOST_REFUSED = 3


class SignedReads:
    """Reads the objects of one bucket."""

    def __init__(self, bucket: str, client: Any, *, region: str) -> None:
        """Learn from botocore's client where the objects of a bucket are.

        Args:
            bucket: its name.
            client: botocore's client, whose connections, proxy and certificates are used.
            region: that requests are signed for.
        """
        place = {"Bucket": bucket, "Key": "k"}
        self._base = client.generate_presigned_url("get_object", Params=place).split("?")[0][:-1]
        self._client, self._bucket, self._region = client, bucket, region
        self._refused = 0

    def read(self, key: str, *, wanted: str, keys: Any) -> tuple[bytes, str]:
        """Return bytes of an object, and its etag.

        Args:
            key: of the object.
            wanted: the header `Range`.
            keys: frozen credentials; None: not signed.

        Raises:
            botocore.exceptions.ClientError: the store refused, or has no such object or bytes.
            botocore.exceptions.BotoCoreError: the store did not answer, or not to the end.
        """
        if self._refused < _MOST_REFUSED:
            answer = self._send(key, wanted=wanted, keys=keys)
            status, content, headers = answer.status_code, answer.content, answer.headers
            if status in _FOUND and "ETag" in headers:
                expected = int(headers.get("Content-Length", len(content)))
                if len(content) != expected:
                    raise exceptions.IncompleteReadError(
                        actual_bytes=len(content), expected_bytes=expected
                    )
                return content, headers["ETag"].strip('"')
            if status == _BUSY or status >= _FAILED:
                raise exceptions.ClientError(
                    {
                        "Error": {"Code": str(status), "Message": content[:200].decode("latin-1")},
                        "ResponseMetadata": {"HTTPStatusCode": status},
                    },
                    "GetObject",
                )
        found = self._client.get_object(Bucket=self._bucket, Key=key, Range=wanted)
        self._refused += 1  # what the client then got: the store wants more than a signature
        return found["Body"].read(), found["ETag"].strip('"')

    def _send(self, key: str, *, wanted: str, keys: Any) -> Any:
        url = self._base + percent_encode(key, safe="/~")
        request = AWSRequest("GET", url, headers={"Range": wanted})
        if keys is not None:
            S3SigV4Auth(keys, "s3", self._region).add_auth(request)
        # The client has no public way to its connections.
        return self._client._endpoint.http_session.send(request.prepare())
