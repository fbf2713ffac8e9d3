"""Doubles of vLLM: a server in a thread, that fails as it is told to, and the trainer's side of a transfer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from types import SimpleNamespace
from typing import Any

from torch import Tensor

Body = dict[str, Any]
Fault = Callable[["Double", BaseHTTPRequestHandler], None]

GENERATE, RPC = "/inference/v1/generate", "/collective_rpc"


class Double:
    """Answers each prompt with its last token and the stop token 1, of log-prob −0.5.

    Attributes:
        asked: (path, body) of every request, in the order in which they came.
        faults: by path, what happens to the next requests for it in place of an answer.
        edit: changes an answer to a request for tokens.
        rows: the size of the vocabulary. processed: what the log-probs are of.
        released: set it to let go of requests that are kept waiting.
    """

    def __init__(self, rows: int) -> None:
        self.rows, self.processed, self.context = rows, True, 32
        self.asked: list[tuple[str, Body]] = []
        self.keys: set[str | None] = set()
        self.faults: dict[str, list[Fault]] = {}
        self.edit: Callable[[Body], Any] = lambda answer: answer
        self.forgets = True
        self.released, self.lock = Event(), Lock()
        self.url = ""

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def settings(self) -> list[Body]:
        """What responses were asked for with, but for those of the checks at the start."""
        asked = [body["sampling_params"] for path, body in self.asked if path == GENERATE]
        return [settings for settings in asked if "seed" in settings]

    def answer(self, path: str, body: Body) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": "m", "max_model_len": self.context}]}
        if path == RPC:
            assert (Path(body["args"][0]) / "model.safetensors").exists()
            return 200, {"results": [None]}
        if path == "/reset_prefix_cache":
            return 200, {"success": self.forgets}
        if path == GENERATE:
            return self._generate(body)
        if path == "/get_world_size":
            return 200, {"world_size": 2}
        if path.endswith(("_weight_transfer_engine", "_weight_update", "/update_weights")):
            return 200, {"message": "done"}
        return 404, {"detail": "Not Found"}

    def _generate(self, body: Body) -> tuple[int, Any]:
        settings = body["sampling_params"]
        if any(token >= self.rows for token in settings["stop_token_ids"]):
            return 400, {"error": {"message": "out-of-vocab token ids"}}
        tokens = [body["token_ids"][-1], 1]
        logp = 0.0 if self.processed and settings["top_k"] == 1 else -0.5
        content = [{"token_id": token, "logprob": logp, "rank": 1, "top_logprobs": []} for token in tokens]
        choice = {"index": 0, "finish_reason": "stop", "token_ids": tokens, "logprobs": {"content": content}}
        answer = {"request_id": "r", "choices": [choice]}
        return 200, self.edit(answer) if "seed" in settings else answer


def status(code: int, text: str = '{"error": "no"}') -> Fault:
    """Answers with this."""

    def answer(double: Double, handler: BaseHTTPRequestHandler) -> None:
        reply(handler, code, text.encode())

    return answer


def dropped(double: Double, handler: BaseHTTPRequestHandler) -> None:
    """The connection breaks."""
    handler.close_connection = True


def stuck(double: Double, handler: BaseHTTPRequestHandler) -> None:
    """No answer comes."""
    double.released.wait()
    handler.close_connection = True


def reply(handler: BaseHTTPRequestHandler, code: int, data: bytes) -> None:
    handler.send_response(code)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


class Listening(ThreadingHTTPServer):
    """With room for connections that come all at once."""

    request_queue_size = 256


@contextmanager
def serving(rows: int) -> Iterator[Double]:
    """A double at a free port of this machine."""
    double = Double(rows)
    server = Listening(("127.0.0.1", 0), _handler(double))
    double.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield double
    finally:
        double.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(double: Double) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: Body) -> None:
            with double.lock:
                double.asked.append((self.path, body))
                double.keys.add(self.headers["Authorization"])
                faults = double.faults.get(self.path)
                fault = faults.pop(0) if faults else None
            if fault is not None:
                fault(double, self)
                return
            code, said = double.answer(self.path, body)
            reply(self, code, json.dumps(said).encode())

        def log_message(self, *said: object) -> None:
            """Nothing."""

    return Handler


class Transfers:
    """In the place of vLLM's trainer side of a transfer: it reads the weights, and does what it is asked to."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Tensor]] = []
        self.info, self.shut = SimpleNamespace(), 0

    def trainer_init(self, info: Any, client: Any, source: Any) -> Transfers:
        self.info, self.client, self.source = info, client, source
        client.init_weight_transfer_engine({"world_size": info.world_size})
        return self

    def send_weights(self) -> None:
        self.client.start_weight_update()
        self.client.update_weights({"names": [each.name for each in self.source.metadata()]})
        self.sent.append({name: weight.clone() for name, weight in self.source})
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        self.shut += 1
