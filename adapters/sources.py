"""Where an adapter to be published comes from: a local folder, or a Hugging Face repository.

    fetch_source("./out/adapter", cache=...)       the folder itself
    fetch_source("hf:org/name@rev", cache=...)     fetched into the cache (also without `hf:`)

Only the files that an adapter may have are fetched, never a pickle. What they are worth, `check` decides.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from filelock import FileLock

from adapters import disk, hub
from adapters.errors import BadValue, Refused, SourceNotFound, SourceUnreachable, StoreFull

_FORMS = "A source is a local folder or a Hugging Face repository (`hf:org/name` or `hf:org/name@revision`)"
_LATER = ("s3://", "gs://", "az://", "http://", "https://")
_COMPANIONS = (".json", ".jinja", ".md", "tokenizer.model")


def fetch_source(spec: str, *, revision: str | None = None, cache: Path) -> Path:
    """A local folder with the adapter; BadValue, SourceNotFound, SourceUnreachable, or Refused."""
    if spec.startswith(_LATER):
        raise BadValue(
            f"source {spec!r}: {spec.split(':')[0]}:// is not supported yet. {_FORMS}; copy the "
            "adapter to a folder first.",
            code="unsupported_source",
            param="source",
        )
    explicit = spec.startswith("hf:")
    local = Path(spec).expanduser()
    if not explicit and local.is_dir():
        if revision is not None:
            raise BadValue(
                f"revision {revision!r}: {spec!r} is a local folder and has none.",
                code="bad_revision",
                param="revision",
            )
        return local
    repo, inline = hub.split_revision(spec.removeprefix("hf:"))
    if not hub.REPO.fullmatch(repo):
        raise SourceNotFound(f"There is no folder {spec!r}. {_FORMS}.")
    if inline and revision and inline != revision:
        raise BadValue(
            f"revision {revision!r} contradicts {spec!r}. Give one of them.",
            code="bad_revision",
            param="revision",
        )
    return _fetch(repo, inline or revision, cache)


def _wanted(name: str) -> bool:
    return name == "adapter_model.safetensors" or name.endswith(_COMPANIONS)


def _fetch(repo: str, revision: str | None, cache: Path) -> Path:
    try:
        listing = hub.look(repo, revision)
        names = {file.name for file in listing.files}
        pickled = sorted(names & {"adapter_model.bin", "adapter_model.pt"})
        if "adapter_model.safetensors" not in names and pickled:
            raise Refused(
                "pickled_weights",
                f"{repo} has its weights only as {pickled[0]}, a pickle, which OneBase never opens. Ask its "
                "author for adapter_model.safetensors, or save it so with peft where you trust the file.",
                param=pickled[0],
            )
        target = cache / f"{repo.replace('/', '--')}@{listing.commit}"
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{target.name}.lock"):
            if not target.is_dir():
                partial = cache / f".{target.name}.partial"
                partial.mkdir(exist_ok=True)
                hub.fetch(listing, listing.wanted(_wanted), partial)
                shutil.rmtree(partial / ".cache", ignore_errors=True)
                disk.move_folder(partial, target)
    except hub.HubMissing as error:
        raise SourceNotFound(
            f"The source {repo!r} was not found on Hugging Face: {error}. {_FORMS}."
        ) from error
    except hub.HubUnreachable as error:
        raise SourceUnreachable(
            f"Hugging Face cannot be reached for {repo!r}: {error}. Check the network, or give a local "
            f"folder."
        ) from error
    except hub.HubBroken as error:
        raise SourceUnreachable(f"{repo!r} did not arrive intact: {error}. Try again.") from error
    except OSError as error:
        problem = StoreFull if disk.is_full(error) else SourceUnreachable
        raise problem(disk.explain(error, f"fetching {repo} into {cache}")) from error
    return target
