"""boto3's clients, for what pyarrow lacks: etags of listings and reads, and conditional writes."""

import threading
from functools import lru_cache
from typing import Any

import boto3
import botocore.config

from resunet_ray.storage.locations import client_environment

# As many as Ray Data makes. With the pauses between them, a store may be unavailable for about a
# minute.
_ATTEMPTS = 10
_CONNECTIONS = 64  # kept open, for as many threads
_MAKING = threading.Lock()  # a session cannot make two clients at once


def s3_client(*, attempts: int = _ATTEMPTS) -> Any:
    """Return this process's client of S3, which keeps connections and credentials.

    Args:
        attempts: how often it sends a request that fails for a reason that may pass.
    """
    with _MAKING:
        return _s3_client(client_environment(), attempts)


@lru_cache(maxsize=8)
def _s3_client(environment: tuple[str | None, ...], attempts: int) -> Any:
    config = botocore.config.Config(
        retries={"total_max_attempts": attempts, "mode": "standard"},
        max_pool_connections=_CONNECTIONS,
    )
    return _session(environment).client("s3", config=config)


@lru_cache(maxsize=4)
def _session(_environment: tuple[str | None, ...]) -> boto3.Session:
    return boto3.Session()
