"""What the source's node does to a request by the routes of the service that it is for (`mesh.traffic.Route`)."""

from mesh.route.backends import choose_backend, mirrors
from mesh.route.matching import compile_headers, compile_match
from mesh.route.router import Matched, Router

__all__ = ["Matched", "Router", "choose_backend", "compile_headers", "compile_match", "mirrors"]
