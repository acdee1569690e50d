"""One compiled ONNX graph: load it, bind memory to its inputs and outputs, listen to its inside."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # 1.28.0 has none; releases from 1.29 on would phone home

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgemt.errors import EdgemtError
from edgemt.runtimes import huge_pages
from edgemt.runtimes.protocol import Tap

DTYPES = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(uint8)": np.dtype(np.uint8),
}
CODES = {"f": 1, "B": 2, "b": 3, "i": 6, "l": 7, "e": 10}  # numpy's type character -> ONNX's element type

TAP = "tap:"
CPU = ("CPUExecutionProvider",)

# Binding goes straight to the C++ object: the public wrapper builds a device object at every call, and a step
# binds about ten tensors (0.4 µs each this way, 1.4 µs through the wrapper).
DEVICE = ort.OrtDevice.make("cpu", 0)._get_c_device()


class Graph:
    """A loaded graph. `inputs` and `outputs` map names to dtypes. Threads may run it at the same time."""

    def __init__(
        self,
        path: Path,
        role: str,
        threads: int,
        taps: Sequence[str] = (),
        on_tap: Tap | None = None,
        providers: Sequence[str] = CPU,
    ) -> None:
        options = session_options(threads)
        model: str | bytes = str(path)
        made: set[str] = set()
        try:
            if taps:
                options.add_session_config_entry(
                    "session.model_external_initializers_file_folder_path", str(path.parent)
                )
                model, made = _with_outputs(path, taps)
            with huge_pages.for_what_is_loaded():
                self.session = ort.InferenceSession(model, options, providers=list(providers))
        except EdgemtError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise EdgemtError(
                f"{path} cannot be loaded ({reason_of(error)}); copy or export the bundle again"
            ) from None
        self.inputs = {i.name: DTYPES[i.type] for i in self.session.get_inputs()}
        self.outputs = {o.name: DTYPES.get(o.type) for o in self.session.get_outputs()}
        self.taps = {name: name if name in made else TAP + name for name in taps}
        self._role, self._on_tap = role, on_tap
        session: Any = self.session._sess
        self._run = session.run_with_iobinding
        self._options = ort.RunOptions()

    def run(self, binding: Binding) -> None:
        """Execute. What the taps caught goes to the listener afterwards."""
        if not self.taps:
            self._run(binding.raw, self._options)
            return
        binding.bind_taps()  # afresh: their shapes differ from run to run
        self._run(binding.raw, self._options)
        if self._on_tap:
            found = binding.raw.get_outputs()
            self._on_tap(self._role, {name: found[i].numpy() for i, name in enumerate(self.taps)})


class Binding:
    """Memory bound to a graph's inputs and outputs; it owns the arrays that it holds by name."""

    def __init__(self, graph: Graph) -> None:
        self.raw: Any = graph.session.io_binding()._iobinding
        self._taps = tuple(graph.taps.values())
        self._held: dict[str, NDArray[Any]] = {}
        self.bind_taps()

    def input(self, name: str, array: NDArray[Any]) -> None:
        """Bind a C-contiguous array: the graph reads what is in it when it runs."""
        self._held[name] = array
        self.raw.bind_input(name, DEVICE, CODES[array.dtype.char], array.shape, address(array))

    def output(self, name: str, array: NDArray[Any]) -> None:
        """Bind a C-contiguous array of exactly the output's shape: the graph writes into it."""
        self._held[name] = array
        self.raw.bind_output(name, DEVICE, CODES[array.dtype.char], array.shape, address(array))

    def clear(self) -> None:
        """Forget everything, and let go of the arrays."""
        self.raw.clear_binding_inputs()
        self.raw.clear_binding_outputs()
        self._held.clear()

    def clear_outputs(self) -> None:
        """Forget every bound output."""
        self.raw.clear_binding_outputs()
        self.bind_taps()

    def bind_taps(self) -> None:
        """Bind the taps, before any other output (so that they come first), to memory of the runtime's."""
        for name in self._taps:
            self.raw.bind_output(name, DEVICE)


def session_options(threads: int) -> ort.SessionOptions:
    """How every graph is loaded."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong arrives as an exception
    # Threads that wait would burn a core (one sentence: 77 ms against 20 ms on two busy cores).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # Shapes differ at every step: a memory plan for each would be kept for ever and used once.
    options.enable_mem_pattern = False
    return options


def reason_of(error: Exception) -> str:
    """The first line of what onnxruntime says went wrong."""
    return str(error).split("\n")[0][:200]


def address(array: NDArray[Any]) -> int:
    return array.__array_interface__["data"][0]


def _with_outputs(path: Path, names: Sequence[str]) -> tuple[bytes, set[str]]:
    """The model with these tensors as further outputs, and which of them are not inputs or outputs already.

    An input or an output gets a copy under the name TAP + its own, since a session binds the original itself.
    This is for the workshop: it needs the package onnx.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    outside = {value.name for value in (*graph.input, *graph.output)}
    made = {name for node in graph.node for name in node.output} - outside
    for name in names:
        if name in outside:
            graph.node.append(onnx.helper.make_node("Identity", [name], [TAP + name], name=TAP + name))
        elif name not in made:
            raise EdgemtError(f"{path} has no tensor {name!r}; export the bundle again")
        graph.output.append(onnx.ValueInfoProto(name=name if name in made else TAP + name))
    return model.SerializeToString(), made
