"""What `cluster/kubernetes` deploys: found, rendered, and checked against its readers' schemas."""

import copy
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.scripts.scripts import start as ray_start
from support import ROOT

FOLDER = ROOT / "cluster" / "kubernetes"
CRDS = ROOT.parent / "shared" / "kuberay-crds"
KUBERNETES = "1.37"  # the newest version that kubernetes_validate knows

_FREE = {"labels", "annotations", "matchLabels", "data"}
"""Mappings whose keys are free."""
_RESOURCES = {"cpu", "memory", "ephemeral-storage", "nvidia.com/gpu"}

Object = dict[str, Any]
Path_ = tuple[str | int, ...]


def list_kustomizations(kind: str = "Kustomization") -> list[str]:
    """Return the folders that are applied or, for kind Component, those that others include."""
    found = sorted(FOLDER.rglob("kustomization.yaml"))
    return [
        str(file.parent.relative_to(FOLDER))
        for file in found
        if yaml.safe_load(file.read_text())["kind"] == kind
    ]


def list_sources() -> list[str]:
    """Return every file that is not a kustomization."""
    return [
        str(file.relative_to(FOLDER))
        for file in sorted(FOLDER.rglob("*.y*ml"))
        if file.name != "kustomization.yaml"
    ]


def render(name: str, *, folder: Path = FOLDER) -> list[Object]:
    """Return the objects that `kubectl apply -k` sends. Skips the test if there is no kubectl.

    Raises:
        ValueError: kubectl refuses the folder.
    """
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl: the rendered cluster/kubernetes was not checked")
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder / name)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(done.stderr)
    return list(yaml.safe_load_all(done.stdout))


@cache
def render_all() -> dict[str, list[Object]]:
    """Render all folders that are applied."""
    return {name: render(name) for name in list_kustomizations()}


def find(kind: str, *, among: str) -> Object:
    """Return the only object of a kind in a folder."""
    (found,) = [item for item in render_all()[among] if item["kind"] == kind]
    return found


