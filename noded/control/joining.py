"""Joining: how this node gets its own certificate, with a join token or on Kubernetes with a service account's."""

from __future__ import annotations

import logging
from pathlib import Path

import trio

from mesh import sync
from mesh.identity import node_uri
from mesh.join_token import JoinToken
from noded.config import Config
from noded.control import controller_tls
from noded.control.certs import Certificates
from noded.control.credential import certify, new_request
from noded.control.failure import Failure
from noded.control.keystore import KeyStore

_log = logging.getLogger(__name__)
_SECONDS = 15.0
_REMEDY = "make one with `meshctl token create` and put it into controller.tokenFile"


class Joining:
    """Remembers what was tried. Methods raise as `controller_tls.connect` does, or `CredentialError`."""

    def __init__(self, config: Config, store: KeyStore) -> None:
        self._config, self._store = config, store
        self._key: tuple[bytes, bytes] | None = None
        self._refused_token = ""

    @property
    def by_service_account(self) -> bool:
        """Whether what the node shows is a service account's token, which is always at hand."""
        return self._config.controller_root_file is not None

    def has_new_token(self) -> bool:
        """Whether a join token was put in place since the node joined."""
        if self.by_service_account:
            return False
        try:
            return self._token().id != self._store.joined_with
        except Failure:
            return False

    def _token(self) -> JoinToken:
        if self._config.controller_token_file is None:
            raise Failure(
                "this node has no valid credential and controller.tokenFile is not set",
                "make a token with `meshctl token create` and name its file in the configuration",
            )
        return _read_token(self._config.controller_token_file)

    async def join_anew(self, certs: Certificates) -> None:
        """A token was put in place since this node joined, perhaps for a wider scope. Refused, it joins as it was."""
        joining = self._token().id
        if joining == self._refused_token:
            return
        try:
            await self.join(certs)
        except Failure as error:
            self._refused_token = joining
            _log.warning("new join token not accepted", extra={"token": joining, "reason": str(error)})

    async def _proof(self) -> tuple[JoinToken, str]:
        """What to join with, and the roots (PEM) under which the controller must be. Read anew: both change."""
        roots, secret = self._config.controller_root_file, self._config.controller_token_file
        if roots is None:
            joining = self._token()
            return joining, await controller_tls.find_root(self._config.controller_address, joining.root_sha256)
        if secret is None:
            raise Failure("controller.rootFile is set and controller.tokenFile is not", "name the token's file too")
        try:
            pem = await trio.Path(roots).read_text(encoding="ascii")
        except (OSError, ValueError) as error:
            raise Failure(
                f"controller.rootFile {roots} cannot be read: {error}",
                "the controller publishes it when it first starts: see its log",
            ) from error
        return JoinToken("service-account", "", _read_service_account(secret)), pem

    async def join(self, certs: Certificates) -> None:
        """Get the node's own certificate for the join token."""
        joining, root = await self._proof()
        tls = controller_tls.context(root, None)
        stream, trust_domain = await controller_tls.connect(self._config.controller_address, tls, None)
        # The same key for each attempt: an answer that got lost must not cost another use of the token.
        self._key = self._key or new_request()
        key, csr = self._key
        try:
            with trio.fail_after(_SECONDS):
                request = sync.Join(joining.secret, self._config.node, csr)
                await stream.send_all(sync.frame(request, sync.FromNode))
                reader = sync.Reader(sync.FromController, sync.MAX_FRAME_BEFORE_HELLO)
                messages: list[object] = []
                while not messages:
                    data = await stream.receive_some()
                    if not data:
                        raise Failure("the controller closed the connection without an answer", "see its log")
                    messages = reader.feed(bytes(data))
        finally:
            await trio.aclose_forcefully(stream)
        match messages[0]:
            case sync.Joined(chain, roots, domain) if domain == trust_domain:
                held = certify(key, chain, node_uri(trust_domain, self._config.node))
                certs.install("", held)
                certs.trust(roots)
                self._store.joined_with = joining.id
                self._key = None
                _log.info("joined", extra={"identity": held.identity, "token": joining.id})
            case sync.Refused(_, reason):
                raise Failure(f"the controller did not let this node join: {reason}", "make a new join token")
            case other:
                raise Failure(f"the controller answered a join with {type(other).__name__}", "check its version")


def _read_token(path: Path) -> JoinToken:
    """Read the token in `path`; raise `Failure`, which never quotes the token."""
    try:
        return JoinToken.parse(_text(path, _REMEDY))
    except ValueError as error:
        raise Failure(f"{path} holds {error}", _REMEDY) from None


def _read_service_account(path: Path) -> str:
    """The service account's token in `path`, as kubelet keeps it there: it changes every hour or so."""
    return _text(path, "mount a projected service account token of audience nodemesh there")


def _text(path: Path, remedy: str) -> str:
    try:
        with path.open(encoding="ascii") as file:
            return file.read(8192).strip()
    except (OSError, ValueError) as error:
        raise Failure(f"token file {path} cannot be read: {error}", remedy) from error
