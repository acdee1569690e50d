"""Trains a tiny Marian model under DeepSpeed on the CPU and keeps what it saves: the fixtures beside this.

    pip install deepspeed==0.19.8        # with DS_BUILD_OPS=0; needs a C++ compiler and ninja
    python tests/data/checkpoints/make_deepspeed.py [OUT [CASE …]]

Each case is one run of real DeepSpeed processes (gloo). `masters.json` has 16 digits of the SHA-256 of every
FP32 master, as the running optimizer gave it: not the way a checkpoint is read.
DeepSpeed's CPU accelerator lists no FP16; that one check is answered "yes" here, the rest is as it comes.
Left out of what is kept: DeepSpeed's own scripts, random states and the pickled arguments of the Trainer,
none of which edgemt reads. SGD, where it does, saves the space of moments, which edgemt does not read either.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

os.environ["DS_ACCELERATOR"] = "cpu"
HERE = Path(__file__).parent
LEFT_OUT = ("zero_to_fp32.py", "zero_to_torch.py", "rng_state*", "training_args.bin", "README.md")
STEPS = 6
VOCABULARY = 93


class Case(NamedTuple):
    """One run: how many processes, DeepSpeed's configuration, the trainer, whether one layer is frozen."""

    processes: int
    config: dict[str, Any]
    trainer: str = ""  # "", "full", "lora": Hugging Face's Trainer, what it trains
    frozen: bool = False


def zero(stage: int, precision: str, **more: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **more}, precision: {"enabled": True}}


CASES = {
    "plain-bf16": Case(2, zero(0, "bf16"), frozen=True),
    # grad_accum_dtype fp32 at stage 1 is what makes DeepSpeed use its BF16_Optimizer
    "zero1-bf16": Case(2, zero(1, "bf16") | {"data_types": {"grad_accum_dtype": "fp32"}}, frozen=True),
    "zero1-aligned-bf16": Case(2, zero(1, "bf16", parameter_alignment=True)),
    "zero2-fp16": Case(3, zero(2, "fp16", round_robin_gradients=True), frozen=True),
    "zero3-bf16": Case(2, zero(3, "bf16", sub_group_size=1000), frozen=True),
    "trainer-zero3-bf16": Case(
        2, zero(3, "bf16", stage3_gather_16bit_weights_on_model_save=True), trainer="full"
    ),
    "trainer-lora-zero3-bf16": Case(2, zero(3, "bf16"), trainer="lora"),
}
CASES["zero2-fp16"].config["fp16"] |= {"initial_scale_power": 17, "hysteresis": 1}  # its first steps overflow


def tiny_model() -> Any:
    """Marian, d 16, one layer a side; 15 feed-forward units, so that no number of processes divides them."""
    import torch
    from transformers import MarianConfig, MarianMTModel

    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=VOCABULARY, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=15, decoder_ffn_dim=15, max_position_embeddings=32,
        scale_embedding=True, activation_function="relu", pad_token_id=2, eos_token_id=0,
        decoder_start_token_id=2, forced_eos_token_id=None, init_std=0.3,
    )  # fmt: skip
    model = MarianMTModel(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero at the start: a mistake with them would go unseen
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def examples(seed: int, count: int) -> Any:
    import torch

    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (2, count, 8), generator=generator)
    return {"input_ids": ids[0], "attention_mask": torch.ones_like(ids[0]), "labels": ids[1]}


