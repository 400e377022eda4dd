"""What systemd and cron start every night: each new image is segmented once, also where one night's run meets the next one's."""

import os
import re
import shlex
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import psutil
import pytest
from nodes import BIN, Nodes
from support import ROOT, read_output

from resunet_ray import storage
from resunet_ray.data.images import encode_png

SCHEDULE = ROOT / "cluster" / "schedule"
BARE = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
"""All that cron and systemd give, but for the user's name."""


def read_unit(name: str) -> ConfigParser:
    unit = ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string((SCHEDULE / name).read_text())
    return unit


def cron_line() -> tuple[str, str]:
    """When, and what."""
    (line,) = [
        line
        for line in (SCHEDULE / "resunet-segment.cron").read_text().splitlines()
        if re.match(r"[0-9*]", line)
    ]
    *when, user, command = line.split(maxsplit=6)
    assert user == "resunet"
    assert "%" not in command, "to cron it is the end of the line"
    return " ".join(when), command


def on_this_machine(text: str, nodes: Nodes) -> str:
    """The same with the places that the documentation names moved to where the test has them."""
    return text.replace("/opt/resunet_ray", str(nodes.clone)).replace(
        "/etc/resunet_ray", str(nodes.folder)
    )


def write_settings(nodes: Nodes, s3: str, bundle: str) -> None:
    """The settings as they are documented, filled in; storage keys are the machine's own."""
    text = on_this_machine((SCHEDULE / "nightly.env").read_text(), nodes).replace(
        "s3://BUCKET/first/train/bundle", bundle
    )
    text = text.replace("s3://BUCKET", f"{s3}/nightly").replace(
        "http://127.0.0.1:8265", nodes.environment["RAY_API_SERVER_ADDRESS"]
    )
    keys = [f'{name}="{value}"' for name, value in os.environ.items() if name.startswith("AWS_")]
    (nodes.folder / "nightly.env").write_text("\n".join([text, *keys]))
    (nodes.clone / ".venv").mkdir()
    (nodes.clone / ".venv" / "bin").symlink_to(BIN)


def run_systemd(nodes: Nodes) -> subprocess.CompletedProcess[str]:
    """What the service starts, in the environment that its file of settings gives."""
    service = read_unit("resunet-segment.service")["Service"]
    assert service["EnvironmentFile"] == "/etc/resunet_ray/nightly.env"
    lines = [
        line
        for line in (nodes.folder / "nightly.env").read_text().splitlines()
        if re.match("[A-Z]", line)
    ]
    settings = dict(shlex.split(line)[0].split("=", 1) for line in lines)
    command = shlex.split(on_this_machine(service["ExecStart"], nodes))
    return subprocess.run(
        command,
        env=BARE | settings,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def run_cron(nodes: Nodes) -> subprocess.CompletedProcess[str]:
    """What cron's line starts, but that a success may say something too."""
    command = on_this_machine(cron_line()[1], nodes).replace("|| cat", "; cat")
    return subprocess.run(
        ["/bin/sh", "-c", command],
        env=BARE,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def write_scans(uri: str, *names: int) -> None:
    for name in names:
        image = np.random.default_rng(name).integers(0, 256, (60, 70, 3), dtype=np.uint8)
        storage.write_bytes(f"{uri}/{name}.png", encode_png(image))


def driver(nodes: Nodes) -> psutil.Process:
    """The one running segmentation."""
    (found,) = [
        process
        for process in psutil.process_iter()
        if process.name() == "python"
        and process.cmdline()[1:2] == ["jobs/segment.py"]
        and str(nodes.folder) in process.cwd()
    ]
    return found


def planned(output: str) -> bool:
    """Whether a run has begun to segment."""
    return storage.exists(f"{output}/runs") and any(
        file.path.endswith("run.json") for file in storage.walk_files(f"{output}/runs")
    )


@pytest.mark.campaign
def test_three_nights_one_of_which_meets_the_former(nodes: Nodes, s3: str, bundle_uri: str) -> None:
    """New images come in between; the second run starts while the first one still runs, and leaves all to it and to the third."""
    nodes.restore()
    write_settings(nodes, s3, bundle_uri)
    scans, output = f"{s3}/nightly/scans", f"{s3}/nightly/segmented"
    write_scans(scans, *range(12))
    with ThreadPoolExecutor() as background:
        first = background.submit(run_systemd, nodes)
        nodes.wait_until(lambda: first.done() or planned(output), what="a plan")
        assert not first.done(), first.result().stdout + first.result().stderr
        running = driver(nodes)
        running.send_signal(signal.SIGSTOP)
        write_scans(scans, *range(12, 18))
        second = run_cron(nodes)
        running.send_signal(signal.SIGCONT)
    assert first.result().returncode == 0, first.result().stdout
    assert '"status": "leased"' in second.stdout, second.stdout
    third = run_systemd(nodes)
    assert third.returncode == 0, third.stdout
    rows = read_output(output, "images")
    assert sorted(Path(uri).stem for uri in rows["image_uri"]) == sorted(map(str, range(18)))
    assert set(rows["status"]) == {"ok"}
    assert rows.groupby("run_id").size().tolist() == [12, 6]


def test_a_setting_that_is_missing_is_named() -> None:
    done = subprocess.run(
        [SCHEDULE / "nightly"], env=BARE, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "BUNDLE is not set: see cluster/schedule/nightly.env" in done.stderr


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze: the units were not checked")
    for name in ("resunet-segment.service", "resunet-segment.timer"):
        text = (
            (SCHEDULE / name)
            .read_text()
            .replace("/opt/resunet_ray", str(ROOT))
            .replace("User=resunet", "User=root")
        )
        (tmp_path / name).write_text(text)
        done = subprocess.run(
            ["systemd-analyze", "verify", tmp_path / name],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (
            done.returncode,
            [line for line in done.stderr.splitlines() if str(tmp_path) in line],
        ) == (0, []), done.stderr
    when = read_unit("resunet-segment.timer")["Timer"]["OnCalendar"]
    done = subprocess.run(
        ["systemd-analyze", "calendar", when], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    minute, hour, *rest = cron_line()[0].split()
    assert (f"{hour.zfill(2)}:{minute}:00" in when, rest) == (True, ["*", "*", "*"]), (
        "cron and systemd say the same time"
    )
