"""What may be sent and asked for, and how much of it (HA-21, HA-60 to 62, HA-100)."""

import asyncio
import re
import zlib

from fastapi import Request

from services.plumbing.web import Rejection

SLOWEST_BODY = 30
"""Real seconds a body may take (section 7)."""

_JSON = ("application/fhir+json", "application/json", "text/json")
_WILD = ("*/*", "application/*")
_FORMATS = ("json", *_JSON)


def check_accept(request: Request) -> None:
    wanted = request.query_params.get("_format")
    accept = request.headers.get("accept", "*/*")
    if wanted is not None:
        if wanted.split(";")[0].strip().replace(" ", "+") not in _FORMATS:
            raise Rejection("not-supported", "FHIR JSON is what is served.", status=406)
        return
    offers = [one.strip() for one in accept.split(",")]
    if not any(
        one.split(";")[0].strip().lower() in (*_JSON, *_WILD) and _is_r4(one) for one in offers
    ):
        raise Rejection("not-supported", "FHIR 4.0 JSON is what is served.", status=406)


_VERSION = re.compile(r"fhirversion\s*=\s*\"?([0-9.]+)", re.IGNORECASE)


def _is_r4(media: str) -> bool:
    version = _VERSION.search(media)
    return version is None or version[1] in ("4.0", "4.0.0", "4.0.1")


async def read_body(request: Request, limit: int) -> bytes:
    """The body, unpacked, never more than `limit` bytes of it (HA-61, HA-100)."""
    media = request.headers.get("content-type", "")
    if media.split(";")[0].strip().lower() not in _JSON[:2] or not _is_r4(media):
        raise Rejection("not-supported", "Send application/fhir+json.", status=415)
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "gzip"):
        raise Rejection("not-supported", "Send plain or gzip.", status=415)
    length = request.headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and int(length) > limit:
        raise _too_long(limit)
    try:
        async with asyncio.timeout(SLOWEST_BODY):
            return await _received(request, limit, packed=coding == "gzip")
    except TimeoutError:
        raise Rejection(
            "timeout", f"The body did not come within {SLOWEST_BODY} s.", status=408
        ) from None


async def _received(request: Request, limit: int, *, packed: bool) -> bytes:
    unpacker = zlib.decompressobj(wbits=31) if packed else None
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += unpacker.decompress(chunk, limit + 1 - len(body)) if unpacker else chunk
            if len(body) > limit:
                raise _too_long(limit)
    except zlib.error:
        raise Rejection("structure", "The body is not gzip, as its header says.") from None
    if unpacker is not None and not unpacker.eof:
        raise Rejection("structure", "The gzip body is cut off.")
    return bytes(body)


def _too_long(limit: int) -> Rejection:
    return Rejection("too-long", f"At most {limit} bytes, counted after unpacking.", status=413)


def preference(request: Request) -> str:
    """HA-21."""
    said = request.headers.get("prefer", "")
    for part in re.split(r"[,;]", said):
        name, _, value = part.strip().partition("=")
        if name == "return" and value in ("minimal", "OperationOutcome"):
            return value
    return "representation"
