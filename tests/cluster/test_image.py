"""The Dockerfile, as far as it can be checked without building it."""

import re
import subprocess
import tomllib
from pathlib import PurePath

from support import ROOT

TEXT = (ROOT / "cluster" / "Dockerfile").read_text()


def list_instructions() -> list[tuple[str, str]]:
    """Return each instruction with its arguments, continued lines joined."""
    lines = re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def list_copied() -> list[str]:
    """Return what is copied from the repository."""
    copies = [arguments.split() for name, arguments in list_instructions() if name == "COPY"]
    return [
        source for words in copies if not words[0].startswith("--from") for source in words[:-1]
    ]


def test_it_starts_from_a_pinned_python_that_the_package_supports() -> None:
    stages = [arguments for name, arguments in list_instructions() if name == "FROM"]
    bases = [stage.split()[0] for stage in stages]
    names = {stage.split(" AS ")[1] for stage in stages if " AS " in stage}
    assert [base for base in bases if base not in names] == [
        "python:${PYTHON}-slim-bookworm",
        "wheels-${VARIANT}",
    ]
    assert names >= {"wheels-cpu", "wheels-cuda"}
    defaults = dict(
        arguments.split("=") for name, arguments in list_instructions() if name == "ARG"
    )
    assert re.fullmatch(r"3\.\d+\.\d+", defaults["PYTHON"])
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert [int(part) for part in defaults["PYTHON"].split(".")] >= [
        int(part) for part in needed.removeprefix(">=").split(".")
    ]


def test_what_it_copies_is_tracked_and_not_ignored() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    passed = re.findall(
        r"^!(\S+)$", (ROOT / "cluster" / "Dockerfile.dockerignore").read_text(), flags=re.MULTILINE
    )
    assert sorted(list_copied()) == sorted(passed)
    for source in list_copied():
        assert any(
            PurePath(source) in [PurePath(file), *PurePath(file).parents] for file in tracked
        ), source
    assert "\n*\n" in (ROOT / "cluster" / "Dockerfile.dockerignore").read_text()


def test_its_packages_are_pinned() -> None:
    installs = [
        arguments
        for name, arguments in list_instructions()
        if name == "RUN" and "pip install" in arguments
    ]
    assert len(installs) == 1
    assert "--constraint constraints.txt" in installs[0]
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = {name for name in optional if f'"{name}"' in installs[0]}
    assert named == {"cpu", "dashboard", "formats", "mlflow"}
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==\S+", line) for line in pinned)


def test_it_runs_unprivileged_and_requires_the_token() -> None:
    """The user is a number, because Kubernetes cannot tell whether a name is root."""
    instructions = list_instructions()
    assert instructions[-1] == ("USER", "1000:1000")
    environment = " ".join(arguments for name, arguments in instructions if name == "ENV")
    assert {"HOME=/home/ray", "RAY_AUTH_MODE=token", "NVIDIA_VISIBLE_DEVICES=all"} <= set(
        environment.split()
    )
    # `ray up` and KubeRay bring their own commands.
    assert not {"ENTRYPOINT", "CMD"} & {name for name, _ in instructions}


def test_it_contains_the_programs_that_ray_up_and_the_operator_call() -> None:
    """`ray up` calls rsync and ssh within the container, and slim images contain neither."""
    (install,) = [
        arguments for name, arguments in list_instructions() if "apt-get install" in arguments
    ]
    assert {"openssh-client", "rsync", "wget"} <= set(install.split())
