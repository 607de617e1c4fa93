"""What a host that is none answers besides its status: terms, engines, models, receipts."""

from collections.abc import Mapping
from typing import cast
from urllib.parse import parse_qs

import msgspec

from tui.client import CommandRefusedError
from tui.model.answers import Json
from tui.model.status import HostStatus

SETTLED_AT = "2026-03-01T12:03:00Z"
TERMS: Json = {
    "is_paused": False,
    "schedule": {
        "mode": "weekly",
        "time_zone": "Europe/Berlin",
        "windows": [
            {"days": ["mon", "tue", "wed", "thu", "fri"], "start": "18:30", "end": "08:00"},
            {"days": ["sat", "sun"], "start": "00:00", "end": "24:00"},
        ],
    },
    "models": {},
    "new_models_on": True,
    "slots": 0,
    "price": {
        "mode": "inherit",
        "in_micros_per_mtok": 0,
        "cached_micros_per_mtok": 0,
        "out_micros_per_mtok": 0,
        "minimum_micros": 0,
        "factor_percent": 100,
        "floor_in_micros_per_mtok": 0,
        "floor_out_micros_per_mtok": 0,
        "ceiling_in_micros_per_mtok": 0,
        "ceiling_out_micros_per_mtok": 0,
    },
    "access": {"allow": [], "deny": []},
    "per_client": {"requests_per_minute": 0, "tokens_per_minute": 0, "micros_per_minute": 0},
    "idle": {
        "is_on": True,
        "action": "pause",
        "gpu_percent": 10,
        "cpu_percent": 0,
        "input_s": 300,
        "quiet_s": 120,
    },
    "power": {"limit_watts": 0},
    "heat": {"limit_celsius": 0, "resume_below_celsius": 0},
}
CHANGES: Json = {"heat": {"limit_celsius": 80}}
CUSTOMERS: Json = {
    "customers": [
        {"names": [f"pseudonym:{'4f' * 32}", "peer:12D3KooWGateway"], "open_requests": 2},
        {"names": [f"wallet:{'c3' * 32}"], "open_requests": 1},
    ]
}
STATEMENT = (
    "Model: {model_id}\nTerms: Llama 3.1 Community License (llama3.1)\n"
    "https://www.llama.com/llama3_1/license/\n"
    "Ask Meta for a licence of your own above 700 million monthly users.\n"
    "Shown to clients: Built with Llama"
)
RECEIPTS: Json = {
    "receipts": [
        {
            "cosignature": None,
            "entries": [
                {
                    "request_id": f"{number:02x}" * 16,
                    "finished_at": f"2026-03-01T12:0{number % 10}:00Z",
                    "took_ms": 1_700 * number,
                    "prompt_tokens": 120 * number,
                    "cached_tokens": 64,
                    "completion_tokens": 41 * number,
                    "cost_micros": 7 * number,
                    "finish_reason": "disconnected" if number == 3 else "stop",
                }
                for number in range(1, 8)
            ],
        }
    ]
}


GIB = 1 << 30


def _shelf(model_id: str, licence: str, gib: float, tokens_per_s: float, **more: object) -> Json:
    return {
        "id": model_id,
        "title": model_id.rpartition("/")[2],
        "licence": licence,
        "format": "gguf",
        "quantization": "int4",
        "weights_bytes": int(gib * GIB),
        "memory_bytes": int((gib * 1.05 + 1) * GIB),
        "context_tokens": 8192,
        "slots": 4,
        "tokens_per_s": tokens_per_s,
        **more,
    }


FETCHED = "Qwen/Qwen3-8B"
"""A model whose files are there."""

SHELF: tuple[Json, ...] = (
    _shelf("mistralai/Mistral-Small-3.2-24B-Instruct-2506", "apache-2.0", 13.3, 31.0),
    _shelf(FETCHED, "apache-2.0", 4.7, 92.4, folder="/models/Qwen--Qwen3-8B-GGUF"),
    _shelf("meta-llama/Llama-3.1-8B-Instruct", "llama3.1", 4.6, 95.0, gated=True),
    _shelf("google/gemma-3-4b-it", "gemma", 2.3, 180.0, gated=True),
    _shelf("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0", 0.1, 400.0),
    _shelf("Qwen/Qwen3-32B", "apache-2.0", 18.4, 0.0, obstacle="takes 24.3 GiB of a GPU"),
)
FREE_LICENCES = ("apache-2.0", "mit")


