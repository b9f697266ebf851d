"""FSDP1's checkpoints: state in a form that it can shard, and state to load into. Knows no plugin."""

from torch_bnb.optim import BlockwiseOptimizer


def make_loadable(optimizer: BlockwiseOptimizer) -> None:
    """Lets an optimizer under FSDP1 be saved and loaded by Accelerate, once model and optimizer are prepared.

    FSDP1 gathers and shards state as it does parameters and knows nothing of 8 bits, so state is portable. And it loads
    only the entries that an optimizer has: into a fresh one, none and without a word, so they are made here.
    """
    optimizer.checkpoint_format = "portable"
    optimizer.make_state()
