"""What the options of `init` say: ``key=value`` texts, as engines pass them on (driver.md 1.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """How a driver mounts and unpacks.

    Attributes:
        mount_options: more options for every mount.
        ignore_chown_errors: owners that cannot be set are logged, and no error.
    """

    mount_options: tuple[str, ...] = ()
    ignore_chown_errors: bool = False


def parse_settings(options: Sequence[str]) -> Settings:
    """Read the driver's options.

    Raises:
        ValueError: one is unknown, or its value makes no sense.
    """
    mount_options: list[str] = []
    ignore_chown_errors = False
    for option in options:
        key, equals, value = option.partition("=")
        match key.strip().lower() if equals else "":
            case "aufs.mountopt":
                if value:
                    mount_options.append(value)
            case "aufs.ignore_chown_errors":
                if value not in ("true", "false"):
                    raise ValueError(f"driver option {option!r}: say true or false")
                ignore_chown_errors = value == "true"
            case _:
                raise ValueError(
                    f"unknown driver option {option!r}: there are aufs.mountopt=OPTIONS"
                    " and aufs.ignore_chown_errors=true"
                )
    return Settings(tuple(mount_options), ignore_chown_errors)
