"""Where the files of a data set lie: in a folder of the user's, in the cache, or out in the world; each with its checksum."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relax_rl.compute.installation import install_line
from relax_rl.compute.serialization import replacing, writing
from relax_rl.errors import RelaxRLError, SettingsError

__all__ = ["DataFile", "cache_dir", "fetch", "find", "needs_extra", "read", "read_verified"]

TIMEOUT = 30.0
"""Seconds without an answer after which a mirror is given up."""


@dataclass(frozen=True)
class DataFile:
    """A published file.

    Attributes:
        name: of the file.
        folder: where it lies in a data folder that keeps one folder a data set.
        algorithm: of the checksum: a name known to `hashlib`, or "git-blob" (SHA-1 as git computes it for a file).
        checksum: hexadecimal.
        urls: addresses of the file itself, tried in this order; none where it cannot be downloaded.
    """

    name: str
    folder: str
    algorithm: str
    checksum: str
    urls: tuple[str, ...] = ()


def find(file: DataFile, data_dir: str | os.PathLike[str]) -> Path | None:
    """The file in a folder that holds it directly or in the data set's own folder; None if it is in neither.

    Raises:
        SettingsError: there is no such folder.
    """
    folder = Path(data_dir).expanduser()
    try:
        there = folder.is_dir()
    except OSError:  # a name that is too long for any
        there = False
    if not there:
        raise SettingsError(f"data_dir is {str(data_dir)!r}, which is no folder; give the folder that holds the data")
    places = (folder / file.name, folder / file.folder / file.name)
    return next((place for place in places if place.is_file()), None)


def read(path: Path) -> bytes:
    """The content of a file.

    Raises:
        RelaxRLError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise RelaxRLError(f"{path} cannot be read: {error.strerror or error}") from None


def read_verified(path: Path, file: DataFile) -> bytes:
    """The content of a local copy.

    Raises:
        RelaxRLError: it cannot be read, or is not the published file.
    """
    data = read(path)
    if (found := _checksum(data, file.algorithm)) != file.checksum:
        raise RelaxRLError(
            f"{path} is damaged or another file: its {file.algorithm} is {found}, expected {file.checksum}; "
            "replace it, or leave out --data-dir to download it"
        )
    return data


def cache_dir() -> Path:
    """The folder of downloaded data in the user's cache.

    Raises:
        SettingsError: the extra `experiments` is missing.
    """
    with needs_extra("downloading data"):
        import pooch
    return Path(pooch.os_cache("relax_rl"))


def fetch(file: DataFile, show: Callable[[str], None]) -> bytes:
    """The content of a file from the cache, or downloaded into it from the first mirror that has it whole.

    Args:
        file: with at least one address.
        show: takes a line for each download.

    Raises:
        RelaxRLError: no mirror answers with the right file, or the cache cannot be written.
        SettingsError: the extra `experiments` is missing.
    """
    cached = cache_dir() / file.folder / file.name
    if cached.is_file():
        try:
            return read_verified(cached, file)
        except RelaxRLError as error:
            show(f"{str(error).partition('; ')[0]}; downloading it again")
    with writing(cached.parent):
        cached.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for url in file.urls:
        show(f"downloading {url}")
        try:
            return _download(url, file, cached)
        except (OSError, ValueError) as error:
            failures.append(f"{url}: {_cause(error)}")
    raise RelaxRLError(
        f"{file.name} could not be downloaded ({'; '.join(failures)}): put it into a folder yourself and give that "
        "with --data-dir, or use --data digits, which needs no network"
    )


@contextmanager
def needs_extra(what: str) -> Iterator[None]:
    """Turn a missing package of the extra `experiments` into one line.

    Raises:
        SettingsError: in place of ImportError.
    """
    try:
        yield
    except ImportError as error:
        raise SettingsError(f"{what} needs {error.name}: {install_line('experiments')}") from None


def _download(url: str, file: DataFile, target: Path) -> bytes:
    """Into a file beside `target`, which takes its place once the checksum is right."""
    from pooch import HTTPDownloader

    bar = _DownloadBar(file.name) if sys.stdout.isatty() else None
    try:
        with replacing(target) as temporary:
            HTTPDownloader(progressbar=bar or False, timeout=TIMEOUT)(url, str(temporary), None)
            data = temporary.read_bytes()
            if (found := _checksum(data, file.algorithm)) != file.checksum:
                raise ValueError(f"its {file.algorithm} is {found}, expected {file.checksum}")
        return data
    finally:
        if bar is not None:
            bar.close()


class _DownloadBar:
    """A line with a bar, which pooch drives in bytes through `total`, `update` and `reset`."""

    def __init__(self, name: str) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns: Sequence[Any] = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._bars = Progress(*columns, transient=True)
        self._task = self._bars.add_task("", total=None)
        self._bars.start()
        self.total = 0

    def update(self, count: int) -> None:
        self._bars.update(self._task, advance=count, total=self.total or None)

    def reset(self) -> None:
        self._bars.reset(self._task)

    def close(self) -> None:
        self._bars.stop()


def _checksum(data: bytes, algorithm: str) -> str:
    if algorithm == "git-blob":
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()


def _cause(error: Exception) -> str:
    """The innermost reason, on one line: downloaders wrap it several times."""
    cause: BaseException = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    return " ".join(str(cause).split())[:160] or type(cause).__name__
