"""Whose file is it: user and group ids inside a container and on the host (driver.md 1.12).

A container may run in a user namespace in which its ids 0, 1, 2 … are other ids of the host. Layer
tars carry container ids, branches on disk carry host ids, so everything that crosses the border
between the two is translated by an ``IdentityMapping``.

Invariants: a mapping never changes after it was made; where no list is given ids stay as they are;
an id outside of every range is an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from driver.errors import IdMappingError

_UNMAPPABLE = -1


class IdMap(NamedTuple):
    """One range of ids.

    Attributes:
        container_id: first id of the range as the container sees it.
        host_id: first id of the range on the host.
        size: number of ids in the range.
    """

    container_id: int
    host_id: int
    size: int


class IdentityMapping:
    """Two lists of ranges, one for users and one for groups.

    Args:
        uid_maps: ranges for user ids; None or an empty list leaves user ids alone.
        gid_maps: ranges for group ids; None or an empty list leaves group ids alone.
    """

    __slots__ = ("gid_maps", "uid_maps")

    def __init__(
        self,
        uid_maps: Iterable[IdMap | tuple[int, int, int]] | None = None,
        gid_maps: Iterable[IdMap | tuple[int, int, int]] | None = None,
    ) -> None:
        self.uid_maps: tuple[IdMap, ...] = tuple(IdMap(*entry) for entry in uid_maps or ())
        self.gid_maps: tuple[IdMap, ...] = tuple(IdMap(*entry) for entry in gid_maps or ())

    @property
    def empty(self) -> bool:
        """True when both lists are empty, so that nothing has to be translated."""
        return not self.uid_maps and not self.gid_maps

    def root_pair(self) -> tuple[int, int]:
        """Return the host ids that container root has.

        Raises:
            IdMappingError: a list does not cover 0.
        """
        return _to_host(0, self.uid_maps), _to_host(0, self.gid_maps)

    def to_host(self, uid: int, gid: int) -> tuple[int, int]:
        """Translate container ids to host ids.

        An id that already equals that of the remapped root stays: engines hand both kinds in.

        Raises:
            IdMappingError: no range holds the id.
        """
        root_uid = _first_or_unmappable(self.uid_maps)
        root_gid = _first_or_unmappable(self.gid_maps)
        return (
            uid if uid == root_uid else _to_host(uid, self.uid_maps),
            gid if gid == root_gid else _to_host(gid, self.gid_maps),
        )

    def to_container(self, uid: int, gid: int) -> tuple[int, int]:
        """Translate host ids to container ids.

        Raises:
            IdMappingError: no range holds the id.
        """
        return _to_container(uid, self.uid_maps), _to_container(gid, self.gid_maps)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IdentityMapping):
            return NotImplemented
        return (self.uid_maps, self.gid_maps) == (other.uid_maps, other.gid_maps)

    def __hash__(self) -> int:
        return hash((self.uid_maps, self.gid_maps))

    def __repr__(self) -> str:
        return f"IdentityMapping({list(self.uid_maps)!r}, {list(self.gid_maps)!r})"


def _first_or_unmappable(ranges: tuple[IdMap, ...]) -> int:
    try:
        return _to_host(0, ranges)
    except IdMappingError:
        return _UNMAPPABLE


def _to_host(container_id: int, ranges: tuple[IdMap, ...]) -> int:
    if not ranges:
        return container_id
    for entry in ranges:
        if entry.container_id <= container_id < entry.container_id + entry.size:
            return entry.host_id + container_id - entry.container_id
    raise IdMappingError(f"Container ID {container_id} cannot be mapped to a host ID")


def _to_container(host_id: int, ranges: tuple[IdMap, ...]) -> int:
    if not ranges:
        return host_id
    for entry in ranges:
        if entry.host_id <= host_id < entry.host_id + entry.size:
            return entry.container_id + host_id - entry.host_id
    raise IdMappingError(f"Host ID {host_id} cannot be mapped to a container ID")
