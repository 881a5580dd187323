"""What goes wrong on the way between the Hub for tests and its client, where a test wants it to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send


@dataclass(frozen=True)
class Seen:
    """A request that came in. route: see `HubServer.routes`."""

    route: str
    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class Fault:
    """What goes wrong with the next `times` requests to a route ("*": any); None: with all.

    method, path: narrow it down; path may have * and ?.

    One of these answers instead of the server, which then does nothing:
    status, headers, body: this answer. An HTML page: status=200, headers={"content-type": "text/html"}, body=b"<html>".

    Or the server answers, and on the way to the client
    change: makes another body of the right one.
    length: is the Content-Length that it claims.
    endless: the body again and again (64 MB of it), without a Content-Length.
    packed: headers that say how the body is packed.
    cut: is the number of the body's bytes after which the connection breaks. 0: what was asked for is done, but
        the client can't know.
    drip: is the number of seconds before each `piece` of the body.
    delay: is the number of seconds before the answer.
    """

    route: str
    times: int | None = 1
    method: str = "*"
    path: str = "*"
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    change: Callable[[bytes], bytes] | None = None
    length: int | None = None
    endless: bool = False
    packed: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    drip: float = 0.0
    piece: int = 1024
    delay: float = 0.0

    def applies(self, seen: Seen) -> bool:
        return (
            self.times != 0
            and fnmatchcase(seen.route, self.route)
            and fnmatchcase(seen.method, self.method)
            and fnmatchcase(seen.path, self.path)
        )


class _Broken(Exception):
    """Raised inside an answer, it makes uvicorn close the connection."""


class Spoiled(Response):
    """Another response, collected and sent on as the fault wants."""

    def __init__(self, response: Response, fault: Fault) -> None:
        super().__init__()
        self.response, self.fault = response, fault

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        messages: list[Message] = []

        async def collect(message: Message) -> None:
            messages.append(message)

        await self.response(scope, receive, collect)
        start, fault = messages[0], self.fault
        body = b"".join(message.get("body", b"") for message in messages[1:])
        headers = {key: value for key, value in start["headers"] if key != b"content-length"}
        if fault.change is not None:
            body = fault.change(body)
        headers |= {key.encode(): value.encode() for key, value in fault.packed.items()}
        if scope["method"] != "HEAD" and not fault.endless:
            headers[b"content-length"] = b"%d" % (len(body) if fault.length is None else fault.length)
        await send({**start, "headers": list(headers.items())})
        if fault.endless:  # for a test: uvicorn doesn't say when the client has gone
            for _ in range(64_000_000 // len(body)):
                await send({"type": "http.response.body", "body": body, "more_body": True})
                await asyncio.sleep(0)
            raise _Broken
        end = min(len(body) if limit is None else limit for limit in (fault.cut, fault.length))
        step = fault.piece if fault.drip else max(1, end)
        for position in range(0, end, step):
            await asyncio.sleep(fault.drip)
            await send(
                {"type": "http.response.body", "body": body[position : min(end, position + step)], "more_body": True}
            )
        if fault.cut is not None or fault.length is not None:
            raise _Broken
        await send({"type": "http.response.body", "body": b""})
