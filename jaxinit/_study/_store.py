"""Studies on disk: an npz of arrays and one JSON header, written atomically and checked when read.

A file is written beside its final path and then moved there, so readers always find the last complete version, even if
the writer is killed. Nothing in it is pickled: an untrusted file can be wrong, but it cannot run code.
"""

import contextlib
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = "jaxinit study"
VERSION = 1
_HEADER = "header"


def write(path: str | os.PathLike[str], header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Writes a study, either as a whole or not at all."""
    path = Path(path)
    text = json.dumps({"format": FORMAT, "version": VERSION, **header}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            np.savez(file, **{_HEADER: np.frombuffer(text, np.uint8), **arrays})  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
        raise


def read(path: str | os.PathLike[str], contents: bytes | None = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of a study, from the file or from what was in it.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, or not a study.
    """
    try:
        with open(path, "rb") if contents is None else io.BytesIO(contents) as file:
            if not zipfile.is_zipfile(file):
                raise ValueError("it is not an npz file, or it is cut short")
            file.seek(0)
            with np.load(file, allow_pickle=False) as entries:
                arrays = {name: entries[name] for name in entries.files}
        header = json.loads(arrays.pop(_HEADER).tobytes())
    except FileNotFoundError:
        raise
    except (ValueError, TypeError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is damaged, or not a study of jaxinit ({error}); pass another path, or move the file away"
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{path} is not a study of jaxinit; pass another path, or move the file away")
    if header.get("version") != VERSION:
        raise ValueError(
            f"{path} is a study in format {header.get('version')!r}, and this version of jaxinit reads format "
            f"{VERSION}; read it with the version that wrote it, or pass another path"
        )
    return header, arrays
