"""What a rule or backend changes on its way: headers, authority, path. In place.

https://gateway-api.sigs.k8s.io/reference/spec/#httpheaderfilter and `#httpurlrewritefilter`.
"""

from __future__ import annotations

from functools import lru_cache

from mesh.message import Headers, Request
from mesh.traffic import Compare, HeaderEdit, PathEdit, Rewrite, RouteMatch

_OURS = frozenset(
    b"connection content-length host keep-alive proxy-connection te trailer transfer-encoding upgrade".split()
)
"""What frames a message or belongs to one hop, and the authority, which `Rewrite.hostname` is for."""
_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")
_SEPARATORS = {b"cookie": b"; "}

_Compiled = tuple[frozenset[bytes], Headers, Headers]


def refused_edits(edit: HeaderEdit) -> tuple[str, ...]:
    """The names that an edit may not be for, or whose value no header can have: these are left alone."""
    pairs = [*((name, "") for name in edit.remove), *((pair[0], pair[1]) for pair in (*edit.set, *edit.add))]
    return tuple(name for name, value in pairs if not _editable(name.lower().encode(), value.encode()))


def edit_headers(headers: Headers, edit: HeaderEdit) -> None:
    """Remove, then set, then add, of a request or response; of several for one name the first counts.

    What is added joins the last value of that name, with a comma: only `set-cookie` has lines of its own.
    """
    gone, sets, adds = _compiled(edit)
    if gone:
        headers[:] = [header for header in headers if header[0] not in gone]
    headers += sets
    for name, value in adds:
        if name != b"set-cookie":
            for index in range(len(headers) - 1, -1, -1):
                if headers[index][0] == name:
                    headers[index] = (name, headers[index][1] + _SEPARATORS.get(name, b",") + value)
                    break
            else:
                headers.append((name, value))
        else:
            headers.append((name, value))


def rewrite_request(request: Request, rewrite: Rewrite, match: RouteMatch) -> None:
    """Change authority and path; `match` is the one that was met. The query stays."""
    if rewrite.hostname:
        request.authority = rewrite.hostname.encode()
    if rewrite.path_edit is not PathEdit.KEEP:
        request.path = edited_path(request.path, rewrite.path_edit, rewrite.path, match)


def edited_path(path: bytes, edit: PathEdit, value: str, match: RouteMatch) -> bytes:
    """Path and query with the path, or the prefix that `match` is for, replaced.

    Prefixes are whole elements, whatever slash they and the value end in: `/foo` replaced by nothing or `/` leaves
    `/bar` of `/foo/bar`, and `/` of `/foo`. Without a prefix to replace (validation refuses that) the path stays.
    """
    if edit is PathEdit.KEEP or not path.startswith(b"/"):
        return path
    path, mark, query = path.partition(b"?")
    if edit is PathEdit.FULL:
        path = value.encode()
    elif match.compare is Compare.PREFIX:
        path = value.encode().rstrip(b"/") + path[len(match.path.encode().rstrip(b"/")) :]
    if not path.startswith(b"/"):
        path = b"/" + path
    return path + mark + query


@lru_cache(4096)
def _compiled(edit: HeaderEdit) -> _Compiled:
    seen: set[bytes] = set()

    def wanted(name: str, value: str = "") -> bool:
        key = name.lower().encode()
        if key in seen or not _editable(key, value.encode()):
            return False
        seen.add(key)
        return True

    removes = {name.lower().encode() for name in edit.remove if wanted(name)}
    sets = [(name.lower().encode(), value.encode()) for name, value in edit.set if wanted(name, value)]
    adds = [(name.lower().encode(), value.encode()) for name, value in edit.add if wanted(name, value)]
    return frozenset(removes.union(name for name, _ in sets)), sets, adds


def _editable(name: bytes, value: bytes) -> bool:
    if not name or name in _OURS or not _TOKEN.issuperset(name):
        return False
    return not any(byte in value for byte in b"\0\r\n")
