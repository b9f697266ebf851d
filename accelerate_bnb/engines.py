"""How Accelerate will train, and what that does to an optimizer. Knows no plugin."""

from enum import Enum, auto

from accelerate import Accelerator
from accelerate.utils import DistributedType

from torch_bnb import VerificationError


class Engine(Enum):
    """What trains, as far as optimizers can tell."""

    PLAIN = auto()
    """One process or DDP: parameters stay the objects that they are."""
    FSDP1 = auto()
    """Parameters are flattened when the model is prepared; the optimizer comes after."""
    FSDP2 = auto()
    """Parameters become DTensors, in the model and in the optimizer."""
    DEEPSPEED = auto()
    """Parameters are flattened group by group."""


def engine_of(accelerator: Accelerator) -> Engine:
    """How an Accelerator trains.

    Raises:
        VerificationError: In a way that replaces the optimizer.
    """
    kind = accelerator.distributed_type
    if kind == DistributedType.MEGATRON_LM:
        raise VerificationError(
            "Megatron-LM builds an optimizer of its own by the class's name, whatever it is given: 8-bit state would "
            "be lost without a word; train with FSDP2 or ZeRO instead"
        )
    if str(getattr(accelerator, "fp8_backend", None)).rpartition(".")[2] == "MSAMP":
        raise VerificationError("MS-AMP wraps optimizers in its own; use another fp8 backend, or none")
    if kind == DistributedType.DEEPSPEED:
        _refuse_replacing_offload(accelerator.deepspeed_plugin.deepspeed_config)
        return Engine.DEEPSPEED
    if kind == DistributedType.FSDP:
        if accelerator.is_fsdp2:
            return Engine.FSDP2
        if not accelerator.state.fsdp_plugin.use_orig_params:
            raise VerificationError(
                "FSDP1 with use_orig_params=False flattens parameters: an optimizer that was built before trains "
                "nothing, and no hint can hold; set fsdp_use_orig_params: true, or better fsdp_version: 2"
            )
        return Engine.FSDP1
    return Engine.PLAIN


def _refuse_replacing_offload(config: dict) -> None:
    offload = config.get("zero_optimization", {}).get("offload_optimizer") or {}
    if offload.get("device", "none") != "none" and config.get("zero_force_ds_cpu_optimizer", True):
        raise VerificationError(
            f"ZeRO-Offload (offload_optimizer.device={offload['device']!r}) puts DeepSpeedCPUAdam in the optimizer's "
            "place; set zero_force_ds_cpu_optimizer: false in the DeepSpeed config, and 8-bit state is offloaded, or "
            "offload_optimizer.device: none"
        )
