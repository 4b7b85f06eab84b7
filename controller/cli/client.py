"""mesh-controller's HTTP API over its unix socket, as meshctl asks it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from controller.cli.terminal import progress
from mesh.present.failure import read_answer, refused, unreachable

if TYPE_CHECKING:
    import httpx

SOCKET = "/run/nodemesh/controller.sock"
SOCKET_VARIABLE = "NODEMESH_CONTROLLER_SOCKET"


class Client:
    """Every method raises `Failure`, with exit status 3 if nobody answers."""

    def __init__(self, path: str, patience: float = 30.0) -> None:
        """`patience` is how many seconds to wait for an answer where the call does not say."""
        self._path, self._patience = path, patience

    @functools.cached_property
    def _http(self) -> httpx.Client:
        import httpx  # a tenth of a second that --help does not need

        transport = httpx.HTTPTransport(uds=self._path)
        return httpx.Client(transport=transport, base_url="http://controller", trust_env=False)

    def get(self, path: str, /, doing: str = "waiting for the controller", **query: str) -> Any:
        """The JSON answer to a GET."""
        return self.send("GET", path, doing=doing, query=query)

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
        with progress(doing):
            status, content = self.request(method, path, query or {}, body, patience or self._patience)
        if not 200 <= status < 300:
            raise refused(status, content)
        return read_answer(content, f"{method} {path}", "mesh-controller", self._path)

    def request(
        self, method: str, path: str, query: dict[str, str], body: object, patience: float
    ) -> tuple[int, bytes]:
        """The status and the body of the answer, whatever it says."""
        import httpx

        try:
            response = self._http.request(method, path, params=query, json=body, timeout=patience)
        except httpx.TransportError as error:
            cause = None if isinstance(error, httpx.TimeoutException) else error
            raise unreachable("mesh-controller", self._path, SOCKET_VARIABLE, cause) from None
        return response.status_code, response.content
