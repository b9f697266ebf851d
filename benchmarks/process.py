"""Calls a function in a new Python process, where nothing has run yet, and gives up on it after a while.

    call("benchmarks.memory:alone", {"bits": 8, ...}, limit=60)

Arguments and result travel as JSON. The process leads a session of its own, so that whatever it started, a compiler's
workers included, ends with it.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class Failed(RuntimeError):
    """The process failed or took too long; the message says which."""


def call(
    function: str, arguments: Mapping[str, Any], limit: float, environment: Mapping[str, str] | None = None
) -> Any:
    """Runs a function in a new process.

    Args:
        function: ``module:name``.
        arguments: By name.
        limit: Seconds.
        environment: Variables to set in it.

    Returns:
        What the function returned.

    Raises:
        Failed: With the last line that the process wrote, or the limit that it passed.
    """
    with tempfile.TemporaryDirectory() as folder:
        result, errors = Path(folder, "result.json"), Path(folder, "errors.txt")
        command = [sys.executable, "-m", "benchmarks.process", function, json.dumps(dict(arguments)), str(result)]
        with errors.open("w") as stream:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(Path(folder, "compiled")), **(environment or {})},
                stdout=subprocess.DEVNULL,
                stderr=stream,
                start_new_session=True,
            )
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                raise Failed(f"stopped after its limit of {limit:g} s") from None
            finally:
                _end(process)
        if code == 0:
            return json.loads(result.read_text())
        said = errors.read_text().strip().splitlines() or [f"no word, exit status {code}"]
        raise Failed(said[-1])


def _end(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    _, _function, _arguments, _result = sys.argv
    _module, _, _name = _function.partition(":")
    _returned = getattr(importlib.import_module(_module), _name)(**json.loads(_arguments))
    Path(_result).write_text(json.dumps(_returned))
