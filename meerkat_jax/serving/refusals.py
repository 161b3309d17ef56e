"""What the server does not do, told in the shape of OpenAI's errors.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

from __future__ import annotations

from starlette.responses import JSONResponse

TYPES = {429: "rate_limit_error"} | dict.fromkeys((500, 503, 504), "server_error")
AGAIN = {"Retry-After": "1"}  # seconds


class Refused(Exception):
    """A request that gets no answer: HTTP status, message, the field at fault, and a short code."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def to_json(self) -> dict[str, dict[str, str | None]]:
        """The body of the answer."""
        kind = TYPES.get(self.status, "invalid_request_error")
        message = " ".join(str(self).split())
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer; one that may be tried again says when."""
        return JSONResponse(
            self.to_json(), self.status, AGAIN if self.status in (429, 503) else None
        )


def bad(message: str, param: str | None = None, code: str | None = None) -> Refused:
    """The refusal of a request that the client must mend."""
    return Refused(400, message, param, code)