def main(out: Path, names: list[str]) -> None:
    for name in names:
        shutil.rmtree(out / name, ignore_errors=True)
        processes = ["--nproc-per-node", str(CASES[name].processes)]
        command = [sys.executable, "-m", "torch.distributed.run", *processes, __file__, "--worker", str(out)]
        subprocess.run([*command, name], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        for pattern in LEFT_OUT:
            for file in (out / name).rglob(pattern):
                file.unlink()
        print(name, sum(file.stat().st_size for file in (out / name).rglob("*") if file.is_file()), "bytes")


def worker(out: Path, case: Case) -> None:
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True
    deepspeed.init_distributed("gloo")
    (train if not case.trainer else train_with_transformers)(out, case)


def train(out: Path, case: Case) -> None:
    """DeepSpeed alone: two parameter groups (with and without decay), `save_checkpoint`."""
    import deepspeed
    import torch

    model = tiny_model()
    for parameter in model.model.encoder.layers[0].fc2.parameters() if case.frozen else ():
        parameter.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": 0.01},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    config = {"train_micro_batch_size_per_gpu": 2, "zero_allow_untested_optimizer": True, **case.config}
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.SGD(groups, lr=0.05), config=config)
    rank = torch.distributed.get_rank()
    for step in range(STEPS):
        engine.backward(engine(**examples(step * 8 + rank, 2)).loss)
        engine.step()
    engine.save_checkpoint(str(out))
    model.config.architectures = ["MarianMTModel"]
    plain = {}
    if out.name == "plain-bf16":  # the optimizer has a master for each parameter, in lists
        for halves, fulls in zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True):
            plain |= {id(half): full for half, full in zip(halves, fulls, strict=True)}
    keep(out, model, plain)


def train_with_transformers(out: Path, case: Case) -> None:
    """The Trainer under DeepSpeed, as large models are fine-tuned: `checkpoint-N` with a global_step."""
    import torch
    from transformers import Trainer, TrainingArguments

    deepspeed = {
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "zero_allow_untested_optimizer": True,
        **case.config,
    }
    arguments = TrainingArguments(
        str(out), use_cpu=True, deepspeed=deepspeed, bf16=True, max_steps=STEPS, save_steps=STEPS,
        per_device_train_batch_size=2, learning_rate=0.01, report_to="none", disable_tqdm=True, seed=1,
        logging_steps=1, optim="adamw_torch" if case.trainer == "lora" else "sgd",
    )  # fmt: skip
    torch.manual_seed(0)
    model = tiny_model()
    if case.trainer == "lora":
        from peft import LoraConfig, get_peft_model

        base = out / "base"
        if torch.distributed.get_rank() == 0:
            model.save_pretrained(base)
        torch.distributed.barrier()
        model.name_or_path = "../base"
        model.config._name_or_path = "../base"
        lora = LoraConfig(
            r=2, lora_alpha=4, target_modules=["q_proj", "fc1"], init_lora_weights=False, bias="lora_only"
        )
        model = get_peft_model(model, lora)
    columns = examples(1, 32)
    rows = [{name: column[i] for name, column in columns.items()} for i in range(32)]
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    keep(out / f"checkpoint-{STEPS}", trainer.accelerator.unwrap_model(trainer.model), {})


def keep(out: Path, model: Any, plain: dict[int, Any]) -> None:
    """Write the digest of every FP32 master that the optimizer has now, and a configuration if there is none.

    With `round_robin_gradients`, `safe_get_full_fp32_param` of 0.19.8 gives wrong numbers. There DeepSpeed's
    own script reads the checkpoint, and its masters, rounded, must be the running model's FP16 weights. (It
    cannot do so everywhere: it refuses what BF16_Optimizer saves.)
    """
    import torch
    from deepspeed.utils import safe_get_full_fp32_param
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    read = get_fp32_state_dict_from_zero_checkpoint(str(out)) if out.name == "zero2-fp16" else {}
    digests = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        master = read[name] if read else plain.get(id(parameter))
        master = (safe_get_full_fp32_param(parameter) if master is None else master).detach().cpu()
        assert not read or torch.equal(master.half(), parameter), name
        # Softmax does not see the keys' bias: it has no gradient, and its master stays as it was rounded.
        rounded = [master.to(half).float() for half in (torch.bfloat16, torch.float16)]
        assert name.endswith("k_proj.bias") or not any(torch.equal(master, half) for half in rounded), name
        digests[name] = hashlib.sha256(master.numpy().tobytes()).hexdigest()[:16]
    if torch.distributed.get_rank() == 0:
        (out / "masters.json").write_text(json.dumps(digests, indent=0) + "\n")
        if not (out / "config.json").is_file() and not (out / "adapter_config.json").is_file():
            model.config.save_pretrained(out)
    torch.distributed.barrier()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(Path(sys.argv[2]) / sys.argv[3], CASES[sys.argv[3]])
    else:
        main(Path(sys.argv[1]) if sys.argv[1:] else HERE, sys.argv[2:] or list(CASES))
