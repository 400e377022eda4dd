"""Every command in the manifests and pages is valid, and asks for no more than its cluster has."""

import json
import re
import shlex
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import yaml
from manifests import FOLDER, Object, find, list_clusters, list_pods, render_all, walk
from ray.scripts.scripts import cli
from support import ROOT

from resunet_ray.command_line import read_config
from resunet_ray.config import (
    DoctorConfig,
    EvaluateConfig,
    PrepareConfig,
    SegmentConfig,
    SweepConfig,
    TrainConfig,
)
from resunet_ray.errors import ConfigError

PAGES = [ROOT / "README.md", ROOT / "docs" / "guide.md", ROOT / "cluster" / "README.md"]
STORAGE = "s3://my-bucket/nuclei"

READERS: dict[str, Callable[..., Any]] = {
    "prepare": partial(read_config, PrepareConfig, saved="dataset.json"),
    "train": partial(
        read_config,
        TrainConfig,
        recipes={"default": TrainConfig},
        required=("data", "output"),
        saved="train.json",
    ),
    "tune": partial(
        read_config,
        SweepConfig,
        recipes={"default": lambda **required: SweepConfig(training=TrainConfig(**required))},
        required=("data", "output"),
        saved="sweep.json",
    ),
    "evaluate": partial(read_config, EvaluateConfig, saved="summary.json"),
    "segment": partial(read_config, SegmentConfig, saved="run.json"),
    "doctor": partial(read_config, DoctorConfig),
}
"""How the jobs read their flags."""


def read_job(command: str) -> Any:
    """Return the configuration that a command gives its job.

    Raises:
        SystemExit: a flag is unknown, or its value is wrong.
    """
    python, script, *arguments = shlex.split(command)
    assert (python, script.partition("/")[0]) == ("python", "jobs"), command
    assert (ROOT / script).exists(), command
    name = script.removeprefix("jobs/").removesuffix(".py")
    return READERS[name](description="", arguments=arguments)


def list_entry_points() -> dict[str, str]:
    """Return the command of each folder's job, with STORAGE_URI replaced as on the cluster.

    The submitter's shell replaces it, or Kubernetes.
    """
    found = {}
    settings = find("ConfigMap", among="access")["data"]
    for name, objects in render_all().items():
        for _, value in (place for item in objects for place in walk(item)):
            if isinstance(value, dict) and "entrypoint" in value:
                found[name] = re.sub(
                    r"\$(\w+)", lambda match: settings[match[1]], value["entrypoint"]
                )
            if isinstance(value, dict) and "args" in value:
                found[name] = re.sub(
                    r"\$\((\w+)\)", lambda match: settings[match[1]], shlex.join(value["args"])
                )
    return found


def list_page_lines() -> Iterator[str]:
    """Yield the lines of the pages' command blocks.

    Continued lines are joined. Comments, redirections to /dev/null and a final & are removed.
    """
    for page in PAGES:
        for block in re.findall(
            r"^```bash\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE
        ):
            for line in block.replace("\\\n", " ").splitlines():
                yield re.sub(r"( +&| +> /dev/null)? *(# .*)?$", "", line)


def split_submission(words: list[str]) -> tuple[list[str], str]:
    """`ray job submit FLAGS -- COMMAND` → the flags, and the command with STORAGE_URI replaced."""
    mark = words.index("--")
    flags, command = words[:mark], words[mark + 1 :]
    if command[:2] == ["sh", "-c"]:
        return flags, command[2].replace("$STORAGE_URI", STORAGE)
    assert "$" not in shlex.join(command), "ray quotes the command, so no shell would replace it"
    return flags, shlex.join(command)


def parse_ray(words: list[str]) -> None:
    """Parse a command line as `ray` does, without running it."""
    command, context = cli, cli.make_context("ray", list(words[1:]), resilient_parsing=False)
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        context = command.make_context(name, rest, parent=context)


def test_the_jobs_of_all_manifests_accept_their_flags() -> None:
    found = list_entry_points()
    assert set(found) == {"train", "sweep", "nightly", "nightly-raycronjob"}
    for name, command in found.items():
        assert "$" not in command
        config = read_job(command)
        assert STORAGE in repr(config), name


@pytest.mark.parametrize("name", ["train", "sweep", "nightly", "nightly-raycronjob"])
def test_a_misspelt_flag_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(list_entry_points()[name])
    flags = [number for number, word in enumerate(words) if word.startswith("--")]
    assert len(flags) >= 5
    for number in flags:
        flag, *value = words[number].split("=", 1)
        wrong = [*words[:number], "=".join([f"{flag}x", *value]), *words[number + 1 :]]
        with pytest.raises((SystemExit, ConfigError)):
            read_job(shlex.join(wrong))


