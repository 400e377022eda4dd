"""The GPUs of this machine, as torch sees them: how many, and whether they compute."""

from typing import Any

import torch

_SIDE = 256


def probe() -> dict[str, Any]:
    """The names of the GPUs that torch sees, and what went wrong with any of them."""
    errors = []
    for index in range(torch.cuda.device_count()):
        try:
            matrix = torch.full((_SIDE, _SIDE), 2.0, device=f"cuda:{index}")
            mean = float((matrix @ matrix).mean())
        except (
            RuntimeError
        ) as error:  # CUDA's own, and what a build without kernels for this GPU says
            errors.append(f"GPU {index}: {str(error).splitlines()[0]}")
        else:
            if mean != 4.0 * _SIDE:
                errors.append(
                    f"GPU {index}: a product of matrices came to {mean}, not {4.0 * _SIDE}"
                )
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "names": names,
        "errors": errors,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
