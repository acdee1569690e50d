"""The first bad tensor is named: in the forward pass, the backward pass or the loss, whatever wraps it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from transformers import MarianConfig, MarianMTModel

from edgemt.training.health import Culprit, Watch, locate

torch.set_num_threads(1)

FC2 = "model.decoder.layers.1.fc2"


@pytest.fixture
def marian() -> MarianMTModel:
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=64,
        decoder_vocab_size=64,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        activation_function="relu",
        scale_embedding=True,
        attn_implementation="eager",
        pad_token_id=2,
        eos_token_id=0,
        decoder_start_token_id=2,
    )
    return MarianMTModel(config).train()


def replay(model: nn.Module, dtype: torch.dtype = torch.float16, times: float = 1.0) -> Callable[[], Tensor]:
    """The loss of one fixed batch with fixed dropout, under autocast."""
    source = torch.arange(28).reshape(4, 7) + 4
    labels = torch.arange(20).reshape(4, 5) + 30

    def loss() -> Tensor:
        torch.manual_seed(5)
        with torch.autocast("cpu", dtype=dtype):
            return model(input_ids=source, labels=labels).loss * times

    return loss


def overflow_in_fc2(model: MarianMTModel) -> None:
    """Its weights stay within FP16; its output does not."""
    with torch.no_grad():
        model.get_parameter(f"{FC2}.weight").mul_(1e5)
        model.get_parameter("model.decoder.layers.1.fc1.weight").mul_(5e3)


def found(model: nn.Module, scale: float = 1.0, **how: Any) -> Culprit:
    culprit = locate(model, [replay(model, **how)], scale)
    assert culprit is not None
    return culprit


def test_a_healthy_step_has_no_culprit(marian: MarianMTModel) -> None:
    assert locate(marian, [replay(marian)], 1024.0) is None


def test_an_overflowing_output_is_named_with_its_numbers(marian: MarianMTModel) -> None:
    overflow_in_fc2(marian)
    culprit = found(marian)
    assert (culprit.phase, culprit.module, culprit.tensor) == ("forward", FC2, "output")
    assert (culprit.dtype, culprit.elements, culprit.nan) == ("float16", 4 * 5 * 16, 0)
    assert 0 < culprit.infinite < culprit.elements and 1000 < culprit.largest <= 65504
    assert f"the output of {FC2} ({culprit.infinite} Inf of 320 float16" in str(culprit)
    assert locate(marian, [replay(marian, dtype=torch.bfloat16)]) is None  # BF16 has the range


def test_a_bad_weight_is_named_itself(marian: MarianMTModel) -> None:
    with torch.no_grad():
        marian.get_parameter("model.encoder.layers.1.fc1.weight")[3, 4] = float("nan")
    culprit = found(marian)
    assert (culprit.phase, culprit.module, culprit.tensor) == (
        "forward",
        "model.encoder.layers.1.fc1",
        "weight",
    )
    assert (culprit.nan, culprit.infinite, culprit.dtype) == (1, 0, "float32")


def test_what_overflows_between_modules_is_the_next_ones_input(marian: MarianMTModel) -> None:
    """Queries and keys fit FP16 and their product does not: the softmax makes NaN before out_proj sees it."""
    attention = "model.encoder.layers.0.self_attn"
    with torch.no_grad():
        for name in ("q_proj", "k_proj"):
            marian.get_parameter(f"{attention}.{name}.weight").mul_(3e4)
    culprit = found(marian)
    assert (culprit.module, culprit.tensor) == (f"{attention}.out_proj", "input")
    assert culprit.after == f"the output of {attention}.v_proj"


def test_an_overflow_of_the_backward_pass_alone(marian: MarianMTModel) -> None:
    culprit = found(marian, scale=2.0**40)
    assert (culprit.phase, culprit.module, culprit.tensor) == (
        "backward",
        "lm_head",
        "gradient of the output",
    )
    assert culprit.infinite > 0 and culprit.dtype == "float16"


def test_a_gradient_that_overflows_on_its_way_down(marian: MarianMTModel) -> None:
    """fc2's large weights are harmless forward, where fc1 made its input small; what it sends back is not."""
    with torch.no_grad():
        marian.get_parameter(f"{FC2}.weight").mul_(1e5)
        marian.get_parameter("model.decoder.layers.1.fc1.weight").mul_(1e-5)
    culprit = found(marian, scale=2.0**16)
    assert (culprit.phase, culprit.module) == ("backward", FC2)
    assert culprit.tensor == "gradient of the input"


