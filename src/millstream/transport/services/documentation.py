"""DocumentationService: the OpenAPI document, and pages that show it."""

from typing import Final

from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import Message

from millstream.transport.context import Context
from millstream.transport.use_cases import Pages
from millstream.wire.v1 import documentation_service_pb2 as wire

# The pages load only what this server has. ReDoc makes its styles while it runs, and looks things up in a worker.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILE_AGE_S: Final = 3600


class DocumentationService:
    """What describes the API, over the wire."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def get_open_api(self, _: wire.GetOpenApiRequest, context: Context) -> Message:
        """The OpenAPI document."""
        return _body(context, "application/json", self._pages.openapi(), "no-cache")

    async def get_swagger_page(self, _: wire.GetSwaggerPageRequest, context: Context) -> Message:
        """The page of Swagger UI."""
        return _body(context, *self._pages.file("swagger.html"), "no-cache")

    async def get_redoc_page(self, _: wire.GetRedocPageRequest, context: Context) -> Message:
        """The page of ReDoc."""
        return _body(context, *self._pages.file("redoc.html"), "no-cache")

    async def get_page_file(self, request: wire.GetPageFileRequest, context: Context) -> Message:
        """A file that the pages load. Raises NotFound."""
        return _body(context, *self._pages.file(request.name), f"public, max-age={_FILE_AGE_S}")


def _body(context: Context, media_type: str, data: bytes, cache: str) -> Message:
    context.headers |= {
        "content-security-policy": _POLICY,
        "x-content-type-options": "nosniff",
        "cache-control": cache,
    }
    body: Message = HttpBody(content_type=media_type, data=data)
    return body
