"""Which tensor first stopped being finite, found by doing the step again with hooks on every module.

A normal step costs nothing: the guard in precision.py sees that the loss or the gradient is not finite, and
`locate` replays that step's batches. Hooks are on the modules that compute (those without children, or with
weights of their own): inputs, outputs and weights in the order of the forward pass, then the gradients of the
same tensors in the order of the backward pass. What happens between modules (the attention's softmax, a
residual sum) shows as the input of the next module.

`Watch` leaves the forward hooks on, so that a bad activation is named in the step itself, even one that
never reaches the loss. It reads a number back for every tensor of every module: a tool to search with.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

# What torch.compile, torch's checkpoint_wrapper and peft put into a module's path.
WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "base_model.model.")


@dataclass(frozen=True)
class Culprit:
    """The first tensor that was not finite."""

    phase: str
    """"forward", "backward" or "loss"."""
    module: str
    """Its path in the model, without the prefixes of wrappers; "" for the loss or the model itself."""
    tensor: str
    """"input", "output", the name of a parameter, or "loss"; a gradient is "gradient of …"."""
    dtype: str
    elements: int
    nan: int
    infinite: int
    largest: float
    """The largest finite magnitude in the tensor; 0 if nothing is finite."""
    after: str
    """The tensor looked at before this one, which was finite: the fault lies between the two."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def name(self) -> str:
        return f"the {self.tensor}" + (f" of {self.module or 'the model'}" if self.phase != "loss" else "")

    def __str__(self) -> str:
        kinds = [f"{n:,} {kind}" for n, kind in ((self.nan, "NaN"), (self.infinite, "Inf")) if n]
        largest = f"; largest finite {self.largest:.3g}" if self.largest else ""
        after = f"; finite before it: {self.after}" if self.after else ""
        return f"{self.name} ({' and '.join(kinds)} of {self.elements:,} {self.dtype}{largest}{after})"