class FakeAnswers:
    """Keeps terms, engines and licences as a host does; judges only what the tests need.

    Attributes:
        fetches: As ``GET /v1/models`` tells them.
        asked: Method, path and body of every change that was wished.
        refusal: When set, every change is refused with it.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Json]] = []
        self.refusal = ""
        self.fetches: list[Json] = []
        self.changes: Json = CHANGES
        self.accepted: set[str] = {"HuggingFaceTB/SmolLM2-135M-Instruct".lower()}

    def answer(self, method: str, target: str, body: Json, status: HostStatus) -> object:
        """Return what the control API would.

        Raises:
            CommandRefusedError: When it would refuse.
        """
        path, _, query = target.partition("?")
        if method == "GET":
            return self._get(path, query, status)
        self.asked.append((method, path, body))
        if self.refusal:
            raise CommandRefusedError(self.refusal)
        if (method, path) == ("PATCH", "/v1/terms"):
            return self._patch(body)
        if path == "/v1/licences/accept":
            self.accepted.add(str(body["model_id"]).lower())
        elif path == "/v1/licences/withdraw":
            self.accepted.discard(str(body["model_id"]).lower())
        elif path in ("/v1/engines", "/v1/engines/swap"):
            _check_engine(body)
        elif path == "/v1/models/fetch":
            self.fetches = [_fetch(str(body["model_id"]), str(body["format"]))]
        elif path == "/v1/models/cancel":
            self.fetches = [{**each, "state": "cancelled"} for each in self.fetches]
        return {"ok": True}

    def _get(self, path: str, query: str, status: HostStatus) -> object:
        if path == "/v1/terms":
            return self._told()
        if path == "/v1/engines":
            return {
                "engines": [
                    {"status": engine, "engine": _engine_values(engine.name, engine.kind)}
                    for engine in status.engines
                ]
            }
        if path == "/v1/licences":
            return self._licence(parse_qs(query)["model"][0])
        known: Mapping[str, object] = {
            "/v1/customers": CUSTOMERS,
            "/v1/receipts": RECEIPTS,
            "/v1/models": {
                "models": [self._shown(each) for each in SHELF],
                "fetches": self.fetches,
            },
        }
        if path not in known:
            raise CommandRefusedError("no such page")
        return known[path]

    def _shown(self, model: Json) -> Json:
        is_accepted = str(model["id"]).lower() in self.accepted
        shown = {**model, "accepted": is_accepted or model["licence"] in FREE_LICENCES}
        if model.get("folder"):
            spec: Json = {"kind": "llamacpp", "model": f"{model['folder']}/Qwen3-8B-Q4_K_M.gguf"}
            spec |= {"model_id": model["id"], "context_tokens": 8192, "template": "", "threads": 0}
            shown["engine"] = {**_engine_values("qwen3-8b", "llamacpp"), "slots": 4, "spec": spec}
        return shown

    def _licence(self, model_id: str) -> Json:
        is_llama = "llama" in model_id.lower()
        free = f"Model: {model_id}\nTerms: Apache License 2.0 (apache-2.0)"
        return {
            "model_id": model_id,
            "licence": "llama3.1" if is_llama else "apache-2.0",
            "statement": STATEMENT.format(model_id=model_id) if is_llama else free,
            "text_sha256": "ab" * 32,
            "accepted": model_id.lower() in self.accepted,
        }

    def _told(self) -> Json:
        terms = _merged(TERMS, self.changes)
        return {"terms": terms, "initial": TERMS, "changed": _paths(self.changes), "now": None}

    def _patch(self, body: Json) -> Json:
        changes = _merged(self.changes, body)
        for path, value in _values(_merged(TERMS, changes)):
            if isinstance(value, int) and value < 0:
                raise CommandRefusedError(f"{path}: Expected `int` >= 0; nothing was changed", path)
        self.changes = changes
        return self._told()


def encoded(answer: object) -> bytes:
    """Return an answer as JSON."""
    return msgspec.json.encode(answer)


def _engine_values(name: str, kind: str) -> Json:
    return {
        "name": name,
        "slots": 8,
        "queue_max": 16,
        "spec": {"kind": kind, "model": f"/models/{name}.gguf", "model_id": "org/model"},
        "prices": {
            "in_micros_per_mtok": 20_000,
            "cached_micros_per_mtok": 10_000,
            "out_micros_per_mtok": 40_000,
            "minimum_micros": 0,
        },
    }


def _fetch(model_id: str, form: str) -> Json:
    return {
        "model_id": model_id,
        "format": form,
        "state": "running",
        "phase": "fetching",
        "file": "Mistral-Small-3.2-24B-Q4_K_M.gguf",
        "done_bytes": 6_140_000_000,
        "total_bytes": 14_280_000_000,
    }


def _check_engine(body: Json) -> None:
    engine = cast(Json, body["engine"])
    spec = cast(Json, engine["spec"])
    if spec["kind"] == "llamacpp" and not spec.get("model"):
        raise CommandRefusedError("spec of kind llamacpp lacks 'model'", "engine")


def _merged(target: Json, patch: Json) -> Json:
    result = dict(target)
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict):
            held = result.get(name)
            result[name] = _merged(held if isinstance(held, dict) else {}, value)
        else:
            result[name] = value
    return result


def _values(values: Json, prefix: str = "") -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for name, value in sorted(values.items()):
        if isinstance(value, dict):
            found += _values(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value))
    return found


def _paths(values: Json) -> list[str]:
    return [path for path, _ in _values(values)]
