"""Where documents come from: a path that every host has, or any URL that fsspec opens.

Listings stream and read no content; of a store, fsspec gives one folder at a time, held in memory as a whole.
Nothing here decides what can be parsed: every regular file is listed, hidden ones too, and the parser says
what it cannot read. What is no file is listed with what it is instead.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from semantik.exceptions import Absent, DocumentError, NotFound, SemantikError

_COPY_BYTES = 1 << 20
#: Where a host keeps devices, its processes' memory and credentials, and never documents.
_NO_DOCUMENTS = {"proc", "sys", "dev", "run", "etc", "root"}
#: The error of a link to a directory, which may lead in a circle and is not followed: nobody has to mend it.
LINK_TO_DIRECTORY = "is a link to a directory"


@dataclass(frozen=True)
class Listed:
    """One document of a listing. `error` says why it cannot be one; its version is then unknown."""

    uri: str
    size: int | None  # bytes
    version: str | None  # changes when the content does: mtime in nanoseconds, or the store's ETag
    error: str | None = None
    #: A directory that could not be listed: what lies below is unknown, not gone.
    incomplete: bool = False
    #: By its nature no document, as `error` says: a FIFO, a socket, a device, a link that leads to no file.
    no_document: bool = False


def normalize(uri: str) -> str:
    """Return `uri` as the database keeps it: an absolute path, or a URL without a trailing slash.

    Raises NotFound for what cannot name a source on every host.
    """
    try:
        uri.encode("utf-8")
    except UnicodeEncodeError:
        raise NotFound(f"{uri!r} is not UTF-8: the name cannot be recorded, rename it") from None
    if "\0" in uri or not uri:
        raise NotFound(f"{uri!r} names no source")
    path = uri
    if "://" in uri:
        parts = urlsplit(uri)
        if parts.scheme not in ("file", "local"):
            # The two slashes before an empty host are the scheme's, however many follow.
            scheme, _, rest = uri.partition("://")
            if parts.scheme != "memory" and not parts.netloc:
                raise NotFound(f"{uri!r} names no bucket or host: write {scheme}://BUCKET/PREFIX")
            return f"{scheme}://{rest.rstrip('/')}"
        if parts.netloc not in ("", "localhost"):
            raise NotFound(
                f"{uri!r} names the host {parts.netloc!r}, and files are read where a worker is: "
                "write three slashes before an absolute path, file:///srv/documents"
            )
        path = unquote(parts.path)
    if not path.startswith("/"):
        raise NotFound(f"{uri!r} is relative and means another place on every host: give the absolute path")
    path = os.path.normpath(path).replace("//", "/")
    # Through links too, where this host has the path: what a worker would refuse one by one is refused whole.
    for place in (path, os.path.realpath(path)):
        if place == "/" or not _NO_DOCUMENTS.isdisjoint(Path(place).parts[1:2]):
            raise NotFound(
                f"{path} holds no documents, but the host's own files: name a folder below /srv, for example"
            )
    return path


def is_local(uri: str) -> bool:
    """Return whether `uri` (as `normalize` returns it) is a path."""
    return uri.startswith("/")


def list_source(uri: str) -> Iterator[Listed]:
    """Yield every document under `uri`, in no order, in memory that does not grow with their number.

    What cannot be one has an `error`: nothing below `uri` but directories is left out.
    Raises Absent when there is nothing at `uri`, NotFound when it can be no source, SemantikError when it
    cannot be listed at all.
    """
    return _list_local(uri) if is_local(uri) else _list_remote(uri)


def _list_local(root: str) -> Iterator[Listed]:
    try:
        found = Path(root).stat()
    except (FileNotFoundError, NotADirectoryError):
        raise Absent(
            f"{root} does not exist here: is the share mounted, and at the same path on all hosts?"
        ) from None
    except OSError as error:
        raise SemantikError(
            f"{root} cannot be read: {error.strerror}; it must be readable for semantik-svc"
        ) from error
    if stat.S_ISREG(found.st_mode):
        yield Listed(root, found.st_size, str(found.st_mtime_ns))
        return
    if not stat.S_ISDIR(found.st_mode):
        raise NotFound(f"{root} is neither a directory nor a regular file")
    try:
        # One open directory per level: a depth, not a width, is what this holds.
        levels = [os.scandir(root)]
    except OSError as error:
        raise SemantikError(
            f"{root} cannot be listed: {error.strerror}; it must be readable for semantik-svc"
        ) from error
    try:
        while levels:
            try:
                entry = next(levels[-1], None)
            except OSError as error:  # the share went away under the listing
                raise SemantikError(f"listing {root} broke off: {error.strerror}") from error
            if entry is None:
                levels.pop().close()
                continue
            try:
                # Links to files are followed; links to directories may loop, and are not.
                if entry.is_dir(follow_symlinks=False):
                    levels.append(os.scandir(entry.path))
                elif entry.is_file():
                    yield _listed(entry)
                else:
                    yield Listed(_text(entry.path), None, None, _kind(entry), no_document=True)
            except FileNotFoundError:
                continue  # gone since the directory was read
            except OSError as error:
                yield Listed(
                    _text(entry.path), None, None, f"cannot be read: {error.strerror}", incomplete=True
                )
    finally:
        for level in levels:
            level.close()


def _listed(entry: os.DirEntry[str]) -> Listed:
    found = entry.stat()
    name = _text(entry.path)
    if name != entry.path:
        return Listed(name, found.st_size, None, "its name is not UTF-8: rename it")
    return Listed(name, found.st_size, str(found.st_mtime_ns))


def _kind(entry: os.DirEntry[str]) -> str:
    """Say what an entry is that is neither a file nor a directory."""
    if entry.is_symlink():
        return LINK_TO_DIRECTORY if entry.is_dir() else "is a link to no file"
    mode = entry.stat(follow_symlinks=False).st_mode
    kinds = ((stat.S_ISFIFO, "is a FIFO"), (stat.S_ISSOCK, "is a socket"))
    return next((name for test, name in kinds if test(mode)), "is a device")


def _text(path: str) -> str:
    """Return `path` as text that UTF-8 can hold, bytes that it cannot as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _filesystem(uri: str) -> tuple[Any, str]:
    import fsspec

    scheme = uri.partition("://")[0]
    try:
        # Not url_to_fs: it takes "::", which a key may hold, for a chain of filesystems and opens another
        # name.
        kind = fsspec.get_filesystem_class(scheme)
        # Without a cache of listings, which would grow with the number of objects.
        options = {"use_listings_cache": False, **kind._get_kwargs_from_urls(uri)}
        path = kind._strip_protocol(uri)
        # Some kinds leave the first slash away where they take the rest for a chain.
        path = path if path.startswith(kind.root_marker) else f"{kind.root_marker}{path}"
        return fsspec.filesystem(scheme, **options), path
    except (ImportError, ValueError) as error:
        raise NotFound(f"{uri}: {' '.join(str(error).split())}") from error
    except OSError as error:  # some kinds connect at once
        raise SemantikError(f"{uri} cannot be reached: {error.strerror or error}") from error


