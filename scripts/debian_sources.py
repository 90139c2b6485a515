"""Where the host's own apt gets Debian from, so that no script has to name a mirror."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class DebianError(Exception):
    """Something of Debian's cannot be had here; ``str()`` says why and what to do."""


@dataclass(frozen=True, slots=True)
class Source:
    """One part of an archive of Debian, as apt knows it.

    Attributes:
        uri: where the archive is.
        release: what is asked for there, as "bookworm", "bookworm-updates" or "stable".
        code: the code name of what comes, as "bookworm".
        component: as "main".
    """

    uri: str
    release: str
    code: str
    component: str

    def line(self, kind: str) -> str:
        """Return it as a line of a sources.list; ``kind`` is "deb" or "deb-src"."""
        return f"{kind} [signed-by={KEYRING}] {self.uri} {self.release} {self.component}"


def debian_sources() -> list[Source]:
    """Return the host's sources of Debian that are reached by http or https.

    Raises:
        DebianError: there are none.
    """
    found = list(_sources())
    if not found:  # the lists, which say what comes from Debian, are not there
        command("apt-get", "update")
        found = list(_sources())
    usable = [source for source in found if source.uri.startswith(("http:", "https:"))]
    if not usable:
        raise DebianError(
            "apt has no source of Debian by http or https: see /etc/apt/sources.list.d"
        )
    return usable


def code_name() -> str:
    """Return the code name of the host's release.

    Raises:
        DebianError: it is no Debian.
    """
    fields = {}
    for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition("=")
        fields[key] = value.strip('"')
    if fields.get("ID") != "debian" or "VERSION_CODENAME" not in fields:
        raise DebianError("this host is no Debian, whose apt could say where Debian is")
    return fields["VERSION_CODENAME"]


def command(*words: str, cwd: Path | None = None) -> str:
    """Run a command that asks nobody anything, and return its output.

    Raises:
        DebianError: it failed.
    """
    done = subprocess.run(
        words,
        cwd=cwd,
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = " ".join(done.stderr.splitlines()[-3:])
        raise DebianError(f"{' '.join(words[:2])} failed with status {done.returncode}: {last}")
    return done.stdout


def _sources() -> Iterator[Source]:
    shape = "$(REPO_URI) $(RELEASE) $(CODENAME) $(COMPONENT)"
    wanted = ("Created-By: Packages", "Origin: Debian")
    seen = command("apt-get", "indextargets", "--format", shape, *wanted).splitlines()
    for line in dict.fromkeys(seen):  # one for each architecture
        yield Source(*line.split())
