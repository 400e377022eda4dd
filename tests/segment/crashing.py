"""Segment a folder repeatedly, each time in a process that dies one write later than before.

After each death the same command runs to its end. Each time prints a line of JSON: the write that
was prevented, and the exit code of the second process.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from resunet_ray.config import SegmentConfig
from resunet_ray.segment.run import segment

_DIED = 9


def main(bundle: str, images: str, outputs: str) -> None:
    for writes in range(1000):
        output = Path(outputs) / str(writes)
        # A lease of ten minutes is not renewed, which would be another write in some runs.
        config = SegmentConfig(
            bundle=bundle,
            input=(images,),
            output=str(output),
            precision="fp32",
            actors=0,
            lease_seconds=600,
        )
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            die_after(writes, output=output, told=write)
            segment(config)
            os._exit(0)
        os.close(write)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with os.fdopen(read) as file:
            unwritten = file.read()
        if code == 0:
            return
        assert code == _DIED, code
        again = os.fork()
        if again == 0:
            segment(config)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(again, 0)[1])
        print(json.dumps({"output": str(output), "unwritten": unwritten, "code": code}), flush=True)


def die_after(writes: int, *, output: Path, told: int) -> None:
    """End this process at the write after these. A file appears when it is renamed."""
    left = writes

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event == "os.rename" and str(arguments[1]).startswith(str(output)):
            if left == 0:
                os.write(told, str(arguments[1]).removeprefix(f"{output}/").encode())
                os._exit(_DIED)
            left -= 1

    sys.addaudithook(hook)


if __name__ == "__main__":
    main(*sys.argv[1:])
