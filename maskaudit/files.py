"""Files: written whole or not at all, and named in reports without telling where on a disk they lie."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from maskaudit.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: Share of the memory of the machine, or of what this process may take of it, that one file may take: its bytes and
#: what is made of them are held at once.
FILE_SHARE = 1 / 4
#: The same in bytes where the system does not say how much it has.
USUAL_FILE = 4 * 2**30
#: Bytes that are read at once.
PORTION = 1 << 26


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file in the same folder, then rename it.

    Raises:
        OSError: when the folder cannot be written, or the name is that of a folder, a device or a pipe, which the
            renaming would replace; nothing is left behind.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "It is a folder, a device or a pipe", str(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def is_file(path: Path) -> bool:
    """Whether a regular file lies there; a name that cannot be looked up (too long, a NUL inside) names none."""
    return _looked_up(path.is_file)


def is_folder(path: Path) -> bool:
    """Whether a folder lies there, with the same answer for a name that cannot be looked up."""
    return _looked_up(path.is_dir)


def _looked_up(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except (OSError, ValueError):
        return False


def read_bounded(path: Path, most: int, where: str, *, hint: str = "") -> bytes:
    """The content of a file of at most `most` bytes, checked before more than that is read.

    Args:
        where: the file as messages name it; hint: what to do where it cannot be read.

    Raises:
        InputError: it cannot be read, or is larger.
    """
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size  # 0 for a pipe
            content = _up_to(stream, size or most) if size <= most else None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}{hint}.") from error
    if content is None or len(content) > most:
        limit = f"{most >> 20} MiB" if most >= 1 << 20 else f"{most} bytes"
        raise InputError(f"{where} is larger than {limit} and is refused.")
    return content


def _up_to(stream: IO[bytes], most: int) -> bytes:
    """At most one byte more than `most`, in portions: `read` sets aside the memory that it is asked to fill."""
    parts: list[bytes] = []
    left = most + 1
    while left and (part := stream.read(min(left, PORTION))):
        parts.append(part)
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can be asked to."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def only_one_in(folder: Path | None) -> Iterator[None]:
    """Keep every other process that asks for the same out of a folder; the lock ends with the process that holds it.

    Nothing is locked without a folder, nor where the system or the file system cannot lock one.

    Raises:
        InputError: when another process is in there, or the folder cannot be made.
    """
    with contextlib.ExitStack() as stack:
        if folder is not None and fcntl is not None:
            try:
                folder.mkdir(parents=True)
                stack.callback(_remove_empty, folder)
            except FileExistsError:
                pass
            except OSError as error:
                raise InputError(f"The folder {folder} cannot be made: {error.strerror or error}.") from error
            with contextlib.suppress(OSError):  # one that cannot be read, or a file system without locks
                _lock(folder, stack)
        yield


def _lock(folder: Path, stack: contextlib.ExitStack) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"Another audit is at work in {folder}: wait until it has ended, or name another folder with --out."
        ) from None


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def shown_path(name: str) -> str:
    """A source file as reports name it: relative to the working folder, or to the import path it was found on."""
    return _relative(name, (os.getcwd(), *sorted((root for root in sys.path if root), key=len, reverse=True)))


@functools.lru_cache(maxsize=4096)
def _relative(name: str, roots: tuple[str, ...]) -> str:
    path = Path(name)
    for root in roots:
        with contextlib.suppress(ValueError):
            return path.relative_to(root).as_posix()
    return path.as_posix()


def largest_file() -> int:
    """Most bytes that a file, or what is unpacked from it, may take."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return USUAL_FILE
    return int(FILE_SHARE * min(memory, _allowed() or memory))


def _allowed() -> int:
    """Bytes that this process may take, where it was given a limit; else 0."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrlimit(resource.RLIMIT_DATA)[0]
    return 0 if most == resource.RLIM_INFINITY else most
