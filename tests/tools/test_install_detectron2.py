"""tools/install_detectron2.py, run from end to end in throw-away environments with a fake wheel."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
import subprocess
import venv
import zipfile
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
DIST_INFO = "sal_detectron2-0.7.2.dist-info"
MODULES = ("__init__", "config", "data", "engine", "structures")
SOURCES = {f"detectron2/{name}.py": "VERSION = 'from the wheel'\n" for name in MODULES}
EXTENSION = {"detectron2/_C.cpython-310-x86_64-linux-gnu.so": "not for this Python"}
STRAY = {"tools/__init__.py": "", "tools/train_net.py": "print('not ours')\n"}
METADATA = {
    f"{DIST_INFO}/METADATA": "Metadata-Version: 2.1\nName: sal-detectron2\nVersion: 0.7.2\n"
}


@dataclasses.dataclass(frozen=True)
class Environment:
    """An environment without pip, so that nothing can reach an index."""

    python: Path
    site: Path
    wheel: Path

    def install(self, *arguments: str, patch: str = "") -> subprocess.CompletedProcess[str]:
        """Runs the installer with the fake wheel pinned; `patch` is run first."""
        digest = hashlib.sha256(self.wheel.read_bytes()).hexdigest()
        program = (
            f"import os, sys\nsys.path.insert(0, {str(TOOLS)!r})\nimport install_detectron2\n"
            f"install_detectron2.WHEEL_SHA256 = {digest!r}\n{patch}\n"
            "sys.exit(install_detectron2.main(sys.argv[1:]))"
        )
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        return subprocess.run(
            [self.python, "-c", program, *arguments],
            env=clean,
            cwd=self.wheel.parent,
            capture_output=True,
            text=True,
        )

    def install_wheel(self, patch: str = "") -> subprocess.CompletedProcess[str]:
        """Runs the installer on the fake wheel."""
        return self.install("--wheel", str(self.wheel), patch=patch)

    def place(self, files: dict[str, str]) -> None:
        """Writes files into site-packages, as another installer would have."""
        for name, text in files.items():
            path = self.site / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def is_installed(self) -> bool:
        """The pure-Python part and its record are there, and nothing else."""
        found = {str(path.relative_to(self.site)) for path in self.site.rglob("*")}
        found = {path for path in found if "__pycache__" not in path}
        return found >= set(SOURCES) | set(METADATA) and not found & set(EXTENSION | STRAY)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """A new environment, and a fake wheel beside it."""
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    wheel = tmp_path / "sal_detectron2-0.7.2-cp310-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in whole_wheel().items():
            archive.writestr(name, text)
    return Environment(folder / "bin" / "python", site, wheel)


def whole_wheel() -> dict[str, str]:
    """All files of the fake wheel, with their record."""
    files = SOURCES | EXTENSION | STRAY | METADATA
    rows = [f"{name},{record_hash(text)},{len(text)}" for name, text in files.items()]
    record = f"{DIST_INFO}/RECORD"
    return files | {record: "\n".join([*rows, f"{record},,"]) + "\n"}


def record_hash(text: str) -> str:
    """A file's hash as a record has it."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
    return "sha256=" + digest.rstrip(b"=").decode()


def exit_after_renames(count: int) -> str:
    """Code that ends the process without any clean-up before rename number `count`."""
    return f"""
from pathlib import Path
renames, rename = iter(range({count})), Path.rename
def rename_or_die(self, target):
    if next(renames, None) is None:
        os._exit(9)
    return rename(self, target)
Path.rename = rename_or_die
"""


def test_installs_the_python_part_without_extension_and_stray_package(
    environment: Environment,
) -> None:
    process = environment.install_wheel()
    assert process.returncode == 0, process.stderr
    assert environment.is_installed()
    assert "package sal-detectron2 0.7.2, pure-Python part" in process.stdout
    record = (environment.site / DIST_INFO / "RECORD").read_text()
    assert "tools/" not in record.replace(f"{DIST_INFO}/INSTALLER", "")
    assert "_C." not in record


def test_second_run_changes_nothing_and_needs_no_wheel(environment: Environment) -> None:
    environment.install_wheel()
    before = (environment.site / "detectron2").stat().st_ino
    process = environment.install()
    assert process.returncode == 0, process.stderr
    assert (environment.site / "detectron2").stat().st_ino == before


def test_a_detectron2_from_elsewhere_is_kept(environment: Environment) -> None:
    environment.place(dict.fromkeys(SOURCES, "VERSION = 'built from source'\n"))
    process = environment.install_wheel()
    assert process.returncode == 0, process.stderr
    assert "unknown origin" in process.stdout
    assert "built from source" in (environment.site / "detectron2/config.py").read_text()
    assert not (environment.site / DIST_INFO).exists()


