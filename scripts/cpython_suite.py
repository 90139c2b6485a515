"""CPython as Debian builds it, with its own test-suite: fetched, unpacked, and run by module.

Interpreter, library and tests come from the same version of the Debian packages. They are unpacked
into a directory rather than installed: the host's Python is neither upgraded nor touched, and the
directory may belong to an ordinary user. The interpreter finds its library beside itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from scripts.debian_sources import command, debian_sources

_PACKAGES = (
    "python{}-minimal",
    "libpython{}-minimal",
    "libpython{}-stdlib",
    "libpython{}-testsuite",
)
_TIMEOUT = 900  # seconds for one module; the longest takes about one minute


class SuiteError(Exception):
    """The tests cannot be had or run here; ``str()`` says why and what to do."""


@dataclass(frozen=True, slots=True)
class Results:
    """What one module's tests said.

    Attributes:
        outcomes: "passed", "failed" or "skipped" by the name of the test; "failed" includes errors.
        details: what a failed test printed, by its name.
    """

    outcomes: dict[str, str]
    details: dict[str, str]

    def count(self, outcome: str) -> int:
        """Return how many tests ended with ``outcome``."""
        return sum(1 for value in self.outcomes.values() if value == outcome)


@dataclass(frozen=True, slots=True)
class Suite:
    """An unpacked CPython.

    Attributes:
        python: its interpreter.
        version: of the Debian packages.
    """

    python: Path
    version: str

    def run(
        self,
        module: str,
        directory: Path,
        report: Path,
        environment: dict[str, str],
        user: int | None,
    ) -> Results:
        """Run the tests of one module with ``directory`` as TMPDIR and, a folder in it, as cwd.

        Args:
            module: as in "test_os".
            directory: what is tested.
            report: a file that the tests write, outside of ``directory``.
            environment: of the tests; TMPDIR is added.
            user: user and group id to run them as, None for this process's own.

        Raises:
            SuiteError: the module ended without saying what its tests did.
        """
        report.unlink(missing_ok=True)
        words = [
            str(self.python), "-m", "test", "--use=largefile,cpu", f"--tempdir={directory}",
            f"--junit-xml={report}", module,
        ]  # fmt: skip
        environment = environment | {"TMPDIR": str(directory)}
        status, output = _run_session(words, environment, directory, user)
        try:
            # What is read was written by the tests a moment ago.
            results = _read(ET.parse(report).getroot())  # noqa: S314
        except (OSError, ET.ParseError):
            results = Results({}, {})
        if not results.outcomes or (status and not results.count("failed")):
            last = "\n".join(output.splitlines()[-30:])
            raise SuiteError(f"{module} failed as a whole:\n{last}")
        return results


def fetch(modules: Sequence[str], cache: Path, place: Path) -> Suite:
    """Return CPython and its tests in the version of the host's /usr/bin/python3 (3.11, 3.13).

    Args:
        modules: the tests that must be there.
        cache: directory where the packages are kept for the next time.
        place: directory to unpack them into, made here.

    Raises:
        SuiteError, DebianError: apt does not have them.
    """
    version = ".".join(command("/usr/bin/python3", "-V").split()[1].split(".")[:2])
    names = [package.format(version) for package in _PACKAGES]
    cache.mkdir(parents=True, exist_ok=True)
    files = _file_names(names)
    if len(files) < len(names):  # apt's lists are not there
        command("apt-get", "update")
        files = _file_names(names)
        if len(files) < len(names):
            raise SuiteError(f"apt has no {' '.join(names)}: is this a Debian 12 or 13?")
    if not all((cache / file).exists() for file in files):
        for old in cache.iterdir():
            old.unlink()
        command("apt-get", "update")  # a mirror has the newest version only
        command("apt-get", "download", *names, cwd=cache)
        files = _file_names(names)
    for file in files:
        command("dpkg-deb", "--extract", str(cache / file), str(place))
    suite = Suite(place / "usr" / "bin" / f"python{version}", files[-1].split("_")[1])
    library = place / "usr" / "lib" / f"python{version}"
    missing = [name for name in modules if not list(library.glob(f"test/{name}*"))]
    if missing:
        _add_from_source(f"python{version}", suite.version, missing, cache, library)
    return suite


def _add_from_source(
    package: str, version: str, modules: Sequence[str], cache: Path, library: Path
) -> None:
    """Take tests that Debian does not package (12 has no test_sqlite3) from the source package.

    Fetched with lists of sources of our own: the host's apt need not know any, and keeps its own.
    """
    upstream = version.partition("-")[0]
    pattern = f"{package}_{upstream}.orig.tar.*"
    if not list(cache.glob(pattern)):
        with tempfile.TemporaryDirectory() as scratch:
            lines = [source.line("deb-src") for source in debian_sources()]
            for folder in ("lists/partial", "cache/archives/partial"):
                Path(scratch, folder).mkdir(parents=True)
            listed = Path(scratch, "sources.list")
            listed.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            own = [
                "-oAPT::Sandbox::User=root", f"-oDir::Etc::SourceList={listed}",
                "-oDir::Etc::SourceParts=-", f"-oDir::State::Lists={scratch}/lists",
                f"-oDir::Cache={scratch}/cache",
            ]  # fmt: skip
            command("apt-get", *own, "update")
            fetch = ("source", "--download-only", "--tar-only", "-qq", f"{package}={version}")
            command("apt-get", *own, *fetch, cwd=Path(scratch))
            for file in Path(scratch).glob(pattern):
                shutil.copy(file, cache)
    source = next(cache.glob(pattern))
    wanted = [f"*/Lib/test/{name}*" for name in modules]
    command(
        "tar", "--extract", f"--file={source}", f"--directory={library}", "--strip-components=2",
        "--no-same-owner", "--wildcards", *wanted,
    )  # fmt: skip


def _file_names(packages: Sequence[str]) -> list[str]:
    """Return what `apt-get download` would call these packages now, those that apt has."""
    shown = subprocess.run(
        ["apt-cache", "show", "--no-all-versions", *packages],
        capture_output=True,
        text=True,
        check=False,
    )
    names = {}
    for paragraph in shown.stdout.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line)
        if "Filename" in fields:  # what is only installed, and nowhere to be had, has none
            parts = (fields["Package"], fields["Version"], fields["Architecture"])
            names[fields["Package"]] = "_".join(parts) + ".deb"
    return [names[package] for package in packages if package in names]


def _run_session(
    words: Sequence[str], environment: dict[str, str], directory: Path, user: int | None
) -> tuple[int, str]:
    """Run a command in a session of its own, and end all of it when the time is over."""
    child = subprocess.Popen(
        words,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        start_new_session=True,
        umask=0o022,
    )
    try:
        output, _ = child.communicate(timeout=_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise SuiteError(f"not over after {_TIMEOUT} s: {' '.join(words)}") from error
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return child.returncode, output.decode(errors="backslashreplace")


def _read(root: ET.Element) -> Results:
    outcomes: dict[str, str] = {}
    details: dict[str, str] = {}
    for case in root.iter("testcase"):
        name = case.get("name", "?")
        failed = [child for child in case if child.tag in ("failure", "error")]
        if failed:
            outcomes[name] = "failed"
            details[name] = "\n".join(child.text or "" for child in failed).strip()
        elif case.find("skipped") is not None:
            outcomes.setdefault(name, "skipped")
        else:
            outcomes.setdefault(name, "passed")
    return Results(outcomes, details)