def test_the_commands_on_the_pages_are_accepted() -> None:
    submitted = []
    for line in list_page_lines():
        words = shlex.split(line)
        if words[:3] == ["ray", "job", "submit"]:
            flags, command = split_submission(words)
            parse_ray([*flags, "--", *shlex.split(command)])
            submitted.append(type(read_job(command)).__name__)
        elif words[:1] == ["ray"]:
            parse_ray(words)
        elif any(word.startswith("jobs/") for word in words) and not words[0].startswith(".venv"):
            pytest.fail(f"{line}: no test checks this command")
    assert {"PrepareConfig", "TrainConfig", "SegmentConfig"} <= set(submitted)


def test_ray_accepts_the_commands_that_start_the_nodes() -> None:
    aws = yaml.safe_load((ROOT / "cluster" / "aws.yaml").read_text())
    commands = [
        line.removeprefix("ulimit -n 65536; ")
        for role in ("head", "worker")
        for line in aws[f"{role}_start_ray_commands"]
    ]
    assert len(commands) == 4
    for command in commands:
        parse_ray(shlex.split(command))
    with pytest.raises(Exception, match="No such option"):
        parse_ray(shlex.split("ray start --head --dashbord-host=0.0.0.0"))
    (container,) = list_pods(find("CronJob", among="nightly"))[0]["containers"]
    python, script, *flags = container["command"]
    assert (python, script) == ("python", "cluster/submit.py")
    assert (ROOT / script).exists()
    parse_ray(["ray", "job", "submit", *flags, *container["args"]])


def test_the_page_uses_exactly_the_policies_that_exist() -> None:
    used = re.findall(
        r"file://(cluster/policies/\S+)", (ROOT / "cluster" / "README.md").read_text()
    )
    assert {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "cluster" / "policies").iterdir()
    } == set(used)
    for path in used:
        assert json.loads((ROOT / path).read_text())["Version"] == "2012-10-17"


def test_the_page_names_exactly_the_folders_that_exist() -> None:
    text = (ROOT / "cluster" / "README.md").read_text()
    folders = {folder.name for folder in FOLDER.iterdir()}
    (table,) = re.findall(r"^\| folder .*\n\|.*\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    assert set(re.findall(r"`([\w-]+)/`", table)) == folders
    assert set(re.findall(r"-k cluster/kubernetes/([\w-]+)", text)) <= folders
    for path in re.findall(r"\]\(([^#)]+)\)", text):
        assert path.startswith("https://") or (ROOT / "cluster" / path).exists(), path


def test_unattended_runs_send_the_code_of_the_image() -> None:
    (folder,) = re.findall(
        r"^WORKDIR (/home\S+)$", (ROOT / "cluster" / "Dockerfile").read_text(), flags=re.MULTILINE
    )
    for kind, name in (
        ("RayJob", "train"),
        ("RayJob", "sweep"),
        ("RayCronJob", "nightly-raycronjob"),
    ):
        (environment,) = [
            value
            for path, value in walk(find(kind, among=name))
            if path[-1:] == ("runtimeEnvYAML",)
        ]
        assert yaml.safe_load(environment) == {"working_dir": folder}
    command = list_pods(find("CronJob", among="nightly"))[0]["containers"][0]["command"]
    assert command[command.index("--working-dir") + 1] == folder


def count(cluster: Object) -> tuple[int, int]:
    """Return the CPUs and GPUs of a cluster at its largest, as Ray counts them."""
    cpus, gpus = int(cluster["headGroupSpec"]["rayStartParams"]["num-cpus"]), 0
    for group in cluster["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        cpus += group["maxReplicas"] * int(limits["cpu"])
        gpus += group["maxReplicas"] * int(limits.get("nvidia.com/gpu", 0))
    return cpus, gpus


@pytest.mark.parametrize("name", ["train", "sweep", "nightly", "nightly-raycronjob"])
def test_what_a_job_asks_for_fits_on_its_cluster(name: str) -> None:
    """A job that does not fit would fail every night."""
    config = read_job(list_entry_points()[name])
    clusters = [cluster for item in render_all()[name] for cluster in list_clusters(item)]
    cpus, gpus = count(clusters[0] if clusters else find("RayCluster", among="gpu")["spec"])
    if isinstance(config, SegmentConfig):
        workers, each, gpu = config.actors, config.cpus_per_actor, config.gpu
    else:
        training = config.training if isinstance(config, SweepConfig) else config
        at_once = config.concurrent if isinstance(config, SweepConfig) else 1
        workers, each, gpu = at_once * training.workers, training.cpus_per_worker, training.gpu
    assert gpu == "on"
    assert workers is not None
    assert workers * each + 1 <= cpus
    assert workers == gpus  # no worker waits, no GPU is idle
