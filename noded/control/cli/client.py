"""noded's HTTP API over its unix socket, as nodectl asks it.

meshctl's client (`controller/cli/client.py`) is its sibling and not shared: a node is asked on its own host only, the
controller also from elsewhere, and their rooms have only the pure `mesh` in common.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from mesh.present.failure import read_answer, refused, unreachable
from noded.control.cli.terminal import progress

if TYPE_CHECKING:
    import httpx

SOCKET = "/run/nodemesh/noded.sock"
SOCKET_VARIABLE = "NODEMESH_SOCKET"


class Client:
    """Every method raises `Failure`, with exit status 3 if nobody answers."""

    def __init__(self, path: str, patience: float = 30.0) -> None:
        """`patience` is how many seconds to wait for an answer where the call does not say."""
        self._path, self._patience = path, patience

    @functools.cached_property
    def _http(self) -> httpx.Client:
        import httpx  # a tenth of a second that --help does not need

        transport = httpx.HTTPTransport(uds=self._path)
        return httpx.Client(transport=transport, base_url="http://noded", trust_env=False)

    def get(self, path: str, doing: str = "waiting for noded", /, **query: str) -> Any:
        """The JSON answer to a GET."""
        return self.send("GET", path, doing=doing, query=query)

    def text(self, path: str) -> str:
        """An answer that is not JSON, as it came."""
        return self._request("GET", path, "waiting for noded", {}, None, self._patience).text

    def send(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        doing: str,
        query: dict[str, str] | None = None,
        patience: float | None = None,
    ) -> Any:
        """The JSON answer to any request; `doing` is what the terminal shows meanwhile."""
        response = self._request(method, path, doing, query or {}, body, patience or self._patience)
        return read_answer(response.content, f"{method} {path}", "noded", self._path)

    def _request(
        self, method: str, path: str, doing: str, query: dict[str, str], body: object, patience: float
    ) -> httpx.Response:
        import httpx

        try:
            with progress(doing):
                response = self._http.request(method, path, params=query, json=body, timeout=patience)
        except httpx.TransportError as error:
            cause = None if isinstance(error, httpx.TimeoutException) else error
            raise unreachable("noded", self._path, SOCKET_VARIABLE, cause) from None
        if not response.is_success:
            raise refused(response.status_code, response.content)
        return response
