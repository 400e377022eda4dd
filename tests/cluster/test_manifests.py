"""Every manifest is valid, and tests catch misspelt fields, broken rules and privileged pods."""

import copy
import re
import shutil
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from manifests import (
    FOLDER,
    Object,
    find,
    list_clusters,
    list_fields,
    list_kustomizations,
    list_pods,
    list_sources,
    misspell,
    problems,
    render,
    render_all,
    walk,
)
from support import ROOT

from resunet_ray.config import SegmentConfig

APPLIED = list_kustomizations()
COMPONENTS = {"settings": ["access", "nightly"], "own-cluster": ["train", "nightly-raycronjob"]}
"""By component, the folders that together show everything it does."""


def read(name: str) -> list[Any]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


@pytest.mark.parametrize("name", APPLIED)
def test_every_applied_object_is_accepted(name: str) -> None:
    """By the schemas of Kubernetes and KubeRay without unknown fields, and the operator's rules."""
    objects = render(name)
    assert objects
    for item in objects:
        assert problems(item) == [], item["metadata"]["name"]


@pytest.mark.parametrize("name", list_sources())
def test_every_file_is_used_and_well_formed(name: str) -> None:
    """An object in a file is accepted as it is (jobs get a cluster later); others are patches."""
    assert any(
        Path(name).name in file.read_text()
        for file in (FOLDER / name).parent.glob("kustomization.yaml")
    )
    for item in read(name):
        if isinstance(item, list):
            assert all(set(step) <= {"op", "path", "value", "from"} for step in item)
        else:
            assert [
                problem
                for problem in problems(item)
                if problem != "either rayClusterSpec or clusterSelector"
            ] == []


@pytest.mark.parametrize("name", APPLIED)
def test_any_misspelt_field_is_refused(name: str) -> None:
    for item in render(name):
        fields = list_fields(item)
        assert len(fields) >= 4
        accepted = [
            ".".join(map(str, path)) for path in fields if not problems(misspell(item, path))
        ]
        assert accepted == [], item["metadata"]["name"]


@pytest.mark.parametrize("name", [*APPLIED, *list_kustomizations("Component")])
def test_any_misspelt_field_of_a_kustomization_is_refused(name: str, tmp_path: Path) -> None:
    """Kustomize or the schemas of the result refuse it, in the kustomization and in its patches."""
    shutil.copytree(FOLDER, tmp_path / "copy")
    users = [name] if name in APPLIED else COMPONENTS[name]
    for file in sorted((FOLDER / name).glob("*.yaml")):
        content = (
            yaml.safe_load(file.read_text())
            if len(read(str(file.relative_to(FOLDER)))) == 1
            else {}
        )
        if isinstance(content, dict) and file.name != "kustomization.yaml":
            continue  # an object: covered by the test above
        place = tmp_path / "copy" / name / file.name
        # Items of a list are alike: the first one that has the field is enough.
        fields = {
            tuple(key for key in path if isinstance(key, str)): path
            for path in reversed(list_fields_of(content))
        }
        for path in fields.values():
            place.write_text(yaml.safe_dump(misspell(content, path)))
            assert not all(is_accepted(user, folder=tmp_path / "copy") for user in users), (
                file.name,
                path,
            )
        shutil.copy(file, place)
    assert all(is_accepted(user, folder=tmp_path / "copy") for user in users)


def list_fields_of(content: Any) -> list[tuple[str | int, ...]]:
    """Return the fields of a kustomization or of a list of patches, without the patched values."""
    return [
        path
        for path, _ in walk(content)
        if path
        and isinstance(path[-1], str)
        and not {"value", "target", "options"} & set(path[:-1])
    ]


def is_accepted(name: str, *, folder: Path) -> bool:
    """Whether the result is accepted and contains the same objects as before."""
    try:
        objects = render(name, folder=folder)
    except ValueError:
        return False
    return list_names(objects) == list_names(render_all()[name]) and not any(
        problems(item) for item in objects
    )


