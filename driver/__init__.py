"""Layers of container images, and the unions that container roots are made of.

    import driver

    store = driver.init("/var/lib/example")
    store.create("base")
    store.apply_diff("base", "", open("base.tar", "rb"))
    store.create("container", "base")
    root = store.get("container")       # mounted: a directory to run something in
    ...
    store.put("container")              # unmounted
    for change in store.changes("container", "base"):
        print(change)

The interface is that of Docker's AUFS graph driver in Python (driver.md part 2).
"""

from driver.diff import DiffStream
from driver.driver import Driver, init
from driver.errors import (
    ArchiveError,
    AufsNestedError,
    AufsNotSupportedError,
    BreakoutError,
    DriverError,
    DriverNotSupportedError,
    ErrAufsNested,
    ErrAufsNotSupported,
    IdMappingError,
    IncompatibleFilesystemError,
    InvalidArchiveError,
    InvalidLayerIdError,
    LayerExistsError,
    LayerNotFoundError,
    MountError,
    NotAStoreError,
    StorageOptNotSupportedError,
)
from driver.getter import FileGetter
from driver.idmap import IdentityMapping, IdMap
from driver.mounts import unmount
from driver.values import Capabilities, Change, ChangeKind, CreateOpts

__all__ = [
    "ArchiveError",
    "AufsNestedError",
    "AufsNotSupportedError",
    "BreakoutError",
    "Capabilities",
    "Change",
    "ChangeKind",
    "CreateOpts",
    "DiffStream",
    "Driver",
    "DriverError",
    "DriverNotSupportedError",
    "ErrAufsNested",
    "ErrAufsNotSupported",
    "FileGetter",
    "IdMap",
    "IdMappingError",
    "IdentityMapping",
    "IncompatibleFilesystemError",
    "InvalidArchiveError",
    "InvalidLayerIdError",
    "LayerExistsError",
    "LayerNotFoundError",
    "MountError",
    "NotAStoreError",
    "StorageOptNotSupportedError",
    "init",
    "unmount",
]
