"""The network on CPUs, computed by OpenVINO from the same weights, faster than by torch."""

import sys
import threading
import warnings
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from resunet_ray.config.model import Engine, ModelConfig, has_openvino
from resunet_ray.errors import ConfigError
from resunet_ray.model.quantization import Ranges, quantize_network

if TYPE_CHECKING:
    from openvino import CompiledModel

_EXAMPLE_SIDE = 64
"""Pixels of the image that shows OpenVINO what the network does; it then takes any size."""


def takes(model: ModelConfig, engine: Engine) -> bool:
    """Whether OpenVINO computes a network on CPUs, rather than torch.

    Raises:
        ConfigError: the engine is `openvino`, which cannot.
    """
    if engine == "torch":
        return False
    why_not = None
    if not has_openvino():
        why_not = "OpenVINO is not installed where the network runs; install resunet_ray[cpu]"
    elif model.bridge == "psp":
        why_not = (
            "the bridge psp pools by the size of the tile, which OpenVINO takes as constant; "
            "expected auto or torch"
        )
    if engine == "openvino" and why_not is not None:
        raise ConfigError(f"--engine openvino: {why_not}")
    return why_not is None


class OpenVinoNetwork:
    """A network that several threads may call at a time. It is converted when it is first called.

    Args:
        network: in evaluation mode, on the CPU, without a layer that depends on the image's size.
        channels: channels that it takes.
        streams: threads that will call it at a time, each on `torch.get_num_threads()` cores.
        ranges: of the convolutions that may be computed in 8 bits.
    """

    def __init__(
        self, network: nn.Module, *, channels: int, streams: int, ranges: Ranges | None = None
    ) -> None:
        self._network, self._channels, self._streams = network, channels, streams
        self._ranges = ranges or {}
        self._cores = streams * torch.get_num_threads()
        self._compiled: dict[torch.dtype | None, CompiledModel] = {}
        self._compiling, self._requests = threading.Lock(), threading.local()

    def __call__(
        self, x: Float[Tensor, "n c h w"], *, dtype: torch.dtype | None
    ) -> Float[Tensor, "n k h w"]:
        """Return the logits.

        Args:
            x: images of any size.
            dtype: int8, bfloat16, or None for full precision.
        """
        requests = vars(self._requests)
        if str(dtype) not in requests:
            requests[str(dtype)] = self._compile(dtype).create_infer_request()
        request = requests[str(dtype)]
        request.infer([x.contiguous().numpy()])
        return torch.from_numpy(request.get_output_tensor().data.copy())

    def _compile(self, dtype: torch.dtype | None) -> "CompiledModel":
        with self._compiling:
            if dtype not in self._compiled:
                # OpenVINO tells its makers about each import unless this package is missing.
                sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
                import openvino

                network = self._network
                if dtype is torch.int8:
                    network = quantize_network(network, self._ranges)
                example = torch.zeros((1, self._channels, _EXAMPLE_SIDE, _EXAMPLE_SIDE))
                with torch.inference_mode(), warnings.catch_warnings():
                    # torch.export takes 20 s and fails on padding that depends on the size.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    traced = torch.jit.trace(network, example, check_trace=False)
                model = openvino.convert_model(
                    traced, example_input=example, input=[-1, self._channels, -1, -1]
                )
                self._compiled[dtype] = openvino.Core().compile_model(
                    model,
                    "CPU",
                    {
                        "INFERENCE_PRECISION_HINT": "bf16" if dtype is torch.bfloat16 else "f32",
                        "INFERENCE_NUM_THREADS": self._cores,
                        "NUM_STREAMS": self._streams,
                        "ENABLE_CPU_PINNING": False,  # other processes would be on the same cores
                    },
                )
            return self._compiled[dtype]
