"""What each block and bridge of the network costs: parameters, work, and speed on this machine."""

import itertools
import logging
import os
import time
from collections import defaultdict
from typing import Any, get_args

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.bare import SIDE
from benchmarks.config import BenchmarkConfig
from resunet_ray import storage
from resunet_ray.config import ModelConfig
from resunet_ray.config.model import Block, Bridge
from resunet_ray.model.resunet import build_network

logger = logging.getLogger(__name__)

_BATCH = 4
_ROUNDS = 5


def benchmark_network(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure every network and write network.csv.

    They take turns, and the fastest of several rounds counts, as other work may slow down the
    machine for a while.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x = torch.rand((_BATCH, 3, SIDE, SIDE), device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    models = [
        ModelConfig(block=block, bridge=bridge)
        for block, bridge in itertools.product(get_args(Block), get_args(Bridge))
    ]
    networks = {model: build_network(model).eval().to(device) for model in models}
    seconds = defaultdict(list)
    for _, (model, network) in itertools.product(range(_ROUNDS), networks.items()):
        seconds[model].append(_time(network, x))
    rows = [
        {
            "block": model.block,
            "bridge": model.bridge,
            "parameters": sum(p.numel() for p in network.parameters()),
            "gmac_per_megapixel": round(count_macs(network, x[:1]) / SIDE**2 / 1e3, 2),
            "images_per_second": round(_BATCH / min(seconds[model]), 2),
            "ratio": round(min(seconds[ModelConfig()]) / min(seconds[model]), 3),
        }
        for model, network in networks.items()
    ]
    table = pd.DataFrame(rows)
    storage.write_bytes(
        storage.join(config.output, "network.csv"), table.to_csv(index=False).encode()
    )
    logger.info("%s", table.to_string(index=False))
    return {"unit": "images/s over those of the default network", "networks": rows}


def count_macs(network: torch.nn.Module, x: torch.Tensor) -> int:
    """Count the multiply-accumulates of the convolutions."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x)
    return int(counter.get_total_flops()) // 2


def _time(network: torch.nn.Module, x: torch.Tensor) -> float:
    """Return the seconds of one forward pass, after another to warm up."""
    with torch.inference_mode():
        float(network(x).sum())
        start = time.perf_counter()
        float(network(x).sum())
    return time.perf_counter() - start
