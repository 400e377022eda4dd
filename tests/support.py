"""Paths, files of many formats, and ways to run a job from a test."""

import io
import json
import os
import re
import runpy
import shutil
import socket
import socketserver
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile

from resunet_ray import storage

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = ROOT.parent / "shared" / "data" / "dsb2018"
REAL_SLIDES = ROOT.parent / "shared" / "data" / "slides"

RAYS_OWN = re.compile(
    r"pid=\d+|Reporting training result|core_worker|authentication|\tINFO |\tWARNING |ray\.init"
)
"""Matches Ray's own log lines, which a job hides without --verbose."""

SMALL = ["--model.widths", "16", "32", "--crop", "64", "--batch-size", "4", "--precision", "fp32"]
"""Flags for a training run that takes seconds."""


def read_picture(path: Path) -> np.ndarray:
    """Read an image with OpenCV, unchanged: BGR, or one channel of 8 or 16 bits."""
    array = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert array is not None, f"{path} cannot be read"
    return np.asarray(array)


def read_output(output: str, folder: str, *, columns: list[str] | None = None) -> pd.DataFrame:
    """Return all rows of one of the tables that segmentation writes."""
    parts = [
        storage.read_table(f"{output}/{folder}/{file.path}", columns=columns).to_pandas()
        for file in storage.walk_files(f"{output}/{folder}")
    ]
    return pd.concat(parts, ignore_index=True)


def write_pyramid(
    path: Path, image: np.ndarray, *, levels: int = 3, mpp: float | None = None, tile: int = 128
) -> None:
    """Write a tiled pyramid as scanner software does. Its levels are averages."""
    resolution: dict[str, Any] = (
        {}
        if mpp is None
        else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    )
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels):
            writer.write(
                image,
                tile=(tile, tile),
                photometric="rgb",
                compression="zlib",
                subfiletype=int(level > 0),
                **resolution,
            )
            image = cv2.resize(
                image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA
            )
            resolution = {}


def write_ome(
    path: Path,
    image: np.ndarray,
    *,
    axes: str,
    levels: int = 2,
    bigtiff: bool = False,
    **metadata: Any,
) -> None:
    """Write an OME-TIFF like Bio-Formats: smaller levels in SubIFDs, each every second pixel."""
    with tifffile.TiffWriter(path, ome=True, bigtiff=bigtiff) as writer:
        tiles: dict[str, Any] = {
            "tile": (64, 64),
            "photometric": "rgb" if "S" in axes else "minisblack",
        }
        tiles |= {"planarconfig": "separate"} if axes.startswith("S") else {}
        writer.write(image, subifds=levels - 1, metadata={"axes": axes, **metadata}, **tiles)
        for level in range(1, levels):
            step = slice(None, None, 2**level)
            writer.write(
                image[..., step, step] if axes.endswith("X") else image[step, step],
                subfiletype=1,
                **tiles,
            )


APERIO = (
    "Aperio Image Library v11.2.1 \n"
    "{1}x{0} [0,0 {1}x{0}] (128x128) JPEG/RGB Q=70|AppMag = 20|MPP = 0.4990"
)


def write_svs(path: Path, image: np.ndarray) -> None:
    """Write a slide with two levels of JPEG tiles that OpenSlide reads as Aperio's."""
    with tifffile.TiffWriter(path) as writer:
        tiles: dict[str, Any] = {
            "tile": (128, 128),
            "photometric": "rgb",
            "compression": "jpeg",
            "metadata": None,
        }
        writer.write(image, description=APERIO.format(*image.shape), **tiles)
        writer.write(image[::2, ::2], subfiletype=1, **tiles)


def tiff_header(*, height: int, width: int, side: int = 256, tiled: bool = True) -> bytes:
    """Return a grey TIFF that claims a size, but has an offset for only one tile or strip."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1}
    tags |= (
        {322: side, 323: side, 324: 256, 325: 1000} if tiled else {273: 256, 278: height, 279: 1000}
    )
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items())
    )
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return header.ljust(256, b"\0") + bytes(1000)


def open_in_browser(page: bytes, *, folder: Path) -> str:
    """Open a page in Chromium, check that it is not blank, and return its document as text.

    Skips the test if there is no Chromium.
    """
    if shutil.which("chromium") is None:
        pytest.skip("no chromium: the report was not opened in a browser")
    (folder / "page.html").write_bytes(page)
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
    ]
    command += [
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1200,2400",
        f"--screenshot={folder / 'page.png'}",
    ]
    command += ["--dump-dom", f"file://{folder / 'page.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "TypeError" not in done.stderr
    assert read_picture(folder / "page.png").std() > 10, "the page is blank"
    return done.stdout


def free_port() -> int:
    """Return a free port on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def call_job(name: str, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run a job in this process, which saves seconds of imports.

    The job uses a Ray that this process has joined, and leaves it running.

    Returns:
        The exit code, the last line of JSON on standard output, and all output.
    """
    output, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
        patch.setattr("sys.argv", [f"{name}.py", *arguments])
        patch.setattr("resunet_ray.command_line.job.disconnect", lambda: None)
        patch.setattr("resunet_ray.command_line.job.hide_native_lines", lambda: None)
        patch.setattr("resunet_ray.command_line.job.JobOutput", lambda stdout: stdout)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "jobs" / f"{name}.py"), run_name="__main__")
    lines = output.getvalue().strip().splitlines()
    line = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return int(ended.value.code or 0), line, output.getvalue() + errors.getvalue()


def run_job(
    name: str, *arguments: str, timeout: float = 900, address: str = "local"
) -> tuple[int, dict[str, Any], str]:
    """Run a job as a user would, with its own Ray or on the cluster at `address`.

    Returns:
        The exit code, the last line of JSON on standard output, and standard error.
    """
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "RAY_ADDRESS": address},
    )
    lines = done.stdout.strip().splitlines()
    return done.returncode, json.loads(lines[-1]) if lines else {}, done.stderr


def read_screen(terminal: int) -> tuple[str, list[str]]:
    """Read a pseudo-terminal until it is closed: the raw text, and the lines finally on screen."""
    written = b""
    with os.fdopen(terminal, "rb", buffering=0) as file:
        while True:
            try:
                part = file.read(65536)
            except OSError:  # how Linux reports that the writer has closed it
                break
            if not part:
                break
            written += part
    text = written.decode()
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part.startswith("\x1b"):
            row -= int(part[2:-1] or 1) if part.endswith("A") else 0
            lines[row] = "" if part.endswith("K") else lines[row]
        elif part != "\r":
            lines[row] += part
    return text, [line for line in lines if line]


@contextmanager
def relayed(behind: str, seen: Callable[[bytes], None]) -> Iterator[str]:
    """Relay requests to a server on loopback, showing each one before it is sent on.

    Yields the address of the relay.

    Args:
        behind: address of the server.
        seen: called with each piece of a request as it arrives.
    """
    host, _, port = behind.removeprefix("http://").partition(":")

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((host, int(port))) as onward:
                threading.Thread(target=_pour, args=(onward, self.request), daemon=True).start()
                with suppress(OSError):
                    while request := self.request.recv(2**16):
                        seen(request)
                        onward.sendall(request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def _pour(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while answer := source.recv(2**16):
            sink.sendall(answer)
