"""PyTorch's samplers and draws on the same device, in a process of their own: python torch_peers.py '{...}'

Another library of CUDA programs, loaded beside JAX, must not crash a run that has other things to measure; and it uses
the memory that JAX leaves. The file reads JSON with `shapes`, `draw_shape` and `seconds`, and prints one line of JSON
after each row, so that a run that is stopped keeps what it has printed.
"""

import contextlib
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

HERE = pathlib.Path(__file__).resolve()
LEAST_FREE = 4 * 2**30
"""Bytes of free device memory below which PyTorch is not measured."""


def started(shapes: Any, draw_shape: Any, seconds: float) -> dict[str, Any]:
    """Runs this file; returns row name → figures, and the other output."""
    request = json.dumps({"shapes": shapes, "draw_shape": draw_shape, "seconds": seconds})
    command = [sys.executable, str(HERE), request]
    try:
        # Its own limit comes first; this one is for a process that hangs.
        ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30)
        output, errors, state = ended.stdout, ended.stderr, f"exit status {ended.returncode}"
    except subprocess.TimeoutExpired as error:
        output, errors, state = _text(error.stdout), _text(error.stderr), "ended for taking too long"
    rows: dict[str, Any] = {}
    for line in output.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows |= json.loads(line)
    if not rows:
        raise RuntimeError(f"PyTorch returned no row ({state}): {errors[-2000:]}")
    return {"contenders": rows, "state": state, "errors": errors[-2000:]}


def _text(output: Any) -> str:
    return output.decode() if isinstance(output, bytes) else output or ""


def main() -> None:
    """Prints a row for each shape."""
    sys.path.insert(0, str(HERE.parent.parent))
    import torch

    request = json.loads(sys.argv[1])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    end = time.perf_counter() + request["seconds"]
    _print("about", {"torch": torch.__version__, "device": str(device), "cuda": torch.version.cuda})
    if device.type == "cuda" and torch.cuda.mem_get_info()[0] < LEAST_FREE:
        raise MemoryError(f"only {torch.cuda.mem_get_info()[0]} bytes of device memory are free")
    rows = {f"haar {'×'.join(map(str, shape))}": _haar(torch, device, shape) for shape in request["shapes"]}
    rows |= _draws(torch, device, request["draw_shape"])
    for name, contenders in rows.items():
        if time.perf_counter() > end:
            _print(name, {"skipped": "the section's time was spent"})
            continue
        try:
            _print(name, _measured(torch, device, contenders))
        except Exception as error:  # the other rows are still wanted
            _print(name, {"failed": f"{type(error).__name__}: {error}"[:2000]})


def _print(name: str, row: dict[str, Any]) -> None:
    print(json.dumps({name: row}), flush=True)


def _haar(torch: Any, device: Any, shape: list[int]) -> dict[str, Callable[[], Any]]:
    *batch, n, m = shape
    tall = (*batch, max(n, m), min(n, m))

    def qr() -> Any:
        q, r = torch.linalg.qr(torch.randn(tall, device=device))
        q = q * torch.diagonal(r, dim1=-2, dim2=-1).sign().unsqueeze(-2)
        return q.mT if n < m else q

    contenders = {"torch.linalg.qr": qr}
    if not batch:
        contenders["torch.nn.init"] = lambda: torch.nn.init.orthogonal_(torch.empty(n, m, device=device))
    return contenders


def _draws(torch: Any, device: Any, shape: list[int]) -> dict[str, dict[str, Callable[[], Any]]]:
    rows = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        held = torch.empty(shape, device=device, dtype=dtype)
        calls = {
            "normal": held.normal_,
            "truncated normal": lambda held=held: torch.nn.init.trunc_normal_(held, 0.0, 1.0, -2.0, 2.0),
            "uniform": held.uniform_,
        }
        rows |= {f"{kind}, {name}": {"torch": call} for kind, call in calls.items()}
    return rows


def _measured(torch: Any, device: Any, contenders: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    import numpy as np
    from _timing import interleaved

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def once(call: Callable[[], Any], count: int) -> Callable[[], None]:
        def run() -> None:
            results = [call() for _ in range(count)]
            wait()
            del results

        return run

    wait()
    times = interleaved({name: once(call, 1) for name, call in contenders.items()}, 0.3, pause=0)
    found = {name: {"ms": 1e3 * float(np.median(t))} for name, t in times.items()}
    short = {name: call for name, call in contenders.items() if found[name]["ms"] < 2}
    if short:
        times = interleaved({name: once(call, 20) for name, call in short.items()}, 0.3, pause=0)
        for name, t in times.items():
            found[name]["queued_ms"] = 1e3 * float(np.median(t)) / 20
    return found


if __name__ == "__main__":
    main()
