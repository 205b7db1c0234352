"""Hugging Face repositories: what a repo holds, and a verified copy of the files that are wanted.

The only place that talks to the hub. Knows neither bases nor adapters; its three errors say what happened,
and the caller says what that means. Nothing is unpickled, and no pickled file is ever asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapters import disk

REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_TIMEOUT = 20.0


class HubError(Exception):
    """Root of the three below."""


class HubMissing(HubError):
    """The repository, or this revision of it, does not exist (or is not visible without a token)."""


class HubUnreachable(HubError):
    """No answer: no network, offline mode, or the hub is down."""


class HubBroken(HubError):
    """What came is not what the hub announced."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    name: str
    size: int
    sha256: str | None  # only known for large files


@dataclass(frozen=True, slots=True)
class Listing:
    repo: str
    commit: str
    files: tuple[RemoteFile, ...]

    def wanted(self, keep: Callable[[str], bool]) -> tuple[RemoteFile, ...]:
        """The files at the top of the repo that `keep` wants, by name."""
        return tuple(file for file in self.files if "/" not in file.name and keep(file.name))


def split_revision(spec: str) -> tuple[str, str | None]:
    """`org/name@rev` -> (`org/name`, `rev`)."""
    repo, _, revision = spec.partition("@")
    return repo, revision or None


def look(repo: str, revision: str | None) -> Listing:
    """What the repo holds at this revision; one request."""
    from huggingface_hub import HfApi
    from huggingface_hub import errors as hub

    at = f" at revision {revision!r}" if revision else ""
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT)
    except hub.GatedRepoError:
        raise HubMissing(f"{repo} is gated: accept its terms on its page, then set HF_TOKEN") from None
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError, hub.HFValidationError):
        raise HubMissing(f"{repo}{at} does not exist, or is private and HF_TOKEN is not set") from None
    except _unreachable() as error:
        raise HubUnreachable(_reason(error)) from error
    files = []
    for sibling in info.siblings or []:
        lfs = sibling.lfs
        files.append(RemoteFile(sibling.rfilename, sibling.size or 0, lfs.sha256 if lfs else None))
    return Listing(repo, info.sha or revision or "main", tuple(files))


def fetch(listing: Listing, files: tuple[RemoteFile, ...], target: Path) -> None:
    """Download `files` into `target` (continuing what is there) and check sizes and hashes.

    Raises a HubError, or OSError when the disk is the problem.
    """
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(
            listing.repo,
            revision=listing.commit,
            local_dir=target,
            allow_patterns=[file.name for file in files],
        )
    except _unreachable() as error:
        raise HubUnreachable(_reason(error)) from error
    for file in files:
        path = target / file.name
        if not path.is_file() or path.stat().st_size != file.size:
            raise HubBroken(f"{file.name} did not arrive whole ({file.size} bytes announced)")
        if file.sha256 is not None and disk.sha256_file(path) != file.sha256:
            path.unlink()  # so that the next try does not continue from bad bytes
            raise HubBroken(f"{file.name} does not have the SHA-256 that the hub announced ({file.sha256})")


def _unreachable() -> tuple[type[Exception], ...]:
    """What a failed request raises; the hub client's HTTP library has changed its name between versions."""
    from huggingface_hub import errors as hub

    found: list[type[Exception]] = [
        hub.OfflineModeIsEnabled,
        hub.LocalEntryNotFoundError,
        hub.HfHubHTTPError,
        ConnectionError,
        TimeoutError,
    ]
    there = (name for name in ("httpx2", "httpx") if importlib.util.find_spec(name) is not None)
    return (*found, *(importlib.import_module(name).HTTPError for name in there))


def _reason(error: Exception) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return first if len(first) <= 200 else first[:197] + "..."
