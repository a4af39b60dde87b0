"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from toolprm_decode.errors import DataError


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
