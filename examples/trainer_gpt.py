"""Trains a small GPT-2, built from a config, with transformers' Trainer and 8-bit AdamW on Python's standard library.

    python examples/trainer_gpt.py --steps 100

Nothing is downloaded: a token is a byte. Saves at the end, and resumes with --resume.
"""

import argparse
from typing import Any

from byte_gpt import VOCABULARY, Windows, standard_library_text
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

import torch_bnb as bnb
from accelerate_bnb import BnbOptimizerPlugin, optimizer_factory


class Examples(Dataset):
    """Windows of bytes as Trainer takes them; GPT2LMHeadModel shifts the labels itself."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens, _ = self.windows[index]
        return {"input_ids": tokens, "labels": tokens}


def make_trainer(out: str, steps: int, save_steps: int, seed: int = 0, **model: Any) -> Trainer:
    set_seed(seed)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=128, bos_token_id=0, eos_token_id=0, **model)
    args = TrainingArguments(
        out,
        max_steps=steps,
        per_device_train_batch_size=16,
        learning_rate=1e-3,
        weight_decay=0.1,
        warmup_steps=max(1, steps // 20),
        save_steps=save_steps,
        logging_steps=max(1, steps // 10),
        seed=seed,
        use_cpu=True,
        report_to="none",
    )
    plugin = BnbOptimizerPlugin(optimizer="adamw8bit")  # embeddings at 32 bits, as Trainer arranges it for bitsandbytes
    chosen = {"lr": args.learning_rate, "weight_decay": args.weight_decay}  # Trainer passes on neither
    windows = Windows(standard_library_text(), 128, steps * 16, seed)
    return Trainer(
        GPT2LMHeadModel(config),
        args,
        train_dataset=Examples(windows),
        optimizer_cls_and_kwargs=(optimizer_factory(plugin), chosen),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="results/trainer_gpt", help="folder for checkpoints")
    parser.add_argument("--steps", type=int, default=200, help="default 200")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    args = parser.parse_args()
    trainer = make_trainer(args.out, args.steps, max(1, args.steps // 2), n_embd=128, n_layer=4, n_head=4)
    trainer.train(resume_from_checkpoint=args.resume)
    print(bnb.report(trainer.optimizer.optimizer).headline)


if __name__ == "__main__":
    main()
