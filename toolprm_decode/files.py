"""Files: JSON in and out, written as a whole or not at all, and what tells model folders apart."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolprm_decode.errors import DataError, RequestError


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file under another name and renames it, so that neither a kill nor a full disk leaves half of it.

    Raises DataError, which names the file; what was there before stays.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # else a power cut may undo the renaming
            finally:
                os.close(folder)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); what was finished before is kept and nothing in "
            "it was lost: free space or mend the folder, and run the same command again"
        ) from error


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises RequestError, in one line that names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: not UTF-8 text ({error})") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: not JSON ({error})") from error


def check_place(path: Path | None) -> None:
    """Raises RequestError where the folder of a file that is to be written later is not there."""
    if path is not None and not path.parent.is_dir():
        raise RequestError(f"{path.parent}: there is no such folder")
    if path is not None and path.is_dir():
        raise RequestError(f"{path} is a folder, not a file")


def finite(value: Any) -> Any:
    """A JSON value with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path | None, value: Any) -> None:
    """Writes a value as indented JSON, with null for NaN; None is nowhere. Raises RequestError that names the file."""
    if path is None:
        return
    try:
        path.write_text(json.dumps(finite(value), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}") from error


def fingerprint(model: str | os.PathLike[str]) -> str:
    """Tells the weights of a model folder from others, without reading all of them; a hub id stands for itself."""
    folder = Path(os.path.expanduser(model))
    if not folder.is_dir():
        return os.fspath(model)
    digest = hashlib.sha256()
    try:
        for path in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".bin", ".model")):
            size = path.stat().st_size
            digest.update(f"{path.name}:{size};".encode())
            with path.open("rb") as file:
                for start in range(0, size, max(1 << 16, size // 64)):  # training moves every weight
                    file.seek(start)
                    digest.update(file.read(1 << 16))
    except OSError as error:
        raise RequestError(f"{folder}: {error.strerror or error}") from error
    return digest.hexdigest()[:16]
