"""A schema registry: a real HTTP server that answers as Confluent's does."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import UUID

from schemas import avro


class Answers(BaseHTTPRequestHandler):
    """GET /schemas/ids/{id} and /schemas/guids/{guid}."""

    def do_GET(self) -> None:
        """Answer one look-up."""
        registry: Registry = self.server  # type: ignore[assignment]  # the one that made this handler
        path = self.path.partition("?")[0]
        registry.asked.append(path)
        found = registry.schemas.get(path)
        status, body = (200, found) if found else registry.missing
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Registry(ThreadingHTTPServer):
    """Our newest schemas by id or GUID. missing: status and body for what it does not have; asked: paths, in order."""

    def __init__(self, *names: Mapping[int, str] | Mapping[UUID, str]) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []
        self.missing: tuple[int, object] = (404, {"error_code": 40403, "message": "Schema not found"})
        self.schemas: dict[str, object] = {}
        for key, name in (item for some in names for item in some.items()):
            kind = "guids" if isinstance(key, UUID) else "ids"
            self.schemas[f"/schemas/{kind}/{key}"] = {"schema": json.dumps(avro.NEWEST[name].raw)}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Answer within the block."""
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        yield
        self.shutdown()
