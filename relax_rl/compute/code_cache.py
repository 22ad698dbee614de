"""Machine code of compiled functions, kept between runs in a folder that is the user's own.

Whoever can write there could have this process run anything, so nothing is taken from a folder, or from a file, that
another user owns or may write to, or that is a link.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

__all__ = ["find", "folder", "package_digest", "workshop"]

VARIABLE = "RELAX_RL_CACHE"
"""Environment variable that names the folder; empty for none."""
_KEPT = 64
"""Files that are kept, the latest ones."""


def folder() -> Path | None:
    """The folder, made if need be; None where it cannot be used."""
    named = os.environ.get(VARIABLE)
    if named == "" or not hasattr(os, "getuid"):
        return None
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = Path(named) if named else Path(base, "relax_rl")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return path if _is_own(path, stat.S_ISDIR, forbidden=0o077) else None


def find(key: str) -> Path | None:
    """The file of machine code kept under a key, whole and nobody else's; None where there is none."""
    home = folder()
    if home is None:
        return None
    path = home / f"{key}.so"
    if not _is_own(path, stat.S_ISREG, forbidden=0o022):
        return None
    try:
        whole = _digest_file(path).read_text() == _digest(path)
    except (OSError, ValueError):
        whole = False
    if not whole:
        _remove(path)
        return None
    return path


@contextlib.contextmanager
def workshop(key: str | None) -> Iterator[Path]:
    """Where to compile: the file to write. It is kept under the key when the block ends well; for None it is removed."""
    home = None if key is None else folder()
    with tempfile.TemporaryDirectory(dir=home, prefix=".making-", ignore_cleanup_errors=True) as place:
        built = Path(place, "code.so")
        yield built
        if home is not None and key is not None:
            with contextlib.suppress(OSError):  # a full disk costs the next run its head start, not this one its life
                built.chmod(0o600)
                digest = Path(place, "digest")
                digest.write_text(_digest(built))
                target = home / f"{key}.so"
                os.replace(digest, _digest_file(target))
                os.replace(built, target)
                _forget_old(home)


@cache
def package_digest() -> str:
    """Of all source code of this package: code that was compiled from another is not taken."""
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _is_own(path: Path, kind: Callable[[int], bool], *, forbidden: int) -> bool:
    """Whether a path is this user's, of this kind and no link, with none of these permissions."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return kind(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & forbidden


def _digest_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _forget_old(home: Path) -> None:
    files = sorted(home.glob("*.so"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in files[_KEPT:]:
        _remove(path)


def _remove(path: Path) -> None:
    for each in (path, _digest_file(path)):
        with contextlib.suppress(OSError):
            each.unlink()
