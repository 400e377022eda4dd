"""The two clients of S3: botocore's for what needs etags or conditions, pyarrow's for the rest.

Neither tries for long: `attempt` goes on, and decides after which errors.

botocore alone decides where to go and how: endpoint, region, addressing, proxy, certificates and
credentials are those of the environment and the profile, as its documentation says. pyarrow's
client is built from that. A process has one of each for a bucket, and fetches credentials once
until they run out.

Neither may leave the process: pickled, pyarrow's would carry the credentials.
"""

import errno
import functools
import logging
import os
import random
import re
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import botocore
import botocore.config
import botocore.loaders
import botocore.session
from botocore import exceptions
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies
from pyarrow import fs

from resunet_ray.errors import ConfigError
from resunet_ray.storage.faults import AwayError, RefusedError, mask_credentials
from resunet_ray.storage.signed import SignedReads

logger = logging.getLogger(__name__)

Environment = tuple[tuple[str, str], ...]

_S3_ERRORS = (exceptions.BotoCoreError, exceptions.ClientError)

_CONNECTIONS = 64  # kept open, for as many threads
_QUICK = 7  # attempts of pyarrow's client: within 3 s, its pauses doubled from 25 ms
_DECIDES = frozenset(
    (
        *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
        *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "HOME"),
    )
)
"""Variables that clients read when they are made, beside those of AWS."""
_AWS = re.compile(r"s3[.-].*amazonaws\.com(\.cn)?")
"""Hosts where each bucket has a name and a region of its own."""
_INVALID = (
    *(exceptions.ProfileNotFound, exceptions.ConfigParseError, exceptions.InvalidConfigError),
    *(exceptions.PartialCredentialsError, exceptions.InvalidIMDSEndpointError, ValueError),
)
_AWAY = (
    *(exceptions.ConnectionError, exceptions.HTTPClientError),
    *(exceptions.MetadataRetrievalError, exceptions.CredentialRetrievalError),
)
_NOT_FOUND = 404  # HTTP status
_BUSY = (429, 500, 502, 503, 504)
_PAUSES = (0.25, 0.5, 1.0, 2.0, 4.0)  # seconds between requests to a busy metadata service

_building = threading.RLock()  # threads that start together share one client
_sessions: dict[Environment, botocore.session.Session] = {}
_clients: dict[tuple[str, Environment], "Clients"] = {}


class Clients:
    """Both clients of one bucket."""

    def __init__(self, bucket: str, session: botocore.session.Session) -> None:
        """Let botocore decide everything for a bucket."""
        self._bucket = bucket
        self.credentials = session.get_credentials()
        """None if there are none: then requests are not signed, as public buckets allow."""
        verify = session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
        # SSL_CERT_FILE or the system's; if there are none, those that come with botocore.
        verify = verify or ssl.get_default_verify_paths().cafile or get_cert_path(True)
        config = botocore.config.Config(
            retries={"total_max_attempts": 1},
            signature_version=None if self.credentials else botocore.UNSIGNED,
            max_pool_connections=_CONNECTIONS,
        )
        self.s3: Any = session.create_client("s3", config=config, verify=verify)
        """botocore's client, for listings and conditional writes."""
        if _is_aws(self.s3):
            region = _find_region(self.s3, bucket)
            self.s3 = session.create_client("s3", region, config=config, verify=verify)
        self.settings = {**_describe(self.s3), "tls_ca_file_path": verify}
        """Where requests go and how, in the words of pyarrow's client."""
        self.reads = SignedReads(bucket, self.s3, region=self.settings["region"])
        self._keys: Any = None
        self._filesystem: fs.S3FileSystem | None = None

    def read_keys(self) -> Any:
        """Return the credentials that are valid now, fetched again if the last ones run out.

        Raises:
            ResourceError: they cannot be fetched.
        """
        with _explained(self._bucket):
            return self.credentials and self.credentials.get_frozen_credentials()

    @property
    def filesystem(self) -> fs.S3FileSystem:
        """The client of pyarrow, another one once the credentials were renewed."""
        keys = self.read_keys()
        with _building, _explained(self._bucket):
            if self._filesystem is None or keys != self._keys:
                names = ("access_key", "secret_key", "session_token")
                account = dict(zip(names, keys or (), strict=False))
                self._filesystem = fs.S3FileSystem(
                    **self.settings,
                    **account,
                    anonymous=not account,
                    # Threads of pyarrow that write would wait for others of the same, small pool.
                    background_writes=False,
                    retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=_QUICK),
                )
                self._keys = keys
            return self._filesystem

    def holds(self, filesystem: fs.FileSystem) -> bool:
        """Whether this is pyarrow's client now."""
        return self._filesystem is filesystem


