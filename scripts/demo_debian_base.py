"""Where the demo's Debian comes from, and what a container needs to know to reach the same mirror.

Nothing here names a mirror: it is asked of the host's own apt, as are proxies, certificates and the
like. debootstrap runs in mount and process namespaces of its own, so an interrupted run leaves
neither a mount nor a process. What it took over from the host (the resolver, the host's name, the
mirror) is left out of the tar that is kept.

In a user namespace nobody makes device nodes. debootstrap knows that of containers and goes on
without, if the devices are there already; so it gets them as mounts, from root as well.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.debian_sources import KEYRING, DebianError, code_name, command, debian_sources
from scripts.demo_image import Entry, directory, layer_tar

_CACHE = Path(__file__).resolve().parent.parent / ".cache"
_TOOLS = ("debootstrap", "debian-archive-keyring")
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
# Settings of apt that say how to reach a mirror and how far to trust it.
_SETTINGS = re.compile(r"Acquire::(https?|Check-|Retries|Force|Max-|Allow|Proxy)", re.IGNORECASE)
_LEFT_OUT = (
    "./etc/apt/sources.list", "./etc/hostname", "./etc/resolv.conf",
    "./var/cache/apt/archives/*.deb", "./var/cache/apt/*.bin", "./var/lib/apt/lists/*_*",
    "./var/log/bootstrap.log",
)  # fmt: skip
# What debootstrap says of each package that begins one of its parts.
_PARTS = ("Retrieving", "Extracting", "Unpacking", "Configuring")

# Lines of sh: give the tree "$1" the devices that every program expects.
DEVICES = """\
mount -t tmpfs -o mode=755 dev "$1/dev"
for device in null zero full random urandom tty; do
    : >"$1/dev/$device"
    mount --bind "/dev/$device" "$1/dev/$device"
