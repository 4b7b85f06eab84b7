"""What the source's node does to a request by the routes of the service that it is for (`mesh.traffic.Route`).

For what `Router.match` returns, in this order: `preflight_response` and `cors_headers`; `redirect_response`; the rule's
`edit_headers`, then `rewrite_request`; `mirrors`; `choose_backend` and that backend's `edit_headers`. On the way back
the backend's edits, the rule's, then `set_cors`.
"""

from mesh.route.backends import choose_backend, mirrors
from mesh.route.candidates import Matched
from mesh.route.cors import cors_headers, preflight_response, set_cors
from mesh.route.edits import edit_headers, refused_edits, rewrite_request
from mesh.route.limits import Limits, limits
from mesh.route.matching import compile_headers, compile_match
from mesh.route.pattern import check_pattern
from mesh.route.redirect import redirect_response
from mesh.route.router import Router

__all__ = [
    "Limits",
    "Matched",
    "Router",
    "check_pattern",
    "choose_backend",
    "compile_headers",
    "compile_match",
    "cors_headers",
    "edit_headers",
    "limits",
    "mirrors",
    "preflight_response",
    "redirect_response",
    "refused_edits",
    "rewrite_request",
    "set_cors",
]
