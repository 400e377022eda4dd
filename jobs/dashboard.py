"""Serve TensorBoard and optuna-dashboard for a sweep, while it runs and after. Ctrl-C stops them.

Both come with the extra `dashboard`.
"""

import logging
import signal
import threading
from typing import Any

from resunet_ray.command_line import read_config, run_job
from resunet_ray.config import DashboardConfig
from resunet_ray.sweep.dashboard import serve

logger = logging.getLogger(__name__)


def _work() -> dict[str, Any]:
    config = read_config(DashboardConfig, description=__doc__ or "")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with serve(config) as addresses:
        for name, address in addresses.items():
            logger.info("%s: %s", name, address)
        stop.wait()
    return {"addresses": addresses}


if __name__ == "__main__":
    run_job("dashboard", _work)
