#!/usr/bin/env python3
"""Install detectron2 in the environment of the running Python.

    python tools/install_detectron2.py                  # download, check, install
    python tools/install_detectron2.py --wheel FILE     # from a file downloaded elsewhere

A detectron2 that can already be imported, such as one built from source, is kept. Otherwise the
pure-Python part of `sal-detectron2` 0.7.2 is installed: upstream of April 2024 plus a fix for
Python 3.11. pip refuses that wheel on Python 3.11 and newer because of its tag, so it is downloaded
with the tag overridden, and verified by its hash. Two parts are left out: an extension compiled for
one version of Python and CUDA, which DETRs do not need, and a top-level package `tools`, which
would shadow others.

Finished folders are renamed into place, so that the next run repairs an interrupted one. Standard
library only.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import importlib
import importlib.metadata
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

PACKAGE = "sal-detectron2"
VERSION = "0.7.2"
DIST_INFO = "sal_detectron2-0.7.2.dist-info"
WHEEL_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
# Tag of the only wheel; its Python code runs on any version.
WHEEL_TAG = ("--python-version=3.10", "--implementation=cp", "--abi=none", "--platform=any")
STAGING_PREFIX = ".detectron2-staging-"
# The used modules; `import detectron2` alone does not import its requirements.
IMPORT_CHECK = "import detectron2.config, detectron2.data, detectron2.engine, detectron2.structures"

RecordRow = list[str]  # path relative to site-packages, "sha256=..." or "", size or ""


class InstallError(Exception):
    """A problem that the user has to fix; the message says how."""


def main(arguments: list[str] | None = None) -> int:
    """Install or keep detectron2 and print its location; returns 1 if it cannot be imported."""
    if sys.version_info < (3, 11):  # noqa: UP036 - run by hand with any Python
        print("install_detectron2: Python 3.11 or newer is needed", file=sys.stderr)
        return 1
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--wheel", type=Path, help="install from this file, without an index")
    options = parser.parse_args(arguments)
    site = Path(sysconfig.get_path("purelib"))
    try:
        ensure_installed(site, options.wheel)
        check_import()
    except InstallError as error:
        print(f"install_detectron2: {error}", file=sys.stderr)
        return 1
    print(f"detectron2 in use: {describe()}")
    return 0


def ensure_installed(site: Path, wheel: Path | None = None) -> None:
    """Make sure that there is a complete detectron2, in `site` or elsewhere.

    Args:
        site: site-packages folder of the running Python.
        wheel: local file of the wheel; None to download it.

    Raises:
        InstallError: `site` is not writable, or the wheel is missing or the wrong one.
    """
    for leftover in site.glob(f"{STAGING_PREFIX}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if is_ours(site):
        if is_complete(site):
            leave_out_extras(site)
            return
        print(f"detectron2 in {site} is incomplete: installing it again.")
    elif location() is not None:
        return
    check_writable(site)
    with tempfile.TemporaryDirectory() as folder:
        path = wheel or download(Path(folder))
        check_hash(path)
        install_wheel(path, site)
    importlib.invalidate_caches()


def location() -> Path | None:
    """Folder of the detectron2 that would be imported; None if there is none."""
    spec = importlib.util.find_spec("detectron2")
    return Path(spec.origin).parent if spec and spec.origin else None


def describe() -> str:
    """Folder, version and origin of detectron2 in one line, without importing it.

    Raises:
        InstallError: there is no detectron2.
    """
    folder = location()
    if folder is None:
        raise InstallError("detectron2 is not installed; run python tools/install_detectron2.py")
    for name in (PACKAGE, "detectron2"):
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if name == PACKAGE and Path(str(distribution.locate_file("detectron2"))) != folder:
            continue  # installed, but another one is first on the path
        origin = f"package {name} {distribution.version}"
        if name == PACKAGE and distribution.version == VERSION:
            origin += ", pure-Python part"
        source = distribution.read_text("direct_url.json")
        if source:
            origin += f", installed from {json.loads(source).get('url')}"
        return f"{folder} ({origin})"
    return f"{folder} (of unknown origin, kept)"


def check_import() -> None:
    """Import the used modules of detectron2 in a new process.

    Raises:
        InstallError: the import fails.
    """
    # -P: ignore a folder named detectron2 in the working directory.
    process = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", IMPORT_CHECK], capture_output=True, text=True
    )
    if process.returncode != 0:
        reason = (process.stderr.strip() or "no message").splitlines()[-1]
        raise InstallError(
            f"detectron2 is at {location()}, but importing it fails: {reason}\n"
            "Install what it needs (python -m pip install -r requirements.txt), or remove it and "
            "run this again."
        )


# -- the wheel -------------------------------------------------------------------------------------


def download(folder: Path) -> Path:
    """Download the wheel into `folder` with pip, from its configured index.

    Raises:
        InstallError: pip is missing, or the download fails.
    """
    print(f"Downloading {PACKAGE} {VERSION} (7 MB) ...", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", *WHEEL_TAG, f"--dest={folder}", f"{PACKAGE}=={VERSION}"]
    process = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        last_lines = "\n".join((process.stdout + process.stderr).strip().splitlines()[-5:])
        raise InstallError(
            f"pip could not download {PACKAGE}=={VERSION}:\n{last_lines}\n"
            "Check the network and pip's settings, or download the wheel elsewhere and pass it "
            "with --wheel FILE."
        )
    return wheels[0]


def check_hash(wheel: Path) -> None:
    """Check that a file is the wheel with which this project was tested.

    Raises:
        InstallError: the file is unreadable or another one.
    """
    try:
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    except OSError as error:
        raise InstallError(f"cannot read {wheel}: {error.strerror}") from error
    if found != WHEEL_SHA256:
        raise InstallError(
            f"{wheel} is not the expected wheel of {PACKAGE} {VERSION}: its sha256 is "
            f"{found}, not {WHEEL_SHA256}. Nothing was installed."
        )


def install_wheel(wheel: Path, site: Path) -> None:
    """Install the pure-Python part of the wheel in `site`, replacing an incomplete one of ours.

    Raises:
        InstallError: `site` has a broken detectron2 that is not ours.
    """
    package, information = site / "detectron2", site / DIST_INFO
    if package.exists() and not is_ours(site):
        raise InstallError(
            f"{package} cannot be imported and is not from {PACKAGE}; remove it and run this again."
        )
    staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=site))
    unpack(wheel, staging)
    # In this order, interruption after any rename leaves no detectron2, or a record of missing
    # files: the next run installs it again.
    for old in (package, information):
        if old.exists():
            old.rename(staging / f"old-{old.name}")
    for new in (information, package):
        (staging / new.name).rename(new)
    shutil.rmtree(staging)


def unpack(wheel: Path, folder: Path) -> None:
    """Unpack the wheel without its extras, and update its record."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if not is_extra(name)])
    installer = folder / DIST_INFO / "INSTALLER"
    installer.write_text("tools/install_detectron2.py\n")
    rows = [row for row in read_record(folder) if not is_extra(row[0])]
    write_record(folder, [*rows, [f"{DIST_INFO}/INSTALLER", "", ""]])


