"""Build the project's environment from the locks: one that serves, trains and tests on a CPU.

Owns: which Python is good enough, the virtual environment, how uv is told about this machine's package
sources, and the check that the result is what the locks say. Knows nothing about the project's code.
Standard library only, since nothing is installed yet when it runs.

Usage: `python requirements/install.py [FOLDER]` (default `.venv`), or `make setup`. A second run with
unchanged locks returns at once.

pip is used for one thing, to fetch uv: the locks give hashes for the packages whose one file serves every
platform, and exact versions for the rest (torch has another file on every kind of machine). uv checks the
hashes that are there; pip would insist on all or none.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

UV = "uv==0.13.9"
ROOT = Path(__file__).resolve().parent.parent
LOCKS = (ROOT / "requirements" / "cpu.lock", ROOT / "requirements" / "dev.lock")
EXCLUDED = ROOT / "requirements" / "exclude.txt"
OLDEST, NEWEST = (3, 11), (3, 13)
STAMP = "onebase.stamp"


class InstallError(Exception):
    """The environment cannot be built; the message says what to do about it."""


def main(arguments: list[str]) -> int:
    """Bring the environment in FOLDER up to date; print what was done and how long it took."""
    folder = Path(arguments[0] if arguments else ".venv").absolute()
    try:
        require_python()
        wanted = fingerprint()
        stamp = folder / STAMP
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
            return 0
        started = time.monotonic()
        python = create(folder)
        install(python)
        verify(python)
        stamp.write_text(wanted, encoding="utf-8")
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"environment ready in {time.monotonic() - started:.0f} s: {folder}")
    return 0


def require_python() -> None:
    """Refuse an interpreter for which the engine has no build."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        raise InstallError(
            f"Python {sys.version_info[0]}.{sys.version_info[1]} is not supported: use 3.11, 3.12 or 3.13, "
            "for example `make PYTHON=python3.12 ...`"
        )
    if sys.platform != "linux":
        raise InstallError(f"the CPU engine has builds for Linux only, and this is {sys.platform}")


def fingerprint() -> str:
    """Everything the environment is made from, as one string: it changes when a rebuild is due."""
    digest = hashlib.sha256()
    for path in (*LOCKS, EXCLUDED, ROOT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return f"{sys.version} {ROOT} {digest.hexdigest()}\n"


def create(folder: Path) -> Path:
    """A virtual environment of this interpreter's version with uv in it; returns its python."""
    python = folder / "bin" / "python"
    version = "import sys; print(sys.version)"
    if folder.exists():
        (folder / STAMP).unlink(missing_ok=True)
        try:
            found = subprocess.run(
                [python, "-c", version], capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            found = "broken"
        if found != sys.version.strip():
            if not (folder / "pyvenv.cfg").is_file():
                raise InstallError(
                    f"{folder} is not a virtual environment: move it away or name another folder"
                )
            shutil.rmtree(folder)
    if not folder.exists():
        made = subprocess.run(
            [sys.executable, "-m", "venv", folder], check=False, capture_output=True, text=True
        )
        if made.returncode != 0:
            shutil.rmtree(folder, ignore_errors=True)
            raise InstallError(
                f"{sys.executable} cannot make a virtual environment "
                f"(on Debian: apt-get install python3-venv): {(made.stderr or made.stdout).strip()}"
            )
    run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", UV])
    return python


def install(python: Path) -> None:
    """Everything in the locks, then this project itself, without resolving anything."""
    environment, options = uv_settings(python)
    uv: list[str | Path] = [python.with_name("uv"), "pip", "install", "--python", python, "--no-deps"]
    locks: list[str | Path] = [part for lock in LOCKS for part in ("--requirements", lock)]
    run([*uv, "--no-build", *options, *locks], environment)
    run([*uv, "--no-build-isolation", "--editable", ROOT], environment)


def uv_settings(python: Path) -> tuple[dict[str, str], list[str]]:
    """uv's environment and options for this machine: uv does not read pip's configuration, so translate it.

    Where pip is told of a folder of wheels, the CPU build of torch is expected there; else uv is told to
    take torch from the index of its CPU builds.
    """
    pip = pip_configuration(python)
    environment = dict(os.environ)
    environment.pop("VIRTUAL_ENV", None)
    if links := pip.get("find-links", "").split():
        environment.setdefault("UV_FIND_LINKS", ",".join(links))
    if index := pip.get("index-url"):
        environment.setdefault("UV_DEFAULT_INDEX", index)
    if certificates := pip.get("cert"):
        environment.setdefault("SSL_CERT_FILE", certificates)
    if timeout := pip.get("default-timeout") or pip.get("timeout"):
        environment.setdefault("UV_HTTP_TIMEOUT", timeout)
    return environment, [] if environment.get("UV_FIND_LINKS") else ["--torch-backend", "cpu"]


def pip_configuration(python: Path) -> dict[str, str]:
    """What pip is configured with on this machine (`pip config list`); the environment wins over files."""
    listed = subprocess.run(
        [python, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    )
    found: dict[str, tuple[bool, str]] = {}
    for line in listed.stdout.splitlines():
        key, equals, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if equals:
            from_environment = section == ":env:"
            if from_environment or not found.get(name, (False, ""))[0]:
                found[name] = (from_environment, str(ast.literal_eval(value)))
    return {name: value for name, (_, value) in found.items()}


def verify(python: Path) -> None:
    """Refuse an environment that holds what the locks leave out, or a torch built for CUDA."""
    environment, _ = uv_settings(python)
    listed = subprocess.run(
        [python.with_name("uv"), "pip", "freeze", "--python", python],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    installed = set(re.findall(r"^([A-Za-z0-9._-]+)==", listed.stdout, flags=re.MULTILINE))
    if wrong := sorted(installed & set(excluded())):
        raise InstallError(
            f"{', '.join(wrong)} must not be in {python.parents[1]}: delete that folder and try again"
        )
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", purelib], check=True, capture_output=True, text=True).stdout.strip()
    version = (Path(site) / "torch" / "version.py").read_text(encoding="utf-8")
    if not re.search(r"^cuda: .* = None$", version, flags=re.MULTILINE):
        raise InstallError(
            f"torch in {python.parents[1]} is not a CPU build: this machine's package sources "
            f"(PIP_FIND_LINKS, UV_FIND_LINKS) have none for this Python, {sys.version.split()[0]}"
        )


def excluded() -> list[str]:
    """The names in exclude.txt."""
    lines = (line.partition("#")[0].strip() for line in EXCLUDED.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def run(command: list[str | Path], environment: dict[str, str] | None = None) -> None:
    """Run a step, its output visible; a failure ends the installation."""
    try:
        subprocess.run(command, check=True, env=environment, cwd=ROOT)
    except subprocess.CalledProcessError as error:
        raise InstallError(f"`{' '.join(map(str, command))}` ended with status {error.returncode}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
