"""The HTTP side: who may ask, how much, and in which form. Nothing is served to other machines, origins or host names.

- It listens on 127.0.0.1 and answers only under a path that holds a token made for this run.
- `Host` must be this very address (a name that was rebound to it is not), `Origin`, where there is one, this very page.
- Questions are JSON of at most 16 KiB, sent as application/json, which a form or an image of another page cannot send.
"""

import json
import re
import secrets
import sys
import traceback
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rim_lens.errors import RimLensError
from rim_lens.serve.answers import Busy, PageModel

LARGEST_BODY = 16 * 1024
TABLE = re.compile(r"tables/([A-Za-z0-9_]+\.csv)")
SECONDS = 20  # within which a client must have sent its request
ADDRESS = "127.0.0.1"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Refused(Exception):
    """A request that gets a status and a sentence in place of an answer."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class PageServer(ThreadingHTTPServer):
    """Serves one page, the tables that it links to, and its model on 127.0.0.1; `url` holds the token.

    `page` is asked anew at every request; `tables` is the folder of the CSV files.
    """

    daemon_threads = True
    allow_reuse_address = False

    def __init__(self, page: Callable[[], bytes], model: PageModel, port: int = 0, tables: Path | None = None) -> None:
        super().__init__((ADDRESS, port), PageHandler)
        self.page, self.model, self.token = page, model, secrets.token_urlsafe(32)
        self.tables = tables

    @property
    def hosts(self) -> set[str]:
        """The values of `Host` under which this server is meant."""
        return {f"{name}:{self.server_port}" for name in (ADDRESS, "localhost")}

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_port}/{self.token}/"


class PageHandler(BaseHTTPRequestHandler):
    """One request: checked, answered, never with more than a sentence when something is wrong."""

    server: PageServer
    timeout = SECONDS
    server_version, sys_version = "rim-lens", ""

    def do_GET(self) -> None:
        """The page, or what the model is."""
        self.reply(self.got)

    def do_POST(self) -> None:
        """A question to the model."""
        self.reply(self.posted)

    def reply(self, answer: Any) -> None:
        """Send what `answer` returns, or why there is none."""
        try:
            body, kind = answer(self.checked_path())
            status = HTTPStatus.OK
        except Refused as error:
            status, (body, kind) = error.status, as_json({"error": str(error)})
        except Busy as error:
            status, (body, kind) = HTTPStatus.SERVICE_UNAVAILABLE, as_json({"error": str(error)})
        except RimLensError as error:
            status, (body, kind) = HTTPStatus.BAD_REQUEST, as_json({"error": str(error)})
        except TimeoutError:
            self.close_connection = True
            return
        except Exception:
            traceback.print_exc(file=sys.stderr)
            message = {"error": "The model could not answer; the reason stands in the terminal."}
            status, (body, kind) = HTTPStatus.INTERNAL_SERVER_ERROR, as_json(message)
        self.close_connection = True
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def checked_path(self) -> str:
        """The path behind the token.

        Raises:
            Refused: another host, origin or token.
        """
        hosts = self.server.hosts
        if self.headers.get_all("Host", []) not in [[host] for host in hosts]:
            raise Refused(HTTPStatus.FORBIDDEN, "This server answers only under its own address.")
        origins = self.headers.get_all("Origin", [])
        if origins and origins not in [[f"http://{host}"] for host in hosts]:
            raise Refused(HTTPStatus.FORBIDDEN, "This server answers only its own page.")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise Refused(HTTPStatus.FORBIDDEN, "This server answers only its own page.")
        _, token, *rest = [*self.path.split("/", 2), "", ""][:3]
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            raise Refused(HTTPStatus.NOT_FOUND, "There is nothing here; use the address that rim-lens serve printed.")
        return rest[0]

    def got(self, path: str) -> tuple[bytes, str]:
        """The page, a table of it, or the model's name."""
        if path == "":
            return self.server.page(), "text/html; charset=utf-8"
        if path == "api/about":
            return as_json(self.server.model.about())
        table = TABLE.fullmatch(path)
        if table and self.server.tables and (self.server.tables / table[1]).is_file():
            return (self.server.tables / table[1]).read_bytes(), "text/csv; charset=utf-8"
        raise Refused(HTTPStatus.NOT_FOUND, "There is no such page here.")

    def posted(self, path: str) -> tuple[bytes, str]:
        """The model's reply to a question."""
        question = path.removeprefix("api/")
        if not path.startswith("api/") or question not in self.server.model.questions:
            raise Refused(HTTPStatus.NOT_FOUND, "There is no such question here.")
        return as_json(self.server.model.ask(question, self.body()))

    def body(self) -> dict[str, Any]:
        """The JSON object that was sent."""
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Questions are sent as application/json.")
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "A question needs its length.")
        if int(length) > LARGEST_BODY:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A question may have {LARGEST_BODY} bytes.")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, "A question is a JSON object.")
        return body

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the request line holds the token."""


def as_json(value: Any) -> tuple[bytes, str]:
    """A value as JSON without anything that HTML would read, and its content type."""
    text = json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return text.encode(), "application/json"