def list_names(objects: list[Object]) -> list[tuple[str, str]]:
    return [(item["kind"], item["metadata"]["name"]) for item in objects]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"shutdownAfterJobFinishes": False},
            "ttlSecondsAfterFinished needs shutdownAfterJobFinishes",
        ),
        (
            {
                "deletionStrategy": {
                    "deletionRules": [
                        {"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED"}}
                    ]
                }
            },
            "shutdownAfterJobFinishes excludes deletionRules",
        ),
        (
            {"clusterSelector": {"ray.io/cluster": "resunet"}},
            "backoffLimit excludes clusterSelector",
        ),
        (
            {"clusterSelector": {"ray.io/cluster": "resunet"}},
            "either rayClusterSpec or clusterSelector",
        ),
        ({"rayClusterSpec": None}, "either rayClusterSpec or clusterSelector"),
        ({"clusterSelector": {}}, "clusterSelector names no cluster"),
        (
            {"submissionMode": "SidecarMode"},
            "SidecarMode excludes clusterSelector and a custom submitter",
        ),
        ({"submissionMode": "InteractiveMode"}, "InteractiveMode excludes backoffLimit"),
        (
            {"suspend": True, "shutdownAfterJobFinishes": False},
            "suspend needs shutdownAfterJobFinishes",
        ),
        ({"activeDeadlineSeconds": 0}, "activeDeadlineSeconds must be positive"),
        (
            {"rayClusterSpec.rayVersion": "2.51.0"},
            "authOptions.mode token needs rayVersion 2.52 or newer",
        ),
        (
            {"rayClusterSpec.rayVersion": None},
            "authOptions.mode token needs rayVersion 2.52 or newer",
        ),
        (
            {"rayClusterSpec.autoscalerOptions": {}},
            "autoscalerOptions without enableInTreeAutoscaling would be ignored",
        ),
        (
            {"rayClusterSpec.headGroupSpec.resources": {"CPU": "2"}},
            "resources are set both in rayStartParams and next to it",
        ),
        (
            {"rayClusterSpec.headGroupSpec.rayStartParams": {"labels": "a=b"}},
            "labels are set in rayStartParams",
        ),
        ({"rayClusterSpec.networkPolicy": {"mode": "DenyAll"}}, "a feature gate is off by default"),
    ],
)
def test_a_job_that_the_operator_would_refuse_is_refused(change: Object, problem: str) -> None:
    job = copy.deepcopy(find("RayJob", among="train"))
    for path, value in change.items():
        *way, last = path.split(".")
        place = job["spec"]
        for key in way:
            place = place[key]
        place.update({last: value})
        if value is None:
            del place[last]
    assert problem in problems(job)


def test_a_cluster_that_the_operator_would_refuse_is_refused() -> None:
    cluster = copy.deepcopy(find("RayCluster", among="gpu"))
    cluster["spec"]["headGroupSpec"]["template"]["spec"]["restartPolicy"] = "Always"
    cluster["spec"]["workerGroupSpecs"][0].update(minReplicas=5, suspend=True)
    cluster["metadata"]["name"] = "Resunet"
    assert problems(cluster) == [
        "metadata.name: at most 47 lower-case letters, digits and hyphens, a letter first",
        "version 2 of the autoscaler needs pods that are never restarted",
        "minReplicas ≤ replicas ≤ maxReplicas",
        "the autoscaler cannot suspend a group",
    ]


def test_an_unknown_kind_is_refused() -> None:
    assert problems({"apiVersion": "ray.io/v1", "kind": "RayJobb", "metadata": {"name": "a"}})
    assert problems({"apiVersion": "batch/v1", "kind": "CronJobb", "metadata": {"name": "a"}})
    assert problems({"kind": "CronJob"})


def everything() -> list[Object]:
    return [item for objects in render_all().values() for item in objects]


