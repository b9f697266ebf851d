"""Checkpoints as files: written whole or not at all, read without running anything. Knows nothing of their contents."""

import os
import pickle
import re
import secrets
import zipfile
from pathlib import Path
from typing import Any

import torch

from torch_bnb.checkpoint.formats.torchao import STAND_INS

# In a zip entry's attributes; torch reads nothing for such an entry and leaves the tensor's memory as it was.
_FOLDER = 0x10


_BEGINNINGS = (pickle.PROTO, b"P", b"")
"""Of a pickle, and of a zip file, be it cut; an empty one is torch's to refuse."""


class DamagedError(Exception):
    """What is wrong with a file, before its name is known."""


def save(obj: Any, path: str | os.PathLike) -> None:
    """Writes a checkpoint so that `path` is, at any moment, the old file or the new one, complete and on the disk.

    The file is written beside `path` under another name and then renamed. A process that is killed meanwhile leaves
    that other file (``.NAME.*.partial``) behind, never half a checkpoint.

    Args:
        obj: What ``torch.save`` takes. `load` reads back tensors, numbers, strings and plain containers of them.
        path: The file; its folder exists. A symbolic link is followed.

    Raises:
        OSError: It cannot be written. The old file, if any, is as it was.

    Example:
        >>> import os, tempfile, torch, torch_bnb as bnb
        >>> path = os.path.join(tempfile.mkdtemp(), "last.pt")
        >>> bnb.checkpoint.save({"step": 3, "weight": torch.zeros(2)}, path)
        >>> bnb.checkpoint.load(path)["step"]
        3
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{os.fspath(path)}: there is no folder {target.parent}")
    partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")
    try:
        with open(partial, "xb") as file:
            torch.save(obj, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Puts the new name on the disk too, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def load(path: str | os.PathLike) -> Any:
    """Reads a checkpoint onto the CPU without running anything that it says (``weights_only=True``).

    Every byte is checked against the file's checksums first, which torch does not do. torchao's 8-bit tensors are read
    without torchao, as stand-ins that `convert` and ``load_state_dict`` understand.

    Args:
        path: A file of ``torch.save``, this package's or another's.

    Raises:
        ValueError: It is damaged, no checkpoint, or refers to code; the file and the reason are named, in one line.
        OSError: It cannot be opened.
    """
    if os.path.isdir(path):
        raise IsADirectoryError(
            f"{os.fspath(path)} is a folder; expected a file of torch.save, as optimizer.bin in one of Accelerate's"
        )
    with open(path, "rb") as file:
        try:
            is_zip = zipfile.is_zipfile(file)
            file.seek(0)
            if not is_zip and (head := file.read(1)) not in _BEGINNINGS:
                raise DamagedError(f"it is no checkpoint of torch.save, whose files do not begin with {head!r}")
            if is_zip:
                with zipfile.ZipFile(file) as archive:
                    if damaged := archive.testzip():
                        raise DamagedError(f"it is damaged: the checksum of {damaged} is wrong")
                    if folders := [entry.filename for entry in archive.infolist() if entry.external_attr & _FOLDER]:
                        raise DamagedError(f"it is damaged: {folders[0]} is marked as a folder")
            file.seek(0)
            with torch.serialization.safe_globals(STAND_INS):
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a broken file makes of the unpickler
            raise ValueError(f"{os.fspath(path)}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """In one line; torch explains at length."""
    text = str(error)
    if isinstance(error, DamagedError):
        return text
    if code := re.search(r"GLOBAL (\S+) w", text):
        return f"it refers to {code[1]}, and a checkpoint from elsewhere may hold only tensors, numbers and containers"
    told = re.search(r"WeightsUnpickler error: *(.*)", text)
    first = (told[1] if told else text.strip().split("\n", 1)[0])[:160].strip()
    return f"it is damaged or no checkpoint of torch.save ({type(error).__name__}{': ' if first else ''}{first})"
