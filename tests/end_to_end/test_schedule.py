"""Nightly runs by systemd and cron segment each new image once, even if two runs overlap."""

import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from nodes import BIN, Nodes
from ray.job_submission import JobStatus
from support import ROOT, read_output

from resunet_ray import storage
from resunet_ray.data.images import encode_png

SCHEDULE = ROOT / "cluster" / "schedule"
BARE = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
"""The environment that cron and systemd give, except for the user's name."""


def read_unit(name: str) -> ConfigParser:
    unit = ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string((SCHEDULE / name).read_text())
    return unit


def cron_line() -> tuple[str, str]:
    """Return the time and the command of the cron file."""
    lines = (SCHEDULE / "resunet-segment.cron").read_text().splitlines()
    (line,) = [line for line in lines if re.match(r"[0-9*]", line)]
    *when, user, command = line.split(maxsplit=6)
    assert user == "resunet"
    assert "%" not in command, "cron takes % for the end of the line"
    return " ".join(when), command


def on_this_machine(text: str, nodes: Nodes) -> str:
    """Replace the folders that the documentation names by those of the test."""
    return text.replace("/opt/resunet_ray", str(nodes.clone)).replace(
        "/etc/resunet_ray", str(nodes.folder)
    )


def write_settings(nodes: Nodes, s3: str, bundle: str) -> None:
    """Fill in the documented settings, and add this machine's storage keys."""
    text = on_this_machine((SCHEDULE / "nightly.env").read_text(), nodes)
    text = text.replace("s3://BUCKET/first/train/bundle", bundle)
    text = text.replace("s3://BUCKET", f"{s3}/nightly")
    text = text.replace("http://127.0.0.1:8265", nodes.environment["RAY_API_SERVER_ADDRESS"])
    keys = [f'{name}="{value}"' for name, value in os.environ.items() if name.startswith("AWS_")]
    (nodes.folder / "nightly.env").write_text("\n".join([text, *keys]))
    (nodes.clone / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (nodes.clone / ".venv" / name).symlink_to(BIN.parent / name)


def run_systemd(nodes: Nodes) -> subprocess.CompletedProcess[str]:
    """Run the service's command with the settings of its environment file."""
    service = read_unit("resunet-segment.service")["Service"]
    assert service["EnvironmentFile"] == "/etc/resunet_ray/nightly.env"
    lines = (nodes.folder / "nightly.env").read_text().splitlines()
    assignments = [line for line in lines if re.match("[A-Z]", line)]
    settings = dict(shlex.split(line)[0].split("=", 1) for line in assignments)
    return run(*shlex.split(on_this_machine(service["ExecStart"], nodes)), env=BARE | settings)


def run_cron(nodes: Nodes) -> subprocess.CompletedProcess[str]:
    """Run cron's command, but show its output even if it succeeds."""
    command = on_this_machine(cron_line()[1], nodes).replace("|| cat", "; cat")
    return run("/bin/sh", "-c", command, env=BARE)


def run(*command: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=env, cwd="/", capture_output=True, text=True, timeout=900, check=False
    )


def write_scans(uri: str, *names: int) -> None:
    for name in names:
        image = np.random.default_rng(name).integers(0, 256, (60, 70, 3), dtype=np.uint8)
        storage.write_bytes(f"{uri}/{name}.png", encode_png(image))


def driver(nodes: Nodes) -> psutil.Process:
    """Return the process of the running segmentation, of which there must be one."""
    (found,) = [
        process
        for process in psutil.process_iter()
        if process.status() != psutil.STATUS_ZOMBIE  # of another program
        and process.name() == "python"
        and process.cmdline()[1:2] == ["jobs/segment.py"]
        and str(nodes.folder) in process.cwd()
    ]
    return found


def planned(output: str) -> bool:
    """Whether a run has written its plan."""
    return storage.exists(f"{output}/runs") and any(
        file.path.endswith("run.json") for file in storage.walk_files(f"{output}/runs")
    )


@pytest.mark.campaign
def test_overlapping_nightly_runs_segment_each_image_once(
    nodes: Nodes, s3: str, bundle_uri: str
) -> None:
    """New images arrive during the first of three runs.

    The second run starts while the first one holds the lease, and leaves everything to the first
    and the third.
    """
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


@pytest.mark.campaign
def test_only_a_job_that_succeeded_is_a_success(nodes: Nodes) -> None:
    """Ray's own exit code is 0 for a job that was stopped, and ends with the log."""
    nodes.restore()
    names = ("stopped", "broken", "ended")
    may_end = nodes.folder / "may end"
    wait = "import pathlib, time\nwhile not pathlib.Path({!r}).exists(): time.sleep(1)"
    stopped, broken, ended = (
        start(nodes, name, wait.format(str(may_end if name == "broken" else may_end / "never")))
        for name in names
    )
    nodes.wait_until(
        lambda: list_statuses(nodes) == dict.fromkeys(names, "RUNNING"), what="the jobs"
    )
    nodes.wait_until(lambda: "logs" in list_children(broken), what="the log")
    nodes.run("ray", "job", "stop", "stopped")
    psutil.Process(broken.pid).children()[0].kill()
    ended.terminate()
    assert read_end(stopped) == (1, "submit: the job stopped ended as STOPPED")
    assert list_statuses(nodes)["broken"] == "RUNNING"
    assert read_end(ended) == (1, "submit: the job ended ended as STOPPED")
    may_end.touch()
    assert read_end(broken) == (0, "submit: the job broken is RUNNING: waiting for its end")
    failed, done = start(nodes, "failed", "raise SystemExit(3)"), start(nodes, "done", "print(1)")
    assert read_end(failed) == (1, "submit: the job failed ended as FAILED")
    assert read_end(done)[0] == 0
    assert read_end(start(nodes, "done", "print(1)"))[0] != 0, "the name is taken"


def start(nodes: Nodes, job: str, code: str) -> subprocess.Popen[str]:
    """Start `cluster/submit.py` with a job that runs some code."""
    command = [sys.executable, "cluster/submit.py", "--submission-id", job, "--", "python", "-c"]
    return subprocess.Popen(
        [*command, code],
        cwd=nodes.clone,
        env=nodes.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_end(submitting: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit code, and the last line that is not Ray's."""
    _, said = submitting.communicate(timeout=600)
    own = [line for line in said.splitlines() if line.startswith("submit: ")]
    return submitting.returncode, own[-1] if own else ""


def list_statuses(nodes: Nodes) -> dict[str, str]:
    """Return the status of each job that `start` has submitted."""
    jobs = {str(job["submission_id"]): str(job["status"]) for job in nodes.ask("jobs")}
    return {name: jobs[name] for name in ("stopped", "broken", "ended") if name in jobs}


def list_children(process: subprocess.Popen[str]) -> list[str]:
    """Return all words of the command lines of a process's children."""
    with suppress(psutil.NoSuchProcess):
        return [word for one in psutil.Process(process.pid).children() for word in one.cmdline()]
    return []


def test_the_end_of_a_job_is_waited_for_even_if_the_cluster_is_away_for_a_while() -> None:
    wait_for_end = runpy.run_path(str(ROOT / "cluster" / "submit.py"))["wait_for_end"]

    def end(*answers: JobStatus | Exception) -> JobStatus | None:
        left = list(answers)

        def ask() -> JobStatus:
            answer = left.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        ended: JobStatus | None = wait_for_end(ask, job="job", ask_seconds=0, away_seconds=0.05)
        assert not left
        return ended

    away = ConnectionError("nobody answers")
    running, stopped = JobStatus.RUNNING, JobStatus.STOPPED
    assert end(JobStatus.PENDING, running, away, running, stopped) == stopped
    assert end(away, JobStatus.SUCCEEDED) == JobStatus.SUCCEEDED
    assert end(running, RuntimeError("Job job does not exist")) is None

    def be_away() -> JobStatus:
        raise away

    gone = wait_for_end(be_away, job="job", ask_seconds=0.01, away_seconds=0.05)
    assert gone is None


def test_a_missing_setting_is_named() -> None:
    done = run(str(SCHEDULE / "nightly"), env=BARE)
    assert (done.returncode, done.stdout) == (2, "")
    assert "BUNDLE is not set: see cluster/schedule/nightly.env" in done.stderr


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """The timer also has the time of the cron file."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze: the units were not checked")
    for name in ("resunet-segment.service", "resunet-segment.timer"):
        text = (SCHEDULE / name).read_text().replace("/opt/resunet_ray", str(ROOT))
        (tmp_path / name).write_text(text.replace("User=resunet", "User=root"))
        done = run("systemd-analyze", "verify", str(tmp_path / name), env=dict(os.environ))
        complaints = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
        assert (done.returncode, complaints) == (0, []), done.stderr
    when = read_unit("resunet-segment.timer")["Timer"]["OnCalendar"]
    done = run("systemd-analyze", "calendar", when, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    minute, hour, *rest = cron_line()[0].split()
    assert f"{hour.zfill(2)}:{minute}:00" in when, "cron and systemd start at different times"
    assert rest == ["*", "*", "*"]