def test_a_parameters_gradient_is_named() -> None:
    """The sum over many rows overflows FP16 in the weight's gradient; what flows on is small."""
    layer = nn.Linear(2, 1, bias=False).half()
    rows = torch.full((64, 2), 2000.0, dtype=torch.float16)
    culprit = locate(layer, [lambda: layer(rows).float().sum() * 1e-3], scale=1e3)
    assert culprit is not None
    assert (culprit.phase, culprit.tensor, culprit.infinite) == ("backward", "gradient of the weight", 2)


def test_an_infinite_loss_alone(marian: MarianMTModel) -> None:
    culprit = found(marian, times=float("inf"))
    assert (culprit.phase, culprit.module, culprit.tensor) == ("loss", "", "loss")
    assert str(culprit).startswith("the loss (1 Inf")
    assert found(marian, scale=2.0**127).tensor.startswith("loss × ")


def test_the_second_batch_of_a_step_is_looked_at(marian: MarianMTModel) -> None:
    culprit = locate(marian, [replay(marian), replay(marian, times=float("nan"))])
    assert culprit is not None and culprit.phase == "loss"


def test_batches_whose_gradients_overflow_only_together() -> None:
    layer = nn.Linear(1, 1, bias=False).half()
    batch = torch.full((1, 1), 40000.0, dtype=torch.float16)
    again = [lambda: layer(batch).float().sum()] * 2
    assert locate(layer, again[:1]) is None
    culprit = locate(layer, again)
    assert culprit is not None and culprit.tensor == "gradient of the weight"


@pytest.fixture
def one_process() -> Iterator[None]:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    dist.init_process_group("gloo", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_ddp_leaves_no_trace_in_the_name(marian: MarianMTModel, one_process: None) -> None:
    overflow_in_fc2(marian)
    wrapped = DistributedDataParallel(marian)
    assert found(wrapped).module == FC2
    wrapped(input_ids=torch.ones(1, 3, dtype=torch.long), labels=torch.ones(1, 3, dtype=torch.long))


def test_a_compiled_model_is_looked_into(marian: MarianMTModel) -> None:
    overflow_in_fc2(marian)
    assert found(torch.compile(marian, backend="eager")).module == FC2  # pyright: ignore
    marian.model.decoder.layers[1] = torch.compile(marian.model.decoder.layers[1], backend="eager")
    assert found(marian).module == FC2


def test_adapters_leave_no_trace_in_the_name(marian: MarianMTModel) -> None:
    overflow_in_fc2(marian)
    assert found(get_peft_model(marian, LoraConfig(target_modules=["q_proj"], r=2))).module == FC2


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_hides_nothing(marian: MarianMTModel, reentrant: bool) -> None:
    marian.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert found(marian, scale=2.0**40).module == "lm_head"
    with torch.no_grad():
        marian.get_parameter(f"{FC2}.weight").mul_(1e5)
        marian.get_parameter("model.decoder.layers.1.fc1.weight").mul_(1e-5)
    culprit = found(marian, scale=2.0**16)
    assert (culprit.phase, culprit.module) == ("backward", FC2)


class Nested(nn.Module):
    """Outputs in a tuple and a dict, and a buffer that every forward pass changes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, list[Tensor]]]:
        x = self.norm(x) * self.weight
        return x.square().sum(), {"deep": [(x - 100).log()]}


class Holder(nn.Module):
    """Its loss is finite: the bad tensor is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.nested = Nested()

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.nested, x, use_reentrant=False)[0]  # pyright: ignore


def test_nested_outputs_are_looked_into() -> None:
    model = Holder()
    culprit = locate(model, [lambda: model(torch.randn(3, 2))])
    assert culprit is not None and (culprit.module, culprit.tensor) == ("nested", "output")


def test_nothing_is_changed_by_looking() -> None:
    model = Holder()
    x = torch.randn(3, 2)
    model(x).backward()
    gradient, buffers = model.nested.weight.grad, [b.clone() for b in model.buffers()]
    values = None if gradient is None else gradient.clone()
    random = torch.get_rng_state()
    assert locate(model, [lambda: model(torch.randn(3, 2))]) is not None
    assert model.nested.weight.grad is gradient and torch.equal(gradient, values)  # type: ignore[arg-type]
    assert all(map(torch.equal, model.buffers(), buffers))
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any(p._backward_hooks for p in model.parameters())


def test_a_watched_step_names_what_never_reaches_the_loss() -> None:
    model = Holder()
    with Watch(model) as watch:
        loss = model(torch.randn(3, 2))
        culprit = watch.take()
        assert torch.isfinite(loss) and culprit is not None
        assert (culprit.module, culprit.tensor) == ("nested", "output")
        assert watch.take() is None
        model.eval()(torch.randn(3, 2))  # an evaluation is not a step
        assert watch.take() is None
    model.train()(torch.randn(3, 2))
    assert watch.take() is None