def walk(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Yield every value within an object, with the keys and indices that lead to it."""
    yield path, value
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        yield from walk(inner, (*path, key))


def misspell(item: Any, path: Path_) -> Any:
    """Return a copy with an extra letter in the last key of the path."""
    changed = copy.deepcopy(item)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[f"{path[-1]}x"] = place.pop(path[-1])
    return changed


def list_fields(item: Object) -> list[Path_]:
    """Return the path of every key that a schema defines."""
    return [
        path
        for path, _ in walk(item)
        if path and isinstance(path[-1], str) and not (len(path) > 1 and path[-2] in _FREE)
    ]


def list_pods(item: Object) -> list[Object]:
    """Return the specifications of all pods within an object, including those of RayJobs."""
    return [value for _, value in walk(item) if isinstance(value, dict) and "containers" in value]


def list_clusters(item: Object) -> list[Object]:
    """Return the specifications of all Ray clusters within an object."""
    return [
        value for _, value in walk(item) if isinstance(value, dict) and "headGroupSpec" in value
    ]


def problems(item: Object) -> list[str]:
    """List what Kubernetes, KubeRay or `ray start` would refuse or ignore in an object."""
    if "kind" not in item or "apiVersion" not in item:
        return ["kind or apiVersion is missing"]
    return _schema_problems(item) or [*_name_problems(item), *_operator_problems(item)]


def _schema_problems(item: Object) -> list[str]:
    group = item["apiVersion"].partition("/")[0]
    if group != "ray.io":
        try:
            kubernetes_validate.validate(item, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            return [error.message]
        except kubernetes_validate.SchemaNotFoundError as error:
            return [error.message]
        return []
    validators = _ray_validators()
    if item["kind"] not in validators:
        return [f"{group} has no kind {item['kind']}"]
    # A CRD leaves the metadata to Kubernetes.
    metadata = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": item.get("metadata")}
    return [
        error.message for error in validators[item["kind"]].iter_errors(item)
    ] or _schema_problems(metadata)


@cache
def _ray_validators() -> dict[str, jsonschema.Draft202012Validator]:
    """Return a validator for each kind. Skips the test if the CRDs are missing."""
    if not CRDS.exists():
        pytest.skip(f"no KubeRay CRDs at {CRDS}: its objects were not checked")
    found = {}
    for file in CRDS.glob("*.yaml"):
        crd = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)["spec"]
        (version,) = [version for version in crd["versions"] if version["name"] == "v1"]
        found[crd["names"]["kind"]] = jsonschema.Draft202012Validator(
            _close(version["schema"]["openAPIV3Schema"])
        )
    return found


def _close(schema: Any) -> Any:
    """Close a schema to fields that it does not name: Kubernetes drops those silently."""
    if isinstance(schema, list):
        return [_close(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _close(value) for key, value in schema.items()}
    names_all = isinstance(closed.get("properties"), dict) and not closed.get(
        "x-kubernetes-preserve-unknown-fields"
    )
    if names_all and closed.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


def _name_problems(item: Object) -> Iterator[str]:
    """Yield unknown names that no schema checks: of resources and of options of `ray start`."""
    options = {name.lstrip("-") for option in ray_start.params for name in option.opts}
    for path, value in walk(item):
        known = (
            _RESOURCES
            if path[-2:-1] == ("resources",)
            else options
            if path[-1:] == ("rayStartParams",)
            else None
        )
        if known is not None and isinstance(value, dict):
            yield from (
                f"{'.'.join(map(str, path))}: {name} is not one of {sorted(known)}"
                for name in value
                if name not in known
            )


def _operator_problems(item: Object) -> Iterator[str]:
    """Yield broken rules of KubeRay's operator that its schema does not contain.

    Source: controllers/ray/utils/validation.go.
    """
    name = item.get("metadata", {}).get("name", "")
    if item["apiVersion"] == "ray.io/v1" and not re.fullmatch(
        r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", name
    ):
        yield "metadata.name: at most 47 lower-case letters, digits and hyphens, a letter first"
    job = {
        "RayJob": item.get("spec", {}),
        "RayCronJob": item.get("spec", {}).get("jobTemplate", {}),
    }.get(item["kind"])
    if job is not None:
        yield from (problem for problem, broken in _JOB_RULES.items() if broken(job))
    for cluster in list_clusters(item):
        yield from (problem for problem, broken in _CLUSTER_RULES.items() if broken(cluster))


_JOB_RULES: dict[str, Callable[[Object], bool]] = {
    "ttlSecondsAfterFinished needs shutdownAfterJobFinishes": lambda job: (
        job.get("ttlSecondsAfterFinished", 0) > 0 and not job.get("shutdownAfterJobFinishes")
    ),
    "shutdownAfterJobFinishes excludes deletionRules": lambda job: (
        bool(job.get("shutdownAfterJobFinishes"))
        and "deletionRules" in job.get("deletionStrategy", {})
    ),
    "suspend needs shutdownAfterJobFinishes": lambda job: (
        bool(job.get("suspend")) and not job.get("shutdownAfterJobFinishes")
    ),
    "backoffLimit excludes clusterSelector": lambda job: (
        job.get("backoffLimit", 0) > 0 and "clusterSelector" in job
    ),
    "suspend excludes clusterSelector": lambda job: (
        bool(job.get("suspend")) and "clusterSelector" in job
    ),
    "either rayClusterSpec or clusterSelector": lambda job: (
        ("rayClusterSpec" in job) == ("clusterSelector" in job)
    ),
    "clusterSelector names no cluster": lambda job: (
        "clusterSelector" in job and not job["clusterSelector"].get("ray.io/cluster")
    ),
    "InteractiveMode excludes backoffLimit": lambda job: (
        job.get("submissionMode") == "InteractiveMode" and job.get("backoffLimit", 0) > 0
    ),
    "SidecarMode excludes clusterSelector and a custom submitter": lambda job: (
        job.get("submissionMode") == "SidecarMode"
        and any(
            name in job for name in ("clusterSelector", "submitterPodTemplate", "submitterConfig")
        )
    ),
    "activeDeadlineSeconds must be positive": lambda job: job.get("activeDeadlineSeconds", 1) <= 0,
}


def _groups(cluster: Object) -> list[Object]:
    return [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]


def _version(cluster: Object) -> tuple[int, ...]:
    return tuple(int(part) for part in cluster.get("rayVersion", "0").split("."))


_CLUSTER_RULES: dict[str, Callable[[Object], bool]] = {
    "authOptions.mode token needs rayVersion 2.52 or newer": lambda cluster: (
        cluster.get("authOptions", {}).get("mode") == "token" and _version(cluster) < (2, 52)
    ),
    "autoscalerOptions without enableInTreeAutoscaling would be ignored": lambda cluster: (
        "autoscalerOptions" in cluster and not cluster.get("enableInTreeAutoscaling")
    ),
    "version 2 of the autoscaler needs pods that are never restarted": lambda cluster: (
        bool(cluster.get("enableInTreeAutoscaling"))
        and any(
            group["template"]["spec"].get("restartPolicy", "Never") != "Never"
            for group in _groups(cluster)
        )
    ),
    "resources are set both in rayStartParams and next to it": lambda cluster: any(
        group.get("resources")
        and {"num-cpus", "num-gpus", "memory", "resources"} & set(group.get("rayStartParams", {}))
        for group in _groups(cluster)
    ),
    "labels are set in rayStartParams": lambda cluster: any(
        "labels" in group.get("rayStartParams", {}) for group in _groups(cluster)
    ),
    "minReplicas ≤ replicas ≤ maxReplicas": lambda cluster: any(
        not group["minReplicas"]
        <= group.get("replicas", group["minReplicas"])
        <= group["maxReplicas"]
        for group in cluster.get("workerGroupSpecs", [])
    ),
    "the autoscaler cannot suspend a group": lambda cluster: any(
        group.get("suspend") for group in cluster.get("workerGroupSpecs", [])
    ),
    "a feature gate is off by default": lambda cluster: any(
        name in cluster for name in ("networkPolicy", "tlsOptions", "historyServerOptions")
    ),
}
