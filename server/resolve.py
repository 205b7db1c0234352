"""From what a request names to what answers it: the base, or one exact version of one adapter.

Past this point only exact versions exist. Owns the rules of `model` and `adapter_id` and of what a version's
serving block changes in a request; does not know HTTP.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapters import errors as registry_errors
from adapters.base import BaseModel
from adapters.manifest import Manifest
from adapters.registry import Registry, fits
from server.errors import BadRequest, ModelNotFound, Unservable, from_adapter_error

# Routes that write text, and those of vLLM's that turn messages into a prompt by the base's template only.
_GENERATES = ("/v1/chat", "/v1/completions", "/v1/responses", "/v1/messages", "/cohere")
_NO_TEMPLATE = ("/v1/messages", "/v1/responses", "/cohere")


@dataclass(frozen=True, slots=True)
class Target:
    """What answers: `manifest` is None for the base. `model` is the name that the engine and the response carry."""

    model: str
    manifest: Manifest | None


class Resolver:
    """Names to targets on one base. `trust_templates`: whether a client may send its own chat template."""

    def __init__(
        self,
        registry: Registry,
        base: BaseModel,
        *,
        tool_parser: str | None,
        trust_templates: bool = False,
        max_rank: int | None = None,
    ) -> None:
        self._registry = registry
        self._base = base
        self._tool_parser = tool_parser
        self._trust_templates = trust_templates
        self._max_rank = max_rank
        self.base_names = base.names
        self._fits: dict[str, bool] = {}

    def target(self, body: Mapping[str, Any]) -> Target:
        """Raises BadRequest (400), ModelNotFound (404), Unservable (422) or NotReady (503)."""
        model = _text(body, "model")
        adapter_id = _text(body, "adapter_id")
        if (
            adapter_id is not None
            and model is not None
            and model not in self.base_names
            and model != adapter_id
        ):
            raise BadRequest(
                f"model = {model!r} and adapter_id = {adapter_id!r} name two adapters; send one of them, or the base's "
                f"name {self._base.name!r} as model beside adapter_id",
                param="adapter_id",
            )
        wanted = adapter_id if adapter_id is not None else model
        if wanted is None or wanted in self.base_names:
            return Target(self._base.name, None)
        return self.named(wanted, param="model" if adapter_id is None else "adapter_id")

    def named(self, wanted: str, *, param: str = "model") -> Target:
        """The adapter version that `wanted` means now."""
        try:
            manifest = self._registry.resolve(wanted)
        except registry_errors.UnknownAdapter as error:
            raise ModelNotFound(self._unknown(wanted, error.nearest), param=param) from None
        except registry_errors.AdapterError as error:
            raise from_adapter_error(error, param=param) from None
        if not self.fits(manifest):
            raise Unservable(
                f"`{manifest.ref}` was made for the base `{manifest.base.name}`, and this server runs "
                f"`{self._base.name}`; ask a server of that base, or train it again on this one",
                param=param,
            )
        if self._max_rank is not None and manifest.lora is not None and manifest.lora.rank > self._max_rank:
            raise Unservable(
                f"`{manifest.ref}` has rank {manifest.lora.rank}, and this server was started for ranks up to "
                f"{self._max_rank}; start it again (it then makes room), or with --max-lora-rank {manifest.lora.rank}",
                param=param,
            )
        return Target(manifest.ref, manifest)

    def fits(self, manifest: Manifest) -> bool:
        """Whether a version can be served on this base: shapes and tokenizer equal, and weights when recorded."""
        known = self._fits.get(manifest.digest)
        if known is None:
            known = fits(manifest, self._base)
            self._fits[manifest.digest] = known
        return known

    def _unknown(self, wanted: str, nearest: list[str]) -> str:
        names = [*nearest, *difflib.get_close_matches(wanted, self.base_names, n=2, cutoff=0.6)][:4]
        hint = (
            "did you mean " + " or ".join(f"`{n}`" for n in names) + "?"
            if names
            else "GET /v1/models lists what there is."
        )
        return f"The model `{wanted}` does not exist; {hint}"

    def prepare(self, body: dict[str, Any], target: Target, path: str) -> dict[str, Any]:
        """The body for the engine: exact model name, and the version's serving block where the client was silent."""
        options = body.get("chat_template_kwargs")
        sent = body.get("chat_template") or (isinstance(options, dict) and options.get("chat_template"))
        if sent and not self._trust_templates:
            raise BadRequest(
                "chat_template is not taken from requests; publish it with the adapter, or start the server with "
                "--trust-request-chat-template",
                param="chat_template",
            )
        changed = {k: v for k, v in body.items() if k != "adapter_id"}
        changed["model"] = target.model
        serving = target.manifest.serving if target.manifest else None
        if serving is None:
            return changed
        if serving.tool_parser and changed.get("tools") and serving.tool_parser != self._tool_parser:
            raise Unservable(
                f"`{target.model}` needs the tool parser `{serving.tool_parser}`, and this server runs "
                f"`{self._tool_parser}`; start one with --tool-call-parser {serving.tool_parser}",
                param="tools",
            )
        if serving.chat_template and path.startswith(_NO_TEMPLATE):
            raise Unservable(
                f"`{target.model}` needs its own chat template, which {path} cannot be given; "
                "send the request to /v1/chat/completions",
                param="model",
            )
        defaults = dict(serving.generation) if changed.keys() & {"messages", "prompt", "input"} else {}
        if path.startswith(_GENERATES):
            if serving.stop:
                defaults["stop_sequences" if path.startswith("/v1/messages") else "stop"] = list(serving.stop)
            if serving.stop_token_ids:
                defaults["stop_token_ids"] = list(serving.stop_token_ids)
        if serving.chat_template and "messages" in changed:
            defaults["chat_template"] = serving.chat_template
        for key, value in defaults.items():
            if changed.get(key) is None:  # JSON's null is what SDKs send for "not given"
                changed[key] = value
        return changed


def _text(body: Mapping[str, Any], key: str) -> str | None:
    value = body.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadRequest(f"{key} = {str(value)[:60]!r} must be a text", param=key)
    return value or None
