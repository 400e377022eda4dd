"""The bundle: loaded, its digests checked, its sample run."""

from collections.abc import Iterator

from resunet_ray import bundles
from resunet_ray.bundle import load_bundle
from resunet_ray.config import DoctorConfig
from resunet_ray.doctor.finding import Finding, describe, failed, ok
from resunet_ray.errors import ResUNetRayError, RunError

_DAMAGED = "Name the folder that holds bundle.json (OUTPUT/train/bundle), or copy the bundle there again, whole"
_OTHER = "Install the versions that `provenance` in its bundle.json names, or train it anew with those that are here"


def probe(uri: str) -> str:
    """Loads a bundle and runs its sample; its digest.

    Raises:
        ResUNetRayError: it is missing or damaged, or gives another output than where it was saved.
    """
    bundle = load_bundle(uri)
    bundle.self_test()
    return bundle.digest


def examine(config: DoctorConfig) -> Iterator[Finding]:
    """What this process makes of the bundle."""
    assert config.bundle is not None
    try:
        digest = probe(bundles.absolute(config.bundle))
    except (ResUNetRayError, OSError) as error:
        fix = _OTHER if isinstance(error, RunError) else _DAMAGED
        yield failed(
            "bundle",
            describe(error),
            expected="a bundle whose files are whole and whose sample comes out as it did",
            fix=fix,
        )
        return
    yield ok(
        "bundle",
        f"{config.bundle}: whole, and its sample comes out as it did; digest {digest[:12]}",
    )
