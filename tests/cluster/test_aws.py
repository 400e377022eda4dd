"""`cluster/aws.yaml` is what `ray up` and AWS expect, as far as a test without account can tell."""

import copy
import inspect
import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pyarrow as pa
import pytest
import ray.autoscaler
import yaml
from botocore.validate import ParamValidator
from manifests import list_fields, misspell
from ray.autoscaler._private.aws import node_provider
from ray.autoscaler._private.util import prepare_config, validate_config
from support import ROOT, relayed

from resunet_ray import storage

CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / "aws.yaml").read_text())
TYPES = CONFIG["available_node_types"]

_NAMED_BY_US = {
    ("available_node_types", "gpu"),
    ("available_node_types", "cpu"),
    ("file_mounts", "/home/ray/.ray/auth_token"),
}
_RESOURCES = {"CPU", "GPU", "memory", "object_store_memory"}
_SCHEMA = Path(ray.autoscaler.__file__).parent / "ray-schema.json"


@cache
def machine_parameters() -> Any:
    """Return the parameters of EC2's RunInstances, from boto3."""
    return (
        botocore.session.get_session()
        .get_service_model("ec2")
        .operation_model("RunInstances")
        .input_shape
    )


def problems(config: dict[str, Any]) -> list[str]:
    """List what Ray's check finds, and unknown EC2 parameters, provider fields and resources."""
    try:
        prepared = prepare_config(copy.deepcopy(config))
        validate_config(prepared)
    except (jsonschema.ValidationError, ValueError, KeyError, AssertionError) as error:
        return [repr(error)]
    found = []
    for name, kind in prepared["available_node_types"].items():
        report = ParamValidator().validate(
            {**kind["node_config"], "MinCount": 1, "MaxCount": 1}, machine_parameters()
        )
        found += [f"{name}: {report.generate_report()}"] if report.has_errors() else []
        found += [
            f"{name}: {resource} is not a resource"
            for resource in set(kind["resources"]) - _RESOURCES
        ]
    known = json.loads(_SCHEMA.read_text())["properties"]["provider"]["properties"]
    return found + [
        f"provider: {field} is unknown" for field in set(prepared["provider"]) - set(known)
    ]


def test_the_configuration_is_accepted() -> None:
    assert problems(CONFIG) == []


def test_any_misspelt_field_is_refused() -> None:
    fields = [path for path in list_fields(CONFIG) if path not in _NAMED_BY_US]
    assert len(fields) > 70
    assert [path for path in fields if not problems(misspell(CONFIG, path))] == []


def test_gpu_nodes_start_on_demand_and_the_head_keeps_its_cores_for_the_drivers() -> None:
    head = TYPES[CONFIG["head_node_type"]]
    assert head["resources"] == {"CPU": 1, "GPU": 0}
    assert head["max_workers"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]  # losing the head ends every job
    for name in ("gpu", "cpu"):
        assert (
            TYPES[name]["min_workers"],
            TYPES[name]["node_config"]["InstanceMarketOptions"],
        ) == (0, {"MarketType": "spot"})
        assert TYPES[name]["max_workers"] > 0
    assert TYPES["gpu"]["resources"]["GPU"] == 1
    assert CONFIG["max_workers"] == sum(TYPES[name]["max_workers"] for name in ("gpu", "cpu"))


def test_no_node_has_a_key_and_every_node_requires_the_token() -> None:
    assert "RAY_AUTH_MODE=token" in " ".join(CONFIG["docker"]["run_options"])
    assert CONFIG["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    profiles = {
        name: kind["node_config"]["IamInstanceProfile"]["Name"] for name, kind in TYPES.items()
    }
    assert profiles == {"head": "resunet-head", "gpu": "resunet-worker", "cpu": "resunet-worker"}
    text = (ROOT / "cluster" / "aws.yaml").read_text()
    assert not re.search(r"AKIA|ACCESS_KEY|SECRET", text)


