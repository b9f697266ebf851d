"""Trains the byte-level GPT of byte_gpt.py with Accelerate and 8-bit AdamW.

    python examples/accelerate_gpt.py --cpu
    accelerate-bnb launch --config_file examples/accelerate_configs/cpu_two_processes.yaml examples/accelerate_gpt.py

The lines between "New Code" marks are all that 8 bits take. Model, text, schedule and, for a seed, losses are those of
lightning_gpt.py.
"""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from byte_gpt import ByteGPT, Windows, standard_library_text
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

import torch_bnb as bnb

# New Code #
from accelerate_bnb import BnbOptimizerPlugin, prepare


def training_function(args: argparse.Namespace, text: Tensor) -> list[float]:
    """The loss of every step, on the main process."""
    accelerator = Accelerator(
        cpu=args.cpu,
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with="tensorboard" if args.tracking else None,
        project_dir=args.project_dir,
    )
    if args.tracking:
        accelerator.init_trackers("accelerate_gpt")
    set_seed(args.seed)
    model, batch = ByteGPT(), 16
    windows = Windows(text[: int(0.9 * len(text))], model.position.num_embeddings, args.steps * batch, args.seed)
    loader = DataLoader(windows, batch_size=batch)

    # New Code #
    # What is not given here comes from ACCELERATE_BNB_* variables or a bnb_config: section. Embeddings keep 32 bits.
    plugin = BnbOptimizerPlugin(lr=args.lr, weight_decay=args.weight_decay)
    optimizer = plugin.create_optimizer(model)

    warmup = max(1, args.steps // 20)

    def schedule(step: int) -> float:
        return (step + 1) / warmup if step < warmup else 1 - 0.9 * (step - warmup) / (args.steps - warmup)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)

    # New Code #
    # As accelerator.prepare, and checks afterwards that the optimizer is whole and does what hints say.
    model, optimizer, loader, scheduler = prepare(accelerator, model, optimizer, loader, scheduler, plugin=plugin)

    if args.resume:
        accelerator.load_state(args.resume)
    losses = []
    for step, (tokens, targets) in enumerate(loader):
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
            accelerator.backward(loss)
            if args.clip and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), args.clip)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        losses.append(accelerator.reduce(loss.detach(), "mean").item())
        if args.tracking:
            # New Code #
            state = bnb.report(optimizer.optimizer).total.state
            accelerator.log({"loss": losses[-1], "optimizer/state_bytes": state}, step=step)
    if args.save:
        accelerator.save_state(args.save)

    # New Code #
    memory = bnb.report(optimizer.optimizer)
    last = sum(losses[-20:]) / len(losses[-20:])
    accelerator.print(f"{accelerator.num_processes} processes, loss {last:.4f}; {memory.headline}")
    accelerator.end_training()
    return losses


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], help="default: as launched")
    options.add_argument("--cpu", action="store_true", help="train on the CPU")
    options.add_argument("--gradient_accumulation_steps", type=int, default=1)
    options.add_argument("--clip", type=float, default=0.0, help="largest norm of the gradient; 0 is off")
    options.add_argument("--steps", type=int, default=400)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--lr", type=float, default=None, help="default: as launched, else the optimizer's own")
    options.add_argument(
        "--weight_decay", type=float, default=None, help="default: as launched, else the optimizer's own"
    )
    options.add_argument("--save", help="folder for accelerator.save_state at the end")
    options.add_argument("--resume", help="folder of accelerator.save_state to go on from")
    options.add_argument("--tracking", action="store_true", help="write a TensorBoard log")
    options.add_argument("--project_dir", default="results/accelerate_gpt", help="where to")
    return options


def main() -> None:
    training_function(parser().parse_args(), standard_library_text())


if __name__ == "__main__":
    main()
