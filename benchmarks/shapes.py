"""What is stepped: sets of parameter shapes, from one large tensor to real models. Knows no optimizer."""

import argparse
import math
import re
from collections.abc import Iterator
from itertools import chain, repeat

Shape = tuple[int, ...]


def _times(count: int, block: list[Shape]) -> Iterator[Shape]:
    return chain.from_iterable(repeat(block, count))


def gpt2() -> list[Shape]:
    """GPT-2 with 124M parameters (Radford et al. 2019): 12 blocks of width 768, the head tied to the embedding."""
    width = 768
    norm = [(width,), (width,)]
    attention = [(width, 3 * width), (3 * width,), (width, width), (width,)]
    feed_forward = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(50257, width), (1024, width), *_times(12, [*norm, *attention, *norm, *feed_forward]), *norm]


def llama() -> list[Shape]:
    """SmolLM-135M, a small Llama: 30 blocks of width 576, 9 heads that share 3 keys and values, a tied head."""
    width, keys, hidden = 576, 192, 1536
    attention = [(width, width), (keys, width), (keys, width), (width, width)]
    feed_forward = [(hidden, width), (hidden, width), (width, hidden)]
    return [(49152, width), *_times(30, [*attention, *feed_forward, (width,), (width,)]), (width,)]


def vit() -> list[Shape]:
    """ViT-B/16 for 224 pixels and 1000 classes (arXiv 2010.11929): 12 blocks of width 768."""
    width = 768
    stem = [(1, 1, width), (1, 197, width), (width, 3, 16, 16), (width,)]
    norm = [(width,), (width,)]
    attention = [(3 * width, width), (3 * width,), (width, width), (width,)]
    feed_forward = [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return [*stem, *_times(12, [*norm, *attention, *norm, *feed_forward]), *norm, (1000, width), (1000,)]


NAMED = {
    "large": [(4096, 4096)],
    "small": [(64, 64)] * 1000,
    "gpt2": gpt2(),
    "llama": llama(),
    "vit": vit(),
}
TITLES = {
    "large": "one tensor of 16M",
    "small": "1000 tensors of 64x64",
    "gpt2": "GPT-2",
    "llama": "SmolLM-135M (Llama)",
    "vit": "ViT-B/16",
}


def shapes(name: str) -> list[Shape]:
    """The shapes of a name in `NAMED`, or of a size such as ``16M`` or ``64K``: one tensor of so many elements."""
    if name in NAMED:
        return NAMED[name]
    count, unit = re.fullmatch(r"(\d+)([KM])", name).groups()
    return [(int(count), 1024 if unit == "K" else 1024**2)]


def title(name: str) -> str:
    """A name for people."""
    return TITLES.get(name, f"one tensor of {name}")


def parameters(name: str) -> int:
    """Elements in all tensors together."""
    return sum(math.prod(shape) for shape in shapes(name))


def parse(text: str) -> str:
    """A name that `shapes` knows; the error, which argparse shows behind the option, says which there are."""
    if text in NAMED or re.fullmatch(r"[1-9]\d*[KM]", text):
        return text
    raise argparse.ArgumentTypeError(f"{text!r}: expected one of {', '.join(NAMED)}, or one tensor's size such as 16M")
