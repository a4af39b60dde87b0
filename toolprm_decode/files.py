"""Files that are there as a whole or not at all, and what tells model folders apart."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

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