def test_nothing_but_the_image_is_installed_on_a_node() -> None:
    """Ray's defaults would install its nightly build."""
    prepared = prepare_config(copy.deepcopy(CONFIG))
    assert [prepared[f"{name}setup_commands"] for name in ("", "head_", "worker_")] == [[], [], []]


def test_the_image_is_pulled_from_the_registry_that_nodes_log_in_to() -> None:
    registry, _, image = CONFIG["docker"]["image"].partition("/")
    (login,) = CONFIG["initialization_commands"]
    assert login.endswith(f" {registry}")
    assert f"--region {CONFIG['provider']['region']} " in login
    assert image == "resunet_ray:0.2.0-cuda"


def test_workers_have_disk_space_for_spilled_objects() -> None:
    for name in ("gpu", "cpu"):
        (disk,) = TYPES[name]["node_config"]["BlockDeviceMappings"]
        assert disk["Ebs"]["VolumeSize"] >= 200  # GB
        assert disk["Ebs"]["DeleteOnTermination"] is True


def allowed(name: str, service: str) -> set[str]:
    """Return the actions of one service that a policy allows, each by name."""
    policy = json.loads((ROOT / "cluster" / "policies" / f"{name}.json").read_text())
    actions = [
        action
        for part in policy["Statement"]
        for action in ([part["Action"]] if isinstance(part["Action"], str) else part["Action"])
    ]
    assert not any("*" in action for action in actions)
    assert {part["Effect"] for part in policy["Statement"]} == {"Allow"}
    return {action.partition(":")[2] for action in actions if action.startswith(f"{service}:")}


def test_the_head_may_call_what_ray_s_node_provider_calls_and_no_more() -> None:
    source = inspect.getsource(node_provider)
    calls = set(re.findall(r"\.client\.([a-z]+_[a-z_]+)\b", source)) | set(
        re.findall(r"fail_fast\.([a-z]+_[a-z_]+)\(", source)
    )
    assert ".instances.filter(" in source
    names = {"create_instances": "RunInstances"}
    needed = {
        names.get(call, "".join(word.title() for word in call.split("_"))) for call in calls
    } | {"DescribeInstances"}
    assert CONFIG["provider"]["cache_stopped_nodes"] is False
    assert allowed("head", "ec2") == needed - {"StartInstances", "StopInstances"}
    assert CONFIG["cluster_name"] in (ROOT / "cluster" / "policies" / "head.json").read_text()


def action(method: str, target: str) -> str:
    """Return the permission that a request to S3 needs."""
    path, _, query = target.partition("?")
    if path.count("/") == 1 or path.endswith("/lab/"):
        return "DeleteObject" if "delete" in query else "ListBucket"
    if method == "DELETE":
        return "AbortMultipartUpload" if "uploadId" in query else "DeleteObject"
    return "GetObject" if method in ("GET", "HEAD") else "PutObject"


def test_nodes_may_do_in_the_bucket_what_the_code_does_and_no_more(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[tuple[bytes, bytes]] = []

    def note(request: bytes) -> None:
        requests.extend(
            re.findall(rb"(?:^|\r\n)(GET|HEAD|PUT|POST|DELETE) (\S+) HTTP/1.1\r\n", request)
        )

    with relayed(os.environ["AWS_ENDPOINT_URL"], note) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        place = f"{s3}/policies"
        storage.check_writable(place)
        storage.write_bytes(f"{place}/large", bytes(12 * 2**20))
        storage.write_table(f"{place}/deep/table.parquet", pa.table({"a": [1]}))
        assert storage.read_table(f"{place}/deep/table.parquet").num_rows == 1
        assert storage.Reader(f"{place}/large").read_at(3, 7) == bytes(3)
        assert {file.path for file in storage.walk_files(place)} == {"large", "deep/table.parquet"}
        assert storage.list_folders(place) == ["deep"]
        with storage.hold_lease(place, seconds=30) as lease:
            lease.check()
        storage.delete_folder(place)
        assert not storage.exists(place)
    used = {action(method.decode(), target.decode()) for method, target in requests}
    assert allowed("bucket", "s3") == used | {"AbortMultipartUpload"}  # for failed writes