# -- site-packages ---------------------------------------------------------------------------------


def is_ours(site: Path) -> bool:
    """Whether `site` has this version of the package, complete or not."""
    return (site / DIST_INFO).is_dir()


def is_complete(site: Path) -> bool:
    """Whether all files of the record exist, except caches and extras."""
    rows = read_record(site)
    return bool(rows) and all(
        (site / path).is_file() for path, digest, _ in rows if digest and not is_extra(path)
    )


def is_extra(path: str) -> bool:
    """Whether a file of the wheel is left out: package `tools` or compiled extension."""
    return path.startswith("tools/") or (path.startswith("detectron2/_C.") and path.endswith(".so"))


def leave_out_extras(site: Path) -> None:
    """Remove the extras that a pip installation of the wheel has left in `site`.

    A top-level `tools` with files that are not from the wheel is kept, with a message.
    """
    rows = read_record(site)
    extras = [row for row in rows if is_extra(row[0])]
    if not extras:
        return
    check_writable(site)
    tools = site / "tools"
    ours = {site / path for path, digest, _ in extras if digest and digest == hash_of(site / path)}
    if tools.is_dir():
        if all(file in ours for file in source_files(tools)):
            shutil.rmtree(tools)
            print(f"Removed the stray package {tools}, which came with {PACKAGE}.")
        else:
            print(f"Kept {tools}: not all of it came with {PACKAGE}.")
    for path in (site / "detectron2").glob("_C.*.so"):
        if path in ours:
            path.unlink()
    write_record(site, [row for row in rows if not is_extra(row[0])])


def source_files(folder: Path) -> Iterable[Path]:
    """All files below `folder` except byte-code caches."""
    return (
        path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"
    )


def hash_of(path: Path) -> str:
    """Hash of a file in the format of a wheel's record; "" if there is no such file."""
    if not path.is_file():
        return ""
    digest = hashlib.sha256(path.read_bytes()).digest()
    return "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def read_record(site: Path) -> list[RecordRow]:
    """Rows of the package's record; [] if there is none."""
    record = site / DIST_INFO / "RECORD"
    return list(csv.reader(record.read_text().splitlines())) if record.is_file() else []


def write_record(site: Path, rows: list[RecordRow]) -> None:
    """Replace the record atomically."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    temporary = site / DIST_INFO / "RECORD.new"
    temporary.write_text(text.getvalue())
    temporary.replace(site / DIST_INFO / "RECORD")


def check_writable(site: Path) -> None:
    """Check that `site` may be changed.

    Raises:
        InstallError: no write permission, or Python belongs to the operating system.
    """
    managed = Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED"
    if sys.prefix == sys.base_prefix and managed.exists():
        raise InstallError(
            f"{sys.executable} belongs to the system; use a virtual environment: make setup"
        )
    if not os.access(site, os.W_OK):
        raise InstallError(
            f"no permission to write to {site}; use a virtual environment (make setup)"
        )


if __name__ == "__main__":
    sys.exit(main())
