#!/usr/bin/env python
"""`ray job submit` for schedules: its exit code is 0 only if the job has succeeded.

    python cluster/submit.py [flags of `ray job submit`] -- python jobs/segment.py …

Ray's own exit code is also 0 if the job was stopped, and if the log broke off while the job ran on.
This waits for the end of the job in any case. SIGTERM and Ctrl-C stop the job.
"""

import argparse
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable

from ray.job_submission import JobStatus, JobSubmissionClient

_ASK_SECONDS = 5.0
_AWAY_SECONDS = 600.0  # a cluster that is away for so long is taken for lost


def main(words: list[str]) -> int:
    """Submit a job, wait for its end and return the exit code."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--address")
    parser.add_argument("--submission-id")
    flags = words[: words.index("--")] if "--" in words else words
    known, _ = parser.parse_known_args(flags)
    job = known.submission_id or f"job-{uuid.uuid4().hex[:16]}"
    own = [] if known.submission_id else ["--submission-id", job]
    address = ["--address", known.address] if known.address else []

    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        run_ray("stop", *address, job)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    code = run_ray("submit", "--no-wait", *own, *words)
    if code:
        return code
    if stopped:  # before there was a job to stop
        stop()
    run_ray("logs", "--follow", *address, job)
    status = wait_for_end(lambda: JobSubmissionClient(known.address).get_job_status(job), job=job)
    if status == JobStatus.SUCCEEDED:
        return 0
    print(f"submit: the job {job} ended as {status or 'unknown'}", file=sys.stderr)
    return 1


def run_ray(*words: str) -> int:
    """Run `ray job …` and return its exit code."""
    return subprocess.run(["ray", "job", *words], check=False).returncode  # noqa: S603, S607 (ours)


def wait_for_end(
    ask: Callable[[], JobStatus],
    *,
    job: str,
    ask_seconds: float = _ASK_SECONDS,
    away_seconds: float = _AWAY_SECONDS,
) -> JobStatus | None:
    """Return how a job ended; None if the cluster does not know it, or does not answer.

    Args:
        ask: returns the present status of the job.
        job: its submission id.
        ask_seconds: pause between two questions.
        away_seconds: how long to wait for an answer.
    """
    answered, told = time.monotonic(), False
    while True:
        try:
            status = ask()
        except Exception as error:  # noqa: BLE001 (the client has no exceptions of its own)
            if "does not exist" in str(error) or time.monotonic() - answered > away_seconds:
                print(f"submit: {error}", file=sys.stderr)
                return None
        else:
            answered = time.monotonic()
            if status.is_terminal():
                return status
            if not told:
                print(f"submit: the job {job} is {status}: waiting for its end", file=sys.stderr)
                told = True
        time.sleep(ask_seconds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
