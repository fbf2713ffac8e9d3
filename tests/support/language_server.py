"""A client of the YAML language server: what an editor shows for a document, at a place in it."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

PATIENCE = 120
"""Seconds that an answer may take on a busy machine before it counts as missing."""

ABILITIES = {
    "textDocument": {
        "completion": {"completionItem": {"snippetSupport": True, "documentationFormat": ["markdown"]}},
        "hover": {"contentFormat": ["markdown"]},
    },
    "workspace": {"configuration": True},
}


@dataclass(frozen=True)
class Complaint:
    """What is underlined, on which line (from 1), and what is said of it."""

    line: int
    text: str
    message: str


class LanguageServer:
    """A running server, spoken to over its standard streams."""

    def __init__(self, reading: IO[bytes], writing: IO[bytes], folder: Path, settings: Mapping[str, Any]) -> None:
        of_yaml = {name.removeprefix("yaml."): value for name, value in settings.items()}
        self._settings = {"yaml": {**of_yaml, "schemaStore": {"enable": False}}}  # no schemas from the network
        self._writing = writing
        self._folder = folder
        self._answers: dict[int, Any] = {}
        self._incoming: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._asked = 0
        self._opened = 0
        threading.Thread(target=self._listen, args=(reading,), daemon=True).start()
        self._ask("initialize", {"processId": None, "rootUri": folder.as_uri(), "capabilities": ABILITIES})
        self._tell("initialized", {})

    # What an editor shows.

    def complaints(self, text: str) -> list[Complaint]:
        """What is underlined in a document, from top to bottom."""
        uri = self._open(text)
        shown = self._await(
            lambda m: m.get("method") == "textDocument/publishDiagnostics" and m["params"]["uri"] == uri
        )
        lines = text.splitlines()
        complaints = []
        for each in shown["params"]["diagnostics"]:
            start, end = each["range"]["start"], each["range"]["end"]
            last = end["character"] if end["line"] == start["line"] else None
            underlined = lines[start["line"]][start["character"] : last]
            complaints.append(Complaint(start["line"] + 1, underlined, each["message"]))
        return sorted(complaints, key=lambda complaint: complaint.line)

    def completions(self, text: str) -> dict[str, dict[str, Any]]:
        """The proposals at the `|` of a document, by their labels."""
        found = self._at("textDocument/completion", text)
        return {item["label"]: item for item in found["items"]}

    def hover(self, text: str) -> str:
        """The text, in Markdown, that is shown over the `|` of a document."""
        found = self._at("textDocument/hover", text)
        return "" if found is None else str(found["contents"]["value"])

    def _at(self, method: str, text: str) -> Any:
        before, mark, after = text.partition("|")
        assert mark, "the document has no place marked by |"
        place = {"line": before.count("\n"), "character": len(before.rpartition("\n")[2])}
        uri = self._open(before + after)
        return self._ask(method, {"textDocument": {"uri": uri}, "position": place})

    def _open(self, text: str) -> str:
        self._opened += 1
        uri = (self._folder / "recipes" / f"{self._opened}.yaml").as_uri()
        document = {"uri": uri, "languageId": "yaml", "version": 1, "text": text}
        self._tell("textDocument/didOpen", {"textDocument": document})
        return uri

    # The protocol.

    def _ask(self, method: str, parameters: Any) -> Any:
        self._asked += 1
        number = self._asked
        self._send({"id": number, "method": method, "params": parameters})
        answer = self._await(lambda message: message.get("id") == number and "method" not in message)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _tell(self, method: str, parameters: Any) -> None:
        self._send({"method": method, "params": parameters})

    def _await(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while True:
            message = self._incoming.get(timeout=PATIENCE)
            assert message is not None, "the language server has ended"
            if "id" in message and "method" in message:
                self._send({"id": message["id"], "result": self._answer(message)})
            elif wanted(message):
                return message

    def _answer(self, request: dict[str, Any]) -> Any:
        if request["method"] == "workspace/configuration":
            return [self._settings.get(item["section"]) for item in request["params"]["items"]]
        return None

    def _send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self._writing.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self._writing.flush()

    def _listen(self, reading: IO[bytes]) -> None:
        while header := reading.readline():
            name, _, value = header.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
            elif not header.strip():
                self._incoming.put(json.loads(reading.read(length)))
        self._incoming.put(None)


@contextmanager
def serving(command: list[str], folder: Path, settings: Mapping[str, Any] | None = None) -> Iterator[LanguageServer]:
    """The server that `command` starts, for documents in `folder`; ended with the block.

    `settings` are those of the editor, by their dotted names; without any the server's own hold.
    """
    with subprocess.Popen([*command, "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield LanguageServer(process.stdout, process.stdin, folder, settings or {})
        finally:
            process.kill()
