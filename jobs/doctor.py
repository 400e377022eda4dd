"""Check within a minute whether jobs will run: the cluster, each node, storage and bundle.

For each check that fails, it says what to do.
"""

from typing import Any

from resunet_ray.command_line import read_config, run_job
from resunet_ray.config import DoctorConfig
from resunet_ray.doctor.checkup import examine
from resunet_ray.doctor.page import print_page


def _work() -> dict[str, Any]:
    findings = examine(read_config(DoctorConfig, description=__doc__ or ""))
    print_page(findings)
    return {
        "exit_code": int(any(finding.status == "failed" for finding in findings)),
        "checks": [finding._asdict() for finding in findings],
    }


if __name__ == "__main__":
    run_job("doctor", _work)
