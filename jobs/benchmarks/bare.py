"""What the benchmarks compare jobs with: the same work in one process without Ray.

Run as a program, it prints one number.
"""

import copy
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from resunet_ray import storage
from resunet_ray.bundle import load_bundle
from resunet_ray.config import TrainConfig, load_config
from resunet_ray.data.dataset import Dataset
from resunet_ray.data.images import decode_image, encode_png
from resunet_ray.data.targets import NUM_BYTES
from resunet_ray.model.inference import Network, autocast_dtype
from resunet_ray.model.instances import threshold_mask
from resunet_ray.model.metrics import count_pixels, score_counts
from resunet_ray.train.session import build_session
from resunet_ray.train.step import train_step

SIDE = 256  # pixels of every image

_STEPS = 30
_WARMUP_STEPS = 3
_SECONDS = 4.0  # of each batch size, precision and way to use the cores
_SINGLE_IMAGES = 100


def run_alone(*arguments: str, environment: Mapping[str, str]) -> float:
    """Run this file as a program, in a process without Ray, and return the number it prints."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env={**os.environ, **environment},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(done.stdout.splitlines()[-1])


def run_bare_training(training: TrainConfig) -> float:
    """Return images/s of training steps on random tensors in memory."""
    torch.set_num_threads(os.cpu_count() or 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    nowhere = Dataset("", "", None, {}, {})
    session = build_session(training, nowhere, rank=0, workers=1, device=device, resume_from=None)
    generator = torch.Generator().manual_seed(0)
    shape = training.batch_size, training.crop, training.crop
    image = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator)
    mask = torch.randint(0, 2, shape, dtype=torch.uint8, generator=generator)
    targets = (
        torch.randint(0, 256, (len(image), NUM_BYTES, *shape[1:]), dtype=torch.uint8)
        if training.model.heads
        else None
    )
    batch = [part.to(device) for part in (image, mask, targets) if part is not None]
    session.network.train()
    for step in range(_STEPS + _WARMUP_STEPS):
        loss = train_step(session, *batch)
        if step == _WARMUP_STEPS - 1:
            float(loss)  # waits for the device
            start = time.perf_counter()
    float(loss)
    return _STEPS * training.batch_size / (time.perf_counter() - start)


def run_bare_network(uri: str) -> float:
    """Return megapixels/s of the network on random tiles in memory.

    The best of several batch sizes, precisions and ways to use the cores.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cores, rates = os.cpu_count() or 1, []
    for streams in {1, cores}:
        torch.set_num_threads(max(1, cores // streams))
        bundle = load_bundle(uri, device=device, streams=streams)
        native = autocast_dtype(device, "auto")
        half = copy.deepcopy(bundle.network).to(native) if native is not None else None
        faster = {bundle.dtype("auto"), native, None} if bundle.on_cpu is not None else set()
        for batch_size in (1, 4, 16):
            x = torch.rand((batch_size, bundle.info.model.in_channels, SIDE, SIDE), device=device)
            x = x.contiguous(memory_format=torch.channels_last)
            networks: list[tuple[Network, torch.Tensor]] = [(bundle.network, x)]
            networks += [(half, x.to(native))] if half is not None else []
            networks += [(bundle.compute(dtype), x) for dtype in faster]
            rates += [_network_rate(network, tiles, streams=streams) for network, tiles in networks]
    return max(rates)


def _network_rate(network: Network, tiles: torch.Tensor, *, streams: int) -> float:
    """Return megapixels/s of several threads that each run the network and share the cores."""

    def run(seconds: float) -> int:
        begun, steps = time.perf_counter(), 0
        with torch.inference_mode():
            while steps < 2 or time.perf_counter() - begun < seconds:
                float(network(tiles).sum())
                steps += 1
        return steps

    cores = max(1, (os.cpu_count() or 1) // streams)
    with ThreadPoolExecutor(streams, initializer=torch.set_num_threads, initargs=(cores,)) as pool:
        list(pool.map(run, [0.0] * streams))  # warm up
        start = time.perf_counter()
        steps = sum(pool.map(run, [_SECONDS] * streams))
        return steps * len(tiles) * SIDE**2 / 1e6 / (time.perf_counter() - start)


def run_one_at_a_time(uri: str, folder: str) -> float:
    """Return megapixels/s of a loop over single images: decode, predict, score, write.

    The notebook of the baseline worked like this.
    """
    bundle = load_bundle(uri)
    images = storage.join(folder, "images")
    files = [storage.join(images, name) for name, _ in storage.list_files(images)]
    pixels, start = 0, time.perf_counter()
    for number, file in enumerate(files[:_SINGLE_IMAGES]):
        image = decode_image(storage.read_bytes(file), name=file)
        (found,) = bundle.predict([image], batch_size=1, precision="fp32")
        mask = threshold_mask(found.probability, threshold=bundle.info.instances.threshold)
        score_counts(count_pixels(mask, mask))
        target = storage.join(folder, "single", f"{number}.png")
        storage.write_bytes(target, encode_png(mask * np.uint8(255)))
        pixels += mask.size
    return pixels / 1e6 / (time.perf_counter() - start)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["training", text]:
            config = load_config(text, kind=TrainConfig, source="the command line")
            print(run_bare_training(config))
        case ["network", bundle]:
            print(run_bare_network(bundle))
        case ["one-at-a-time", bundle, folder]:
            print(run_one_at_a_time(bundle, folder))