def _list_remote(uri: str) -> Iterator[Listed]:
    filesystem, root = _filesystem(uri)
    try:
        top = filesystem.info(root)
    except FileNotFoundError:
        raise Absent(f"there is nothing at {uri}") from None
    except Exception as error:
        raise SemantikError(f"{uri} cannot be read: {' '.join(str(error).split())}") from error
    # Names under the root as it was given, so that the next listing's are the same.
    below = len(str(top["name"]).rstrip("/"))
    if top["type"] == "file":
        yield _listed_remote(uri, top)
        return
    try:
        for _, _, files in filesystem.walk(root, detail=True, on_error="raise"):
            for info in files.values():
                # An object that stands for its own directory has an empty name.
                if info["type"] == "file" and not info["name"].endswith("/"):
                    yield _listed_remote(f"{uri}{info['name'][below:]}", info)
    except Exception as error:  # every store has exceptions of its own
        raise SemantikError(f"listing {uri} broke off: {' '.join(str(error).split())}") from error


def _listed_remote(uri: str, info: dict[str, Any]) -> Listed:
    keys = ("ETag", "etag", "mtime", "LastModified", "created")
    version = next((info[key] for key in keys if info.get(key)), None)
    return Listed(uri, info.get("size"), None if version is None else str(version).strip('"'))


def open_source(uri: str, *, most_bytes: int = 0) -> int:
    """Return a descriptor to read the document at `uri`; the caller closes it.

    A path is opened where it is; what another scheme names is copied into an anonymous file first, up to
    `most_bytes` (0: no limit). Raises FileNotFoundError when it has vanished, DocumentError when it is no
    regular file, cannot be read, is larger, or is a link to nowhere or to what is no document of this host's.
    """
    if not is_local(uri):
        return _fetch(uri, most_bytes)
    try:
        # O_NONBLOCK: opening a FIFO that appeared under the name must not hang.
        descriptor = os.open(uri, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError) as error:
        if Path(uri).is_symlink():
            # The listing saw a file behind it, so that it is this host which lacks the target, a share maybe.
            raise DocumentError("is a link to what this host does not have") from error
        raise FileNotFoundError(uri) from error
    except OSError as error:
        raise DocumentError(f"cannot be opened: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise DocumentError("is no regular file")
        # Whoever may put a file into the source may put a link there, and the service reads more than they
        # do: its credentials below /run, its environment in /proc, settings in /etc. A search would show
        # them. The open descriptor is asked, since the name may lead elsewhere a moment later.
        behind = Path(f"/proc/self/fd/{descriptor}").readlink()
        if not _NO_DOCUMENTS.isdisjoint(behind.parts[1:2]):
            raise DocumentError(f"leads to /{behind.parts[1]}, which holds no documents")
        if most_bytes and found.st_size > most_bytes:
            raise _too_large(most_bytes)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _fetch(uri: str, most_bytes: int) -> int:
    try:
        filesystem, path = _filesystem(uri)
        with filesystem.open(path, "rb") as remote, tempfile.TemporaryFile() as local:
            copied = 0
            while block := remote.read(_COPY_BYTES):
                copied += len(block)
                if most_bytes and copied > most_bytes:
                    raise _too_large(most_bytes)
                local.write(block)
            local.seek(0)
            return os.dup(local.fileno())
    except (FileNotFoundError, DocumentError):
        raise
    except Exception as error:  # every store has exceptions of its own
        raise DocumentError(
            f"cannot be fetched: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error


def _too_large(most_bytes: int) -> DocumentError:
    return DocumentError(f"is larger than SEMANTIK_DOCUMENT_MAX_MB ({most_bytes >> 20} MB)")


def folder(uri: str) -> str:
    """Return what holds the document at `uri`."""
    return uri.rpartition("/")[0] or "/"


def visible(root: str) -> bool:
    """Return whether anything is at `root` on this host: false for an unmounted share's empty mountpoint."""
    if not is_local(root):
        return True
    try:
        with os.scandir(root) as entries:
            return any(True for _ in entries)
    except NotADirectoryError:
        return True
    except OSError:
        return False
