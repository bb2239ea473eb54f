"""Downloads a file, resumable, into a temporary name that becomes the real one when the file is whole."""

from __future__ import annotations

import os
import sys
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from rlseq.errors import DataError

_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 20


def download(url: str, target: Path) -> None:
    """`url` -> `target`, by way of ``<target>.part``; a part that is there already is continued.

    Shows a progress bar on a terminal. The part is locked, so that two processes do not write into each other.

    Raises:
        DataError: another process downloads it, the server cannot be reached or refuses, or the connection ended
            early; a part that holds anything stays, and the next call goes on from there. Or the file cannot be
            written.
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            _lock(file, part)
            try:
                if target.is_file():
                    return
                if not _is_at(file, part):  # removed, empty, by the process that had it open before
                    raise DataError(_busy(part))
                _fetch(url, target, file)
                file.flush()
                os.fsync(file.fileno())
                part.replace(target)
            finally:
                file.flush()
                if not os.fstat(file.fileno()).st_size and _is_at(file, part):
                    part.unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(
            f"download: {target} must be a file that can be written, got {reason}. Name another folder in "
            f"D4RL_DATASET_DIR, or make room."
        ) from error


def _lock(file: IO[bytes], part: Path) -> None:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(_busy(part)) from error


def _is_at(file: IO[bytes], path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def _fetch(url: str, target: Path, file: IO[bytes]) -> None:
    have = file.tell()
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urlopen(request, timeout=_TIMEOUT) as response:
            if have and response.status != 206:  # the server has no ranges and sends the file from its start
                file.truncate(have := 0)
            length = response.headers.get("Content-Length")
            whole = have + int(length) if length is not None else None
            _copy(response, file, target.name, have, whole)
    except HTTPError as error:
        error.close()
        whole = _size_of_refused_range(error)
        if whole is None:
            raise DataError(_failed(url, target, f"status {error.code}")) from error
        if whole < have:
            file.truncate(0)
            raise DataError(_failed(url, target, f"a part longer than the file's {whole} bytes")) from error
    except (URLError, HTTPException, OSError) as error:
        raise DataError(_failed(url, target, f"{getattr(error, 'reason', error)}")) from error
    have = os.fstat(file.fileno()).st_size
    if whole is not None and have != whole:
        raise DataError(_failed(url, target, f"{have} of {whole} bytes"))


def _copy(response: IO[bytes], file: IO[bytes], name: str, have: int, whole: int | None) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(name, total=whole, completed=have)
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            progress.advance(task, len(chunk))
    file.flush()


def _size_of_refused_range(error: HTTPError) -> int | None:
    """Size of the file, from the answer to a range that starts at or after its end (``Content-Range: bytes */123``)."""
    size = (error.headers.get("Content-Range") or "").rpartition("/")[2]
    return int(size) if error.code == 416 and size.isdigit() else None


def _busy(part: Path) -> str:
    return f"download: {part} must be free, got another process at it. Wait for that one."


def _failed(url: str, target: Path, reason: str) -> str:
    return (
        f"download: {url} must arrive whole, got {reason}. Try again (it goes on where it stopped), or store the file "
        f"yourself as {target}."
    )