def test_a_folder_of_that_name_in_the_working_directory_does_not_count(
    environment: Environment,
) -> None:
    (environment.wheel.parent / "detectron2").mkdir()
    process = environment.install_wheel()
    assert process.returncode == 0, process.stderr
    assert environment.is_installed()


def test_a_foreign_detectron2_that_cannot_be_imported_is_reported(environment: Environment) -> None:
    environment.place(SOURCES | {"detectron2/data.py": "import library_that_is_missing\n"})
    process = environment.install_wheel()
    assert process.returncode == 1
    assert "library_that_is_missing" in process.stderr
    assert "requirements.txt" in process.stderr


def test_a_foreign_folder_in_the_way_is_not_touched(environment: Environment) -> None:
    environment.place({"detectron2/notes.txt": "mine"})
    process = environment.install_wheel()
    assert process.returncode == 1
    assert "remove it" in process.stderr
    assert (environment.site / "detectron2/notes.txt").read_text() == "mine"


def test_another_file_than_the_pinned_one_is_refused(environment: Environment) -> None:
    other = environment.wheel.parent / "other.whl"
    other.write_bytes(environment.wheel.read_bytes() + b"\0")
    process = environment.install("--wheel", str(other))
    assert process.returncode == 1
    assert "sha256" in process.stderr
    assert not (environment.site / "detectron2").exists()


def test_a_wheel_that_is_not_there_is_named(environment: Environment) -> None:
    process = environment.install("--wheel", "nowhere.whl")
    assert process.returncode == 1
    assert "cannot read nowhere.whl" in process.stderr


def test_a_failed_download_says_what_else_can_be_done(environment: Environment) -> None:
    process = environment.install()  # this environment has no pip
    assert process.returncode == 1
    assert "No module named pip" in process.stderr
    assert "--wheel" in process.stderr


def test_a_missing_file_is_repaired(environment: Environment) -> None:
    environment.install_wheel()
    (environment.site / "detectron2/engine.py").unlink()
    process = environment.install_wheel()
    assert process.returncode == 0, process.stderr
    assert "incomplete" in process.stdout
    assert environment.is_installed()


@pytest.mark.parametrize("renames", [0, 1])
def test_an_interrupted_installation_is_repaired(environment: Environment, renames: int) -> None:
    assert environment.install_wheel(patch=exit_after_renames(renames)).returncode == 9
    assert not (environment.site / "detectron2").exists()
    process = environment.install_wheel()
    assert process.returncode == 0, process.stderr
    assert environment.is_installed()
    assert not list(environment.site.glob(".detectron2-staging-*"))


@pytest.mark.parametrize("renames", [0, 1, 2, 3])
def test_an_interrupted_repair_is_repaired(environment: Environment, renames: int) -> None:
    environment.install_wheel()
    (environment.site / "detectron2/engine.py").unlink()
    assert environment.install_wheel(patch=exit_after_renames(renames)).returncode == 9
    process = environment.install_wheel()
    assert process.returncode == 0, process.stderr
    assert environment.is_installed()


def test_extras_of_a_plain_pip_installation_are_removed(environment: Environment) -> None:
    environment.place(whole_wheel() | {"tools/__pycache__/train_net.cpython-311.pyc": "cache"})
    process = environment.install()
    assert process.returncode == 0, process.stderr
    assert environment.is_installed()
    assert not (environment.site / "tools").exists()


def test_a_tools_package_with_files_of_others_stays(environment: Environment) -> None:
    environment.place(whole_wheel() | {"tools/of_another_package.py": "KEEP = True\n"})
    process = environment.install()
    assert process.returncode == 0, process.stderr
    assert "Kept" in process.stdout
    assert (environment.site / "tools/of_another_package.py").exists()
    assert (environment.site / "tools/__init__.py").exists()


def test_a_python_of_the_operating_system_is_left_alone(environment: Environment) -> None:
    environment.wheel.with_name("EXTERNALLY-MANAGED").touch()
    patch = (
        f"import sysconfig\nsysconfig.get_path = {{'purelib': {str(environment.site)!r}, "
        f"'stdlib': {str(environment.wheel.parent)!r}}}.get\nsys.base_prefix = sys.prefix"
    )
    process = environment.install_wheel(patch=patch)
    assert process.returncode == 1
    assert "virtual environment" in process.stderr
    assert not (environment.site / "detectron2").exists()
