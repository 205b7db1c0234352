"""Our own HTTP routes: probes, metrics, the list of models, and reading the registry.

Each answers while the engine starts or restarts. What changes the registry over HTTP comes with keys that have
rights; until then publishing is the command line's.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from adapters.base import BaseModel
from adapters.errors import AdapterError
from adapters.manifest import Manifest
from adapters.registry import Registry
from server import errors
from server.admission import Admission
from server.engine.host import EngineHost
from server.engine.residency import Residency
from server.errors import MethodNotAllowed, ServerError, from_adapter_error
from server.metrics import Metrics
from server.resolve import Resolver

_EXACT = frozenset(
    {
        "/livez",
        "/readyz",
        "/health",
        "/ping",
        "/metrics",
        "/v1/models",
        "/v1/adapters",
        "/openapi.json",
        "/docs",
    }
)
_UNDER = ("/v1/models/", "/v1/adapters/")


def owns(path: str) -> bool:
    """Whether a path is answered here rather than by vLLM."""
    return path in _EXACT or path.startswith(_UNDER)


def create_routes(
    *,
    host: EngineHost,
    registry: Registry,
    base: BaseModel,
    resolver: Resolver,
    residency: Residency[Manifest],
    admission: Admission,
    metrics: Metrics,
    created: int,
) -> FastAPI:
    """The application that holds our routes; `created` is the server's start as a Unix time."""
    app = FastAPI(
        title="OneBase", description="Many fine-tunes of one base model behind one OpenAI-compatible API."
    )

    @app.exception_handler(ServerError)
    async def refuse(request: Request, error: ServerError) -> JSONResponse:
        request_id = request.headers.get("x-request-id", "")
        extra = {k.decode(): v.decode() for k, v in errors.headers(error, request_id)}
        return JSONResponse(errors.body(error, request_id), error.status, headers=extra)

    @app.exception_handler(AdapterError)
    async def refuse_adapter(request: Request, error: AdapterError) -> JSONResponse:
        return await refuse(request, from_adapter_error(error))

    @app.exception_handler(405)
    async def refuse_method(request: Request, error: HTTPException) -> JSONResponse:
        problem = MethodNotAllowed(f"{request.url.path} does not answer {request.method}", param="method")
        answer = await refuse(request, problem)
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def fail(request: Request, _: Exception) -> JSONResponse:
        # Starlette raises the error again behind this answer, so that the gateway logs it.
        return await refuse(request, errors.internal())

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        """200 as long as this process answers."""
        return {"status": "alive", "engine": host.state}

    @app.get("/readyz")
    @app.get("/health")
    @app.get("/ping")
    async def readyz() -> Response:
        """200 when the engine can answer; 503 with the reason while it starts, restarts or drains."""
        if host.ready and not admission.closed:
            return JSONResponse({"status": "ready", "base": base.name, "restarts": host.restarts})
        state = "draining" if admission.closed else host.state
        return JSONResponse({"status": state, "problem": host.problem}, 503, headers={"retry-after": "5"})

    @app.get("/metrics")
    async def prometheus() -> Response:
        """vLLM's series and ours in the Prometheus text format."""
        metrics.running.set(admission.running)
        metrics.waiting.set(admission.waiting)
        metrics.resident.set(len(residency.resident))
        metrics.restarts.set(host.restarts)
        metrics.ready.set(host.ready_s or 0)
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    def base_card(name: str) -> dict[str, Any]:
        return _card(name, created, root=base.source, parent=None) | {"max_model_len": host.max_model_len}

    def adapter_card(name: str) -> dict[str, Any]:
        """One card a name: what it answers with now, and every version and alias, loaded or not."""
        hidden = registry.retired_versions(name)
        versions = [v for v in registry.versions(name) if v.version not in hidden]
        current = resolver.named(name).manifest
        loaded = set(residency.resident)
        shown = [v for v in versions if resolver.fits(v)]
        root = current.ref if current else name
        card = _card(name, _unix(shown[-1].at) if shown else created, root=root, parent=base.name)
        card["max_model_len"] = host.max_model_len
        card["onebase"] = {
            "production": root,
            "proof": current.proof.level if current else None,
            "aliases": {a: [t.version for t in e.targets] for a, e in registry.aliases(name).items()},
            "versions": [{"id": v.ref, "proof": v.proof.level, "loaded": v.ref in loaded} for v in shown],
        }
        return card

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        """The base and every published adapter of it, loaded or not, in OpenAI's shape."""
        cards = [base_card(name) for name in resolver.base_names]
        for name in registry.names():
            try:
                cards.append(adapter_card(name))
            except (ServerError, AdapterError):
                continue  # retired as a whole, or made for another base
        return {"object": "list", "data": cards}

    @app.get("/v1/models/{model:path}")
    def model(model: str) -> dict[str, Any]:
        """One card; `model` may be any reference that a request may name."""
        if model in resolver.base_names:
            return base_card(model)
        manifest = resolver.named(model).manifest
        card = adapter_card(manifest.name if manifest else model)
        return card | {"id": model, "root": manifest.ref if manifest else card["root"]}

    @app.get("/v1/adapters")
    def adapters() -> dict[str, Any]:
        """Every name in the registry with its newest version, of whatever base."""
        return {
            "object": "list",
            "data": [{"name": n, "versions": len(registry.versions(n))} for n in registry.names()],
        }

    @app.get("/v1/adapters/{name:path}/versions")
    def versions(name: str) -> dict[str, Any]:
        return {"object": "list", "data": [_manifest(v) for v in registry.versions(name)]}

    @app.get("/v1/adapters/{name:path}/aliases")
    def aliases(name: str) -> dict[str, Any]:
        entries = {
            a: [e.model_dump(mode="json") for e in registry.history(name, a)] for a in registry.aliases(name)
        }
        return {"object": "list", "data": entries}

    @app.get("/v1/adapters/{ref:path}")
    def adapter(ref: str) -> dict[str, Any]:
        """The manifest that a reference means now."""
        return _manifest(registry.resolve(ref))

    return app


def _card(name: str, created: int, *, root: str, parent: str | None) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "onebase",
        "root": root,
        "parent": parent,
    }


def _manifest(manifest: Manifest) -> dict[str, Any]:
    return {"id": manifest.ref, **manifest.model_dump(mode="json")}


def _unix(at: str) -> int:
    return int(datetime.fromisoformat(at).timestamp())
