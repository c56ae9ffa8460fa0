"""One process or many: whoever was started by ``accelerate launch`` or ``torchrun`` finds the others here."""

from __future__ import annotations

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, GradientAccumulationPlugin, parse_flag_from_env

from rsvp_backend.training.pretrain_config import Device


def join_processes(device: Device) -> PartialState:
    """Meet the other processes, if there are any; further calls give the same.

    Without a GPU accelerate takes each process to be alone unless it is told that the CPU is meant; and told so, it
    does not look at DeepSpeed.
    """
    cpu = device == "cpu" or not torch.cuda.is_available()
    if cpu and parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return PartialState(backend="gloo")
    return PartialState(cpu=cpu)


def make_accelerator(device: Device, batch: int, accumulate: int) -> Accelerator:
    """Precision is the caller's, and so is accumulation, whatever the launcher was told."""
    state = join_processes(device)
    accelerator = Accelerator(
        cpu=state.device.type == "cpu" and state.distributed_type != DistributedType.DEEPSPEED,
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulate, sync_with_dataloader=False),
    )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config |= {"train_micro_batch_size_per_gpu": batch, "gradient_accumulation_steps": accumulate}
    return accelerator