done"""
_DEBOOTSTRAP = f"""\
set -e
mkdir -p "$1/dev"
{DEVICES}
shift
container=lxc exec debootstrap "$@"
"""


@dataclass(frozen=True, slots=True)
class Suite:
    """A release of Debian as the host's apt knows it.

    Attributes:
        name: its code name, as "bookworm".
        architecture: as "amd64".
        mirror: where it is.
        sources: lines of a sources.list: the release, its updates and its security.
    """

    name: str
    architecture: str
    mirror: str
    sources: tuple[str, ...]


def host_suite() -> Suite:
    """Return the release that this host is.

    Raises:
        DebianError: it is no Debian, or its apt has no source of Debian that can be used.
    """
    name = code_name()
    sources = debian_sources()
    mirrors = [source.uri for source in sources if name in (source.release, source.code)]
    if not mirrors:
        raise DebianError(f"apt has no source of {name}: see /etc/apt/sources.list.d")
    need_tools()
    architecture = command("dpkg", "--print-architecture").strip()
    return Suite(name, architecture, mirrors[0], tuple(one.line("deb") for one in sources))


def kept_tar(suite: Suite, place: Path) -> Path:
    """Return where the tar of a base is kept; it may not be there yet.

    Args:
        suite: which Debian.
        place: a directory for the time being; it is kept there when the checkout is not ours.
    """
    with contextlib.suppress(OSError):
        _CACHE.mkdir(exist_ok=True)
    folder = _CACHE if os.access(_CACHE, os.W_OK) else place
    return folder / f"debian-{suite.name}-{suite.architecture}-minbase.tar"


def build(suite: Suite, place: Path, tar: Path, progress: Callable[[str], None]) -> None:
    """Make a base with debootstrap, and a tar of it.

    Args:
        suite: which Debian.
        place: a temporary directory; nothing is left in it.
        tar: where the tar goes, whole or not at all.
        progress: is told what is being done.

    Raises:
        DebianError: debootstrap failed.
    """
    root = place / "base"
    log = place / "debootstrap.log"
    alone = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child"]
    make = ["/bin/sh", "-c", _DEBOOTSTRAP, "sh", str(root), "--variant=minbase"]
    trust = [f"--keyring={KEYRING}", "--force-check-gpg"]
    what = [f"--arch={suite.architecture}", suite.name, str(root), suite.mirror]
    part = 0
    with (
        log.open("w", encoding="utf-8") as said,
        subprocess.Popen(
            [*alone, *make, *trust, *what],
            env=os.environ | _proxies() | {"LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
        ) as child,
    ):
        try:
            assert child.stdout is not None  # noqa: S101  # for the type checker: it is a pipe
            for line in child.stdout:
                said.write(line)
                words = line.split()
                if words[1:2] and words[1] in _PARTS[part:]:
                    part = _PARTS.index(words[1]) + 1
                    progress(f"{words[1].lower()} packages ...")
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        last = " ".join(log.read_text(encoding="utf-8").splitlines()[-3:])
        raise DebianError(f"debootstrap failed with status {child.returncode}: {last}")
    unfinished = tar.with_suffix(".unfinished")
    left_out = [f"--exclude={pattern}" for pattern in _LEFT_OUT]
    try:
        command(
            "tar", "--create", f"--file={unfinished}", f"--directory={root}", "--numeric-owner",
            "--xattrs", "--xattrs-include=*", "--acls", "--format=pax", *left_out, ".",
        )  # fmt: skip
        unfinished.rename(tar)
    finally:
        unfinished.unlink(missing_ok=True)
    shutil.rmtree(root)


def site_layer(suite: Suite) -> io.BytesIO:
    """Return a layer tar: what a container needs to know to reach the host's mirror."""
    files = {"etc/apt/sources.list": "".join(f"{line}\n" for line in suite.sources).encode()}
    settings = [
        line for line in command("apt-config", "dump").splitlines() if _SETTINGS.match(line)
    ]
    files["etc/apt/apt.conf.d/90host"] = "".join(f"{line}\n" for line in settings).encode()
    for path in ("/etc/hosts", "/etc/resolv.conf", *_certificates(suite, settings)):
        if os.path.exists(path):
            files[path[1:]] = Path(path).read_bytes()
    folders = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    entries = [directory(folder) for folder in sorted(folders)]
    entries += [Entry(name, text=text) for name, text in sorted(files.items())]
    return io.BytesIO(layer_tar(entries))


def _certificates(suite: Suite, settings: list[str]) -> Iterator[str]:
    """Yield the host's files with certificates, for mirrors by https."""
    if any("https:" in line for line in (*suite.sources, *settings)):
        yield _CERTIFICATES
    for line in settings:
        name, _, value = line.partition(" ")
        if name.lower().endswith("::cainfo"):
            yield value.strip('";')


def _proxies() -> dict[str, str]:
    """Return apt's proxies as debootstrap, that is wget, looks for them."""
    found = {}
    for scheme in ("http", "https"):
        text = command("apt-config", "shell", "PROXY", f"Acquire::{scheme}::Proxy").strip()
        proxy = text.partition("=")[2].strip("'")
        if proxy and proxy != "DIRECT":
            found[f"{scheme}_proxy"] = proxy
    return found


def need_tools() -> None:
    """Install the Debian packages that are missing.

    Raises:
        DebianError: they cannot be installed, as by anybody but root.
    """
    missing = []
    for package in _TOOLS:
        asked = ["dpkg-query", "-W", "-f=${db:Status-Abbrev}", package]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if not done.stdout.startswith("ii"):
            missing.append(package)
    if not missing:
        return
    if os.geteuid() != 0:
        raise DebianError(f"install {' and '.join(missing)}: apt-get install {' '.join(missing)}")
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    first = subprocess.run(install, env=environment, capture_output=True, check=False)
    if first.returncode:  # the lists may be absent or out of date
        command("apt-get", "update")
        command(*install)
