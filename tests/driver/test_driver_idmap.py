"""From container ids to host ids and back (driver.md 1.12)."""

from __future__ import annotations

import pytest

import driver
from driver.idmap import IdentityMapping, IdMap


def test_no_map_is_identity() -> None:
    mapping = IdentityMapping()
    assert mapping.empty
    assert mapping.root_pair() == (0, 0)
    assert mapping.to_host(5, 7) == mapping.to_container(5, 7) == (5, 7)


def test_root_pair_of_one_entry() -> None:
    mapping = IdentityMapping([(0, 1000, 1)], [IdMap(0, 2000, 1)])
    assert not mapping.empty
    assert mapping.root_pair() == (1000, 2000)


def test_root_pair_of_a_map_without_root() -> None:
    with pytest.raises(driver.IdMappingError, match="Container ID 0 cannot be mapped to a host"):
        IdentityMapping([(1, 1000, 1)]).root_pair()


def test_to_container() -> None:
    mapping = IdentityMapping([(2, 2, 1)], [(2, 2, 1)])
    assert mapping.to_container(2, 2) == (2, 2)
    with pytest.raises(driver.IdMappingError, match="Host ID 3 cannot be mapped to a container"):
        mapping.to_container(2, 3)


def test_to_host_takes_the_first_range_that_fits() -> None:
    mapping = IdentityMapping([(0, 100, 10), (5, 900, 10)])
    assert mapping.to_host(5, 5) == (105, 5)
    assert mapping.to_host(14, 5) == (909, 5)
    with pytest.raises(driver.IdMappingError):
        mapping.to_host(15, 0)


def test_to_host_leaves_remapped_root_alone() -> None:
    mapping = IdentityMapping([(0, 1000, 1)], [(0, 2000, 1)])
    assert mapping.to_host(1000, 2000) == (1000, 2000)
    assert mapping.to_host(0, 2000) == (1000, 2000)
