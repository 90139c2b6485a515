"""Everything the layer driver raises, as one tree (driver.md part 2, "Exceptions").

Three questions an engine asks are answered by the class alone: may another storage driver be tried
(``DriverNotSupportedError``), is the caller wrong (the ``ValueError`` family), or is the layer
hostile (``ArchiveError``). Classes that also have a natural place in Python's own tree inherit from
both, so that ``except FileNotFoundError`` works for code that has never heard of this project.
Whatever the operating system refuses and nothing here describes better stays a plain ``OSError``.
"""

import errno
import os


class DriverError(Exception):
    """Base of everything below."""


class DriverNotSupportedError(DriverError):
    """The driver cannot work on this host; an engine may go on to its next driver."""


class AufsNotSupportedError(DriverNotSupportedError):
    """FUSE cannot be mounted here at all.

    Args:
        reason: what is missing, one line; it follows the text that engines know.
    """

    TEXT = "AUFS was not found in /proc/filesystems"

    def __init__(self, reason: str = "") -> None:
        super().__init__(f"{self.TEXT}: {reason}" if reason else self.TEXT)
        self.reason = reason

    def __reduce__(self) -> tuple[type["AufsNotSupportedError"], tuple[str]]:
        return type(self), (self.reason,)


class AufsNestedError(DriverNotSupportedError):
    """Inside a user namespace that may not mount FUSE.

    Args:
        reason: what is missing, one line; it follows the text that engines know.
    """

    TEXT = "AUFS cannot be used in non-init user namespace"

    def __init__(self, reason: str = "") -> None:
        super().__init__(f"{self.TEXT}: {reason}" if reason else self.TEXT)
        self.reason = reason

    def __reduce__(self) -> tuple[type["AufsNestedError"], tuple[str]]:
        return type(self), (self.reason,)


class IncompatibleFilesystemError(DriverNotSupportedError):
    """The filesystem below the driver's root cannot carry layers."""


class NotAStoreError(DriverError, ValueError):
    """The driver's root is no place for layers: not there, or full of something else."""


class LayerNotFoundError(DriverError, FileNotFoundError):
    """No layer has this id.

    Args:
        layer_id: the id that was asked for.
    """

    def __init__(self, layer_id: str) -> None:
        super().__init__(errno.ENOENT, f"no such layer: {layer_id}")
        self.layer_id = layer_id

    def __str__(self) -> str:
        return f"no such layer: {self.layer_id}"

    def __reduce__(self) -> tuple[type["LayerNotFoundError"], tuple[str]]:
        return type(self), (self.layer_id,)


class LayerExistsError(DriverError, FileExistsError):
    """A layer of this id is there already (driver.md 1.10 Q2).

    Args:
        layer_id: the id that was to be created.
    """

    def __init__(self, layer_id: str) -> None:
        super().__init__(errno.EEXIST, f"layer exists already: {layer_id}")
        self.layer_id = layer_id

    def __str__(self) -> str:
        return f"layer exists already: {self.layer_id}"

    def __reduce__(self) -> tuple[type["LayerExistsError"], tuple[str]]:
        return type(self), (self.layer_id,)


class InvalidLayerIdError(DriverError, ValueError):
    """The id breaks a rule of driver.md 1.11."""


class StorageOptNotSupportedError(DriverError, ValueError):
    """A storage option was given to ``create``; this driver has none (driver.md 1.6)."""

    TEXT = "--storage-opt is not supported for aufs"

    def __init__(self, text: str = TEXT) -> None:
        super().__init__(text)


class MountError(DriverError, OSError):
    """A layer could not be mounted or unmounted.

    Args:
        text: one line that names the target and the cause.
        number: the errno behind it, ``EIO`` when there is none.
    """

    def __init__(self, text: str, number: int = errno.EIO) -> None:
        super().__init__(number, text)
        self.text = text

    def __str__(self) -> str:
        return self.text

    def __reduce__(self) -> tuple[type["MountError"], tuple[str, int]]:
        return type(self), (self.text, self.errno or errno.EIO)


class IdMappingError(DriverError, ValueError):
    """A user or group id has no counterpart in the identity map (driver.md 1.12)."""


class ArchiveError(DriverError):
    """A layer tar cannot be read or written.

    Args:
        text: what is wrong.
        name: the archive member concerned, raw bytes, if one is known.
    """

    def __init__(self, text: str, name: bytes | None = None) -> None:
        super().__init__(text if name is None else f"{text}: {os.fsdecode(name)!r}")
        self.text = text
        self.name = name

    def __reduce__(self) -> tuple[type["ArchiveError"], tuple[str, bytes | None]]:
        return type(self), (self.text, self.name)


class InvalidArchiveError(ArchiveError):
    """The bytes are not a layer tar, or break a rule of the format (driver.md 7.1, 7.3)."""


class BreakoutError(InvalidArchiveError):
    """A member tries to reach outside the directory it is extracted to (driver.md 7.4)."""


ErrAufsNotSupported = AufsNotSupportedError
ErrAufsNested = AufsNestedError