def test_every_pod_meets_the_restricted_profile() -> None:
    """The namespace enforces it: any other pod would never start."""
    pods = [pod for item in everything() for pod in list_pods(item)]
    assert len(pods) == 15
    volumes = {
        "emptyDir",
        "configMap",
        "secret",
        "projected",
        "downwardAPI",
        "persistentVolumeClaim",
        "ephemeral",
        "csi",
    }
    for pod in pods:
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000  # the user of the image
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all(set(volume) - {"name"} <= volumes for volume in pod.get("volumes", []))
        contexts = [container["securityContext"] for container in pod["containers"]]
        assert contexts == [
            {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        ] * len(contexts)
        assert not any(
            "hostPort" in port
            for container in pod["containers"]
            for port in container.get("ports", [])
        )
    (namespace,) = [item for item in everything() if item["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for cluster in [cluster for item in everything() for cluster in list_clusters(item)]:
        if cluster["enableInTreeAutoscaling"]:
            # The operator adds a container for the autoscaler.
            context = cluster["autoscalerOptions"]["securityContext"]
            assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_every_cluster_requires_the_token_and_no_file_contains_one() -> None:
    clusters = [cluster for item in everything() for cluster in list_clusters(item)]
    assert len(clusters) == 5
    assert all(
        cluster["authOptions"] == {"mode": "token", "secretName": "resunet-token"}
        for cluster in clusters
    )
    assert not [item for item in everything() if item["kind"] == "Secret"]
    (container,) = list_pods(find("CronJob", among="nightly"))[0]["containers"]
    environment = {
        variable["name"]: variable.get("value") or variable["valueFrom"]
        for variable in container["env"]
    }
    assert environment == {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": {"secretKeyRef": {"name": "resunet-token", "key": "auth_token"}},
    }


def test_one_file_sets_the_image_and_the_storage(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "copy")
    file = tmp_path / "copy" / "settings" / "kustomization.yaml"
    text = file.read_text()
    for old, new in (
        ("registry.example", "other.example"),
        ("0.2.0-cuda", "7.7.7"),
        ("s3://my-bucket/nuclei", "gs://other"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    file.write_text(text)
    for name in APPLIED:
        for path, value in (
            found for item in render(name, folder=tmp_path / "copy") for found in walk(item)
        ):
            if path and path[-1] == "image":
                assert value == "other.example/resunet_ray:7.7.7"
            assert "my-bucket" not in str(value)
            assert path[-1:] != ("STORAGE_URI",) or value == "gs://other"


def test_references_between_manifests_resolve() -> None:
    """No schema checks the settings, the account, network rules' labels or the head's address."""
    access = render_all()["access"]
    names = {(item["kind"], item["metadata"]["name"]) for item in access}
    for pod in [pod for item in everything() for pod in list_pods(item)]:
        assert pod.get("serviceAccountName") in (None, "resunet")
        mounted = {
            mount["name"]
            for container in pod["containers"]
            for mount in container.get("volumeMounts", [])
        }
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            sources = [source for source in container["envFrom"] if "configMapRef" in source]
            assert [
                ("ConfigMap", source["configMapRef"]["name"]) in names for source in sources
            ] == [True]
    assert ("ServiceAccount", "resunet") in names
    ours = {"app.kubernetes.io/component": "submitter"}
    operators = ({"ray.io/is-ray-node": "yes"}, {"ray.io/node-type": "head"})
    selectors = [
        value["podSelector"]
        for item in access
        for _, value in walk(item)
        if isinstance(value, dict) and "podSelector" in value
    ]
    assert all(selector.get("matchLabels", ours) in (ours, *operators) for selector in selectors)
    for kind, name in (
        ("RayJob", "train"),
        ("RayJob", "sweep"),
        ("CronJob", "nightly"),
        ("RayCronJob", "nightly-raycronjob"),
    ):
        labels = [
            value["labels"]
            for path, value in walk(find(kind, among=name))
            if path[-1:] == ("metadata",) and "labels" in value
        ]
        assert ours in labels
    command = list_pods(find("CronJob", among="nightly"))[0]["containers"][0]["command"]
    assert f"http://{find('RayCluster', among='gpu')['metadata']['name']}-head-svc:8265" in command
    assert {
        item["metadata"].get("namespace") for item in everything() if item["kind"] != "Namespace"
    } == {"resunet"}


def test_nightly_runs_never_overlap_and_a_retry_never_hides_a_failure() -> None:
    cron = find("CronJob", among="nightly")["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    assert cron["jobTemplate"]["spec"]["backoffLimit"] == 0
    assert cron["jobTemplate"]["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    alpha = find("RayCronJob", among="nightly-raycronjob")["spec"]
    assert alpha["jobTemplate"]["backoffLimit"] == 0
    assert cron["jobTemplate"]["spec"]["activeDeadlineSeconds"] < 24 * 3600
    assert re.fullmatch(r"(\S+ ){4}\S+", cron["schedule"])
    assert cron["schedule"] == alpha["schedule"]
    assert ZoneInfo(cron["timeZone"])


def test_the_manifests_state_the_pinned_version_of_ray() -> None:
    """The operator depends on it for the token, the health check and the autoscaler."""
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert pinned
    assert {cluster["rayVersion"] for item in everything() for cluster in list_clusters(item)} == {
        pinned[1]
    }


def gibibytes(quantity: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(Gi|Mi)", quantity).groups()  # type: ignore[union-attr]
    return int(number) / {"Gi": 1, "Mi": 1024}[unit]


def test_every_node_has_room_for_its_object_store_and_for_spilled_objects() -> None:
    """Ray keeps objects in /dev/shm, up to 30% of the memory; with less room, it uses the disk."""
    for cluster in [cluster for item in everything() for cluster in list_clusters(item)]:
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
            pod = group["template"]["spec"]
            (ray,) = pod["containers"]
            requests, limits = ray["resources"]["requests"], ray["resources"]["limits"]
            assert [requests[name] for name in ("cpu", "memory")] == [
                limits[name] for name in ("cpu", "memory")
            ]
            volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
            places = {mount["mountPath"]: volumes[mount["name"]] for mount in ray["volumeMounts"]}
            assert places["/dev/shm"]["medium"] == "Memory"
            assert (
                0.3 * gibibytes(limits["memory"])
                < gibibytes(places["/dev/shm"]["sizeLimit"])
                < gibibytes(limits["memory"]) / 2
            )
            assert places["/tmp"]["sizeLimit"] == limits["ephemeral-storage"]
            assert gibibytes(places["/tmp"]["sizeLimit"]) > SegmentConfig.cache_gib + 20, (
                "otherwise the pod would be evicted, not a slide"
            )
            assert {"readinessProbe", "livenessProbe"} <= set(ray)
            assert {"name": "metrics", "containerPort": 8080} in ray["ports"]
            assert group["template"]["metadata"]["annotations"]["prometheus.io/port"] == "8080"