class Finder:
    """Hooks on the modules of a model; the first bad tensor they meet stays in `culprit`."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {module: cleaned(name) for name, module in bare(model).named_modules()}
        self.culprit: Culprit | None = None
        self.after = ""
        self.handles: list[RemovableHandle] = []

    def look(self, tensor: Tensor, phase: str, module: str, what: str) -> None:
        """Note `tensor` if it is the first that is not finite."""
        if self.culprit is not None or not (tensor.is_floating_point() or tensor.is_complex()):
            return
        values = tensor.detach()
        if values.is_sparse:
            values = values.coalesce().values()
        finite = torch.isfinite(values)
        if bool(finite.all()):
            self.after = f"the {what}" + (f" of {module or 'the model'}" if phase != "loss" else "")
            return
        self.culprit = Culprit(
            phase=phase,
            module=module,
            tensor=what,
            dtype=str(values.dtype).removeprefix("torch."),
            elements=values.numel(),
            nan=int(torch.isnan(values).sum()),
            infinite=int(torch.isinf(values).sum()),
            largest=float(values.abs().where(finite, 0).max()),
            after=self.after,
        )

    def computing(self) -> Iterator[tuple[str, nn.Module]]:
        for module, name in self.names.items():
            leaf = next(module.children(), None) is None
            if leaf or next(module.parameters(recurse=False), None) is not None:
                yield name, module

    def watch_forward(self, only_training: bool) -> None:
        """Look at the inputs and outputs of every forward pass (or only of those in training mode)."""
        for name, module in self.computing():

            def before(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                if module.training or not only_training:
                    for tensor in tensors((args, kwargs)):
                        self.look(tensor, "forward", name, "input")

            def after(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                if module.training or not only_training:
                    for tensor in tensors(output):
                        self.look(tensor, "forward", name, "output")

            self.handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            self.handles.append(module.register_forward_hook(after))

    def watch_weights(self) -> None:
        """Look at a module's own weights just before it uses them."""
        for name, module in self.computing():

            def before(module: nn.Module, args: Any, name: str = name) -> None:
                for parameter, tensor in module.named_parameters(recurse=False):
                    self.look(tensor, "forward", name, parameter)

            self.handles.append(module.register_forward_pre_hook(before))

    def watch_backward(self) -> None:
        """Look at the gradients of inputs, outputs and parameters when they are computed.

        Hooks are on the tensors of the graph, not on the modules: they meet in-place operations, and the
        second forward pass of gradient checkpointing (whose first may build no graph), and change neither.
        A module gets a view of its input, whose gradient is what this module alone sends back.
        """
        for name, module in self.computing():

            def before(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> tuple[Any, Any]:
                alias = partial(self.alias, name)
                return tuple(map(alias, args)), {key: alias(value) for key, value in kwargs.items()}

            def after(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                for tensor in tensors(output):
                    self.follow(tensor, name, "output")

            self.handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            self.handles.append(module.register_forward_hook(after))
        seen: set[Tensor] = set()  # a weight that modules share is named by the first of them
        for module, name in self.names.items():
            for parameter, tensor in module.named_parameters(recurse=False):
                if tensor not in seen:
                    seen.add(tensor)
                    self.follow(tensor, name, parameter)

    def alias(self, name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        value = value.view_as(value)
        self.follow(value, name, "input")
        return value

    def follow(self, tensor: Tensor, name: str, what: str) -> None:
        """Look at the gradient of `tensor` when it is computed."""
        if tensor.requires_grad:
            hook = partial(self.look, phase="backward", module=name, what=f"gradient of the {what}")
            self.handles.append(tensor.register_hook(hook))

    def accumulated(self) -> None:
        """Look at the gradients as summed over a step's batches, each of which may be finite."""
        for module, name in self.names.items():
            for parameter, tensor in module.named_parameters(recurse=False):
                if tensor.grad is not None:
                    self.look(tensor.grad, "backward", name, f"gradient of the {parameter}")

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()


def locate(model: nn.Module, replays: Iterable[Callable[[], Tensor]], scale: float = 1.0) -> Culprit | None:
    """The first tensor that is not finite when a step is done again; None if everything is finite.

    `replays` compute the loss of each of the step's batches as the step did (same weights, autocast, random
    state), `scale` is the loss scale of that step. `model` may be wrapped for DDP, compiled (it is replayed
    without compilation) and use gradient checkpointing. Gradients, buffers and random states are afterwards
    what they were; no hook is left.
    """
    finder = Finder(model)
    with unchanged(model):
        finder.watch_forward(only_training=False)
        finder.watch_weights()
        try:
            finder.watch_backward()
            for replay in replays:
                finder.after = ""
                loss = replay()
                finder.look(loss, "loss", "", "loss")
                finder.look(loss * scale, "loss", "", f"loss × {scale:g}")
                if finder.culprit is None:
                    (loss * scale).backward()
                if finder.culprit is not None:
                    break
            finder.accumulated()
        finally:
            finder.remove()
    return finder.culprit


class Watch:
    """`with Watch(model) as watch`: hooks stay on the forward passes in training mode until the end."""

    def __init__(self, model: nn.Module) -> None:
        self.finder = Finder(model)
        self.stance = ExitStack()

    def __enter__(self) -> Watch:
        self.stance.enter_context(uncompiled())
        self.finder.watch_forward(only_training=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.finder.remove()
        self.stance.close()

    def take(self) -> Culprit | None:
        """The first bad activation since the last call."""
        found, self.finder.culprit, self.finder.after = self.finder.culprit, None, ""
        return found


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put gradients, buffers and random states back; meanwhile no gradient is shared and nothing compiled."""
    gradients = [(p, p.grad) for p in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    cuda = sorted({p.device.index for p, _ in gradients if p.device.type == "cuda"})
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, DistributedDataParallel):
                stack.enter_context(module.no_sync())
        stack.enter_context(uncompiled())
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        for parameter, _ in gradients:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
            for module, name, buffer, values in buffers:
                buffer.data.copy_(values)
                module._buffers[name] = buffer


def uncompiled() -> AbstractContextManager[object]:
    """Compiled modules run as they were written, because compiled code runs no hooks."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled; importing it takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def bare(model: nn.Module) -> nn.Module:
    """The model inside DDP and torch.compile, in whatever order they were put on."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def cleaned(name: str) -> str:
    """A module's path without the parts that wrappers inside the model add."""
    for wrapper in WRAPPERS:
        name = (name + ".").replace(wrapper, "")[:-1]
    return name


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and mappings (a ModelOutput is one), in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