def connect(bucket: str) -> Clients:
    """Return this process's clients of a bucket, as the environment says now.

    Raises:
        ConfigError: the settings of the environment or profile are not valid.
        ResourceError: credentials were found, but cannot be fetched; or the storage is away.
    """
    names = [name for name in os.environ if name.startswith("AWS_") or name in _DECIDES]
    environment = tuple((name, os.environ.get(name, "")) for name in names)
    with _building, _explained(bucket):
        if environment not in _sessions:
            forget()
            _sessions[environment] = _open_session()
        if (bucket, environment) not in _clients:
            _clients[bucket, environment] = Clients(bucket, _sessions[environment])
        return _clients[bucket, environment]


def forget(refused: fs.FileSystem | None = None) -> None:
    """Make clients and look for credentials anew, unless a refused client is gone already."""
    with _building:
        if refused is None or any(clients.holds(refused) for clients in _clients.values()):
            _sessions.clear()
            _clients.clear()


@contextmanager
def os_errors() -> Iterator[None]:
    """Turn what botocore's client raises into the OSErrors that pyarrow's would raise."""
    try:
        yield
    except exceptions.ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status == _NOT_FOUND:
            raise FileNotFoundError(errno.ENOENT, str(error)) from None
        raise OSError(f"AWS Error (HTTP status {status}): {error}") from None
    except exceptions.NoCredentialsError as error:
        raise OSError(f"AWS Error MISSING_AUTHENTICATION_TOKEN: {error}") from None
    except exceptions.BotoCoreError as error:
        raise OSError(f"AWS Error NETWORK_CONNECTION: {error}") from None


@contextmanager
def _explained(bucket: str) -> Iterator[None]:
    """Turn what goes wrong with settings and credentials into this project's errors."""
    try:
        yield
    except _INVALID as error:
        text = mask_credentials(str(error))
        raise ConfigError(f"the settings for s3://{bucket} are not valid: {text}") from None
    except _AWAY as error:
        text = mask_credentials(str(error))
        raise AwayError(f"s3://{bucket} cannot be used yet: {text}") from None
    except _S3_ERRORS as error:
        text = mask_credentials(str(error))
        raise RefusedError(
            f"there are no credentials for s3://{bucket}: {text}. Renew them, and run the same "
            "command again"
        ) from None


def _is_aws(client: Any) -> bool:
    return _AWS.fullmatch(urlsplit(client.meta.endpoint_url).hostname or "") is not None


def _find_region(client: Any, bucket: str) -> str:
    """Ask AWS where a bucket is: requests to another region fail."""
    try:
        answer = client.head_bucket(Bucket=bucket)
    except exceptions.ClientError as error:
        answer = error.response
    status, headers = (
        answer["ResponseMetadata"][name] for name in ("HTTPStatusCode", "HTTPHeaders")
    )
    if status in _BUSY:
        raise AwayError(f"s3://{bucket} cannot be used yet: HTTP {status}")
    return str(headers.get("x-amz-bucket-region", client.meta.region_name))


def _describe(client: Any) -> dict[str, Any]:
    """Return what a client of botocore does, as settings of pyarrow's."""
    endpoint = urlsplit(client.meta.endpoint_url)
    style = (client.meta.config.s3 or {}).get("addressing_style")
    proxy = get_environ_proxies(client.meta.endpoint_url).get(endpoint.scheme)
    region = client.meta.region_name
    return {
        "endpoint_override": f"{endpoint.netloc}{endpoint.path}".rstrip("/"),
        "scheme": endpoint.scheme,
        "region": "us-east-1" if region == "aws-global" else region,
        "force_virtual_addressing": style == "virtual" or (style != "path" and _is_aws(client)),
        "proxy_options": proxy if proxy is None or "://" in proxy else f"http://{proxy}",
    }


@functools.cache
def _load_once() -> botocore.loaders.Loader:
    """Return what reads botocore's description of S3, some megabytes of JSON."""
    return botocore.loaders.create_loader()


def _open_session() -> botocore.session.Session:
    session = botocore.session.Session()
    session.register_component("data_loader", _load_once())
    if (region := os.environ.get("AWS_REGION")) and "AWS_DEFAULT_REGION" not in os.environ:
        session.set_config_variable("region", region)  # as other tools of AWS have it
    role = session.get_component("credential_provider").get_provider("iam-role")
    role._role_fetcher._session = _Patient(role._role_fetcher._session)
    return session


class _Patient:
    """Asks a metadata service again while it is busy.

    botocore would go on as if there were no credentials.
    """

    def __init__(self, session: Any) -> None:
        self._session = session

    def send(self, request: Any) -> Any:
        for pause in (*_PAUSES, 0.0):
            try:
                answer = self._session.send(request)
            except exceptions.ReadTimeoutError:
                if request.method == "PUT":  # a container may never get a token, nor need one
                    raise
                told = "no answer in time"
            else:
                told = f"HTTP {answer.status_code}"
                # 401: the token came too late.
                if answer.status_code not in (401, *_BUSY):
                    return answer
            time.sleep(pause * random.uniform(0.7, 1.3))  # noqa: S311 (so that processes spread)
        raise AwayError(
            f"the metadata service at {urlsplit(request.url).netloc}, which gives this machine its "
            f"credentials, is busy ({told}): too many processes ask it"
        )
