"""The checks of the way to an object store: credentials, its clock, and both clients of S3."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from email.utils import parsedate_to_datetime
from typing import Any

from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError
from botocore.httpsession import URLLib3Session

from resunet_ray.doctor.check import NOT_REACHED, Surroundings, Verdict, check, describe, rate
from resunet_ray.storage.clients import Clients, connect

_GROUP = "access to storage"
_ANSWER_SECONDS = 3.0
_BOTH_SECONDS = 6.0
_SKEW_SECONDS = 900.0
"""S3 refuses a signature that is older or newer: AWS's RequestTimeTooSkewed."""
_DOUBTFUL_SECONDS = 300.0
_ELSEWHERE = Verdict("ok", "only asked of s3://…")


@check(
    _GROUP,
    expected="credentials, by AWS's standard chain; without them, only public buckets answer",
    fix="Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, here and on every node, "
    "or give the machines a role",
)
def _credentials(place: Surroundings) -> Verdict:
    clients = _connect(place)
    if clients is None:
        return _ELSEWHERE
    if clients.credentials is None:
        return Verdict("warning", "none were found")
    clients.read_keys()
    return Verdict("ok", f"found (botocore's source {clients.credentials.method})")


@check(
    _GROUP,
    expected="a clock within 5 minutes of the store's: beyond 15, it refuses every request",
    fix="Set the clock of this machine, and of every node, by a time server (`timedatectl set-ntp "
    "true`); or that of the store, if it is your own and the one that is wrong",
)
def _store_clock(place: Surroundings) -> Verdict:
    clients = _connect(place)
    if clients is None:
        return _ELSEWHERE
    settings, begun = clients.settings, time.time()
    url = f"{settings['scheme']}://{settings['endpoint_override']}/"
    session = URLLib3Session(
        verify=settings["tls_ca_file_path"],
        proxies={settings["scheme"]: settings["proxy_options"]},
        timeout=_ANSWER_SECONDS,
    )
    try:
        answer = session.send(AWSRequest("GET", url).prepare())  # of any status
    except BotoCoreError:  # away
        return NOT_REACHED
    middle, doubt = (begun + time.time()) / 2, (time.time() - begun) / 2
    if "date" not in answer.headers:
        return Verdict("not asked", "the store does not say what time it has")
    # The header has whole seconds.
    ahead = middle - parsedate_to_datetime(answer.headers["date"]).timestamp() - 0.5
    apart = max(0.0, abs(ahead) - doubt - 0.5)
    found = f"this clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the store's"
    return rate(
        found if apart else "as the store's",
        wrong=apart > _SKEW_SECONDS,
        doubtful=apart > _DOUBTFUL_SECONDS,
    )


@check(
    _GROUP,
    expected="both clients of S3, pyarrow's (writes) and botocore's (all else), reach it",
    fix="Allow s3:ListBucket if that is what is denied. Else compare HTTP_PROXY, HTTPS_PROXY and "
    "NO_PROXY (http://HOST:PORT), AWS_CA_BUNDLE (one file in PEM format) and AWS_ENDPOINT_URL: "
    "what stands in between lets only one of them pass",
)
def _both_clients(place: Surroundings) -> Verdict:
    clients = _connect(place)
    if clients is None:
        return _ELSEWHERE
    bucket = _bucket(place)
    errors = _try_at_once(
        {
            "pyarrow's": lambda: clients.filesystem.get_file_info(bucket),
            "botocore's": lambda: clients.s3.list_objects_v2(Bucket=bucket, MaxKeys=1),
        }
    )
    proxy = clients.settings["proxy_options"]
    way = f"{clients.settings['endpoint_override']} {f'through {proxy}' if proxy else 'directly'}"
    if not any(errors.values()):
        return Verdict("ok", f"both reach {way}")
    if all(errors.values()):
        return NOT_REACHED
    failed, error = next(item for item in errors.items() if item[1])
    return Verdict("failed", f"{failed} does not reach {way}, the other does: {error}")


def _try_at_once(calls: dict[str, Callable[[], Any]]) -> dict[str, str]:
    """Return, by name, what went wrong; an empty text if nothing did."""
    pool = ThreadPoolExecutor(len(calls))
    futures: dict[str, Future[Any]] = {name: pool.submit(call) for name, call in calls.items()}
    wait(futures.values(), timeout=_BOTH_SECONDS)
    pool.shutdown(wait=False)
    silence = f"nothing within {_BOTH_SECONDS:.0f} s"
    errors = {
        name: future.exception() if future.done() else TimeoutError(silence)
        for name, future in futures.items()
    }
    return {name: "" if error is None else describe(error) for name, error in errors.items()}


def _bucket(place: Surroundings) -> str:
    scheme, _, rest = place.folder.partition("://")
    return rest.partition("/")[0] if scheme == "s3" else ""


def _connect(place: Surroundings) -> Clients | None:
    bucket = _bucket(place)
    return connect(bucket) if bucket else None
