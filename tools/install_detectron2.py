#!/usr/bin/env python3
"""Make detectron2 importable in the environment of the Python that runs this file.

    python tools/install_detectron2.py                  # download, check, install
    python tools/install_detectron2.py --wheel FILE     # the same from a file fetched elsewhere

A detectron2 that can already be imported (built from upstream source, say) is kept. Otherwise the
pure-Python part of `sal-detectron2` 0.7.2 is installed: upstream of April 2024 plus a fix for
Python 3.11. pip refuses that wheel on Python 3.11 and newer because of its tag, so it is fetched
with the tag overridden, and pinned by its hash. Two things in it are left out: an extension
compiled for one Python and one CUDA (a DETR needs nothing of it) and a top-level package `tools`,
which would shadow others.

The files appear by renaming finished folders: whatever an interrupted run leaves behind, the next
one repairs. Standard library only.
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
# The tag of the only wheel there is; its Python code runs on any version, so pip is overruled.
WHEEL_TAG = ("--python-version=3.10", "--implementation=cp", "--abi=none", "--platform=any")
STAGING_PREFIX = ".detectron2-staging-"
# What the project uses of it; importing `detectron2` alone would not touch its requirements.
IMPORT_CHECK = "import detectron2.config, detectron2.data, detectron2.engine, detectron2.structures"

RecordRow = list[str]  # path relative to site-packages, "sha256=..." or "", size or ""


class InstallError(Exception):
    """Something the user has to mend; the message says what and how."""


def main(arguments: list[str] | None = None) -> int:
    """Installs or keeps detectron2, says which one is in use; 0 when it can be imported, else 1."""
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
    """Leaves a complete detectron2 in `site`, or the one that is found elsewhere as it is.

    Args:
        site: The site-packages folder of the running Python.
        wheel: The wheel as a local file; None downloads it.

    Raises:
        InstallError: `site` cannot be written to, or there is no wheel, or it is the wrong one.
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
    """Folder of the detectron2 that `import detectron2` would find, None when there is none."""
    spec = importlib.util.find_spec("detectron2")
    return Path(spec.origin).parent if spec and spec.origin else None


def describe() -> str:
    """One line: version, folder and origin of the detectron2 in use; it is not imported.

    Raises:
        InstallError: There is no detectron2.
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
            continue  # installed as well, but another one comes first on the path
        origin = f"package {name} {distribution.version}"
        if name == PACKAGE and distribution.version == VERSION:
            origin += ", pure-Python part"
        source = distribution.read_text("direct_url.json")
        if source:
            origin += f", installed from {json.loads(source).get('url')}"
        return f"{folder} ({origin})"
    return f"{folder} (of unknown origin, kept as it is)"


def check_import() -> None:
    """Imports what the project uses of detectron2 in a fresh process.

    Raises:
        InstallError: The import fails.
    """
    # -P: a folder named detectron2 where the user happens to stand must not count.
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
    """Fetches the wheel into `folder` with pip, from whatever index pip is configured for.

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
            "Check the network and pip's settings, or fetch the wheel elsewhere and pass it with "
            "--wheel FILE."
        )
    return wheels[0]


def check_hash(wheel: Path) -> None:
    """Makes sure that the file is the wheel this project was tested with.

    Raises:
        InstallError: It cannot be read, or it is another file.
    """
    try:
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    except OSError as error:
        raise InstallError(f"cannot read {wheel}: {error.strerror}") from error
    if found != WHEEL_SHA256:
        raise InstallError(
            f"{wheel} is not the wheel of {PACKAGE} {VERSION} that is expected here: its sha256 is "
            f"{found}, not {WHEEL_SHA256}. Nothing was installed."
        )


def install_wheel(wheel: Path, site: Path) -> None:
    """Puts the pure-Python part of the wheel into `site`, in place of an incomplete one of ours.

    Raises:
        InstallError: A folder `detectron2` that is not ours is in the way.
    """
    package, information = site / "detectron2", site / DIST_INFO
    if package.exists() and not is_ours(site):
        raise InstallError(
            f"{package} cannot be imported and is not from {PACKAGE}; remove it and run this again."
        )
    staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=site))
    unpack(wheel, staging)
    # The order matters: after each of these renames an interrupted run leaves either no detectron2
    # or a record of missing files, and the next run starts again.
    for old in (package, information):
        if old.exists():
            old.rename(staging / f"old-{old.name}")
    for new in (information, package):
        (staging / new.name).rename(new)
    shutil.rmtree(staging)


def unpack(wheel: Path, folder: Path) -> None:
    """Unpacks the wheel without the extras, and makes its record agree."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if not is_extra(name)])
    installer = folder / DIST_INFO / "INSTALLER"
    installer.write_text("tools/install_detectron2.py\n")
    rows = [row for row in read_record(folder) if not is_extra(row[0])]
    write_record(folder, [*rows, [f"{DIST_INFO}/INSTALLER", "", ""]])


# -- what lies in site-packages --------------------------------------------------------------------


def is_ours(site: Path) -> bool:
    """Whether `site` holds (possibly incomplete) remains of this version of the package."""
    return (site / DIST_INFO).is_dir()


def is_complete(site: Path) -> bool:
    """Whether every file that the record names is there; caches and left-out files do not count."""
    rows = read_record(site)
    return bool(rows) and all(
        (site / path).is_file() for path, digest, _ in rows if digest and not is_extra(path)
    )


def is_extra(path: str) -> bool:
    """Whether this file of the wheel is left out: the stray package or the compiled extension."""
    return path.startswith("tools/") or (path.startswith("detectron2/_C.") and path.endswith(".so"))


def leave_out_extras(site: Path) -> None:
    """Removes the extras that a plain pip installation of the wheel has left in `site`.

    A top-level `tools` that holds any file which the wheel did not bring stays, with a note.
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
            print(f"Left {tools} as it is: not all of it came with {PACKAGE}.")
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
    """The file's hash as a wheel's record writes it; empty when there is no such file."""
    if not path.is_file():
        return ""
    digest = hashlib.sha256(path.read_bytes()).digest()
    return "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def read_record(site: Path) -> list[RecordRow]:
    """Rows of the package's record; empty when there is none."""
    record = site / DIST_INFO / "RECORD"
    return list(csv.reader(record.read_text().splitlines())) if record.is_file() else []


def write_record(site: Path, rows: list[RecordRow]) -> None:
    """Replaces the record in one step."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    temporary = site / DIST_INFO / "RECORD.new"
    temporary.write_text(text.getvalue())
    temporary.replace(site / DIST_INFO / "RECORD")


def check_writable(site: Path) -> None:
    """Refuses an environment that is not the user's to change.

    Raises:
        InstallError: No write permission, or a Python that belongs to the operating system.
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
