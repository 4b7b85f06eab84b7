"""`extensionProviders` and `pathNormalization` of controller.yaml, and what the nodes are told of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.config import ConfigError, load, mesh_config
from mesh.model import ExtAuthz, MeshConfig
from mesh.paths import Normalization


def told(folder: Path, text: str) -> MeshConfig:
    (folder / "controller.yaml").write_text(text)
    return mesh_config(load(folder / "controller.yaml"))


def test_what_is_left_out_has_istios_defaults(tmp_path: Path) -> None:
    assert told(tmp_path, "{}") == MeshConfig("cluster.local", "Kubernetes")
    service = "{service: asker.auth.svc.cluster.local, port: 80}"
    (provider,) = told(tmp_path, f"extensionProviders: [{{name: a, envoyExtAuthzHttp: {service}}}]").providers
    assert provider == ExtAuthz("a", "auth/asker", 80)


def test_every_field_arrives(tmp_path: Path) -> None:
    config = told(
        tmp_path,
        """
pathNormalization: MERGE_SLASHES
extensionProviders:
  - name: asker
    envoyExtAuthzHttp:
      service: auth/asker.auth.svc.cluster.local
      port: 8000
      pathPrefix: /check/
      timeout: 1500ms
      failOpen: true
      statusOnError: "503"
      includeRequestHeadersInCheck: [Cookie, x-in-*, "*-out"]
      includeAdditionalHeadersInCheck: {X-By: mesh}
      headersToUpstreamOnAllow: [x-user]
      headersToDownstreamOnDeny: [set-cookie]
      headersToDownstreamOnAllow: ["*"]
""",
    )
    assert config.path_normalization is Normalization.MERGE_SLASHES
    assert config.providers == (
        ExtAuthz(
            "asker", "auth/asker", 8000, "/check", 1.5, True, 503, ("cookie", "x-in-*", "*-out"), (("x-by", "mesh"),),
            ("x-user",), ("set-cookie",), ("*",),
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("pathNormalization: ALL", "is not supported"),
        ("extensionProviders: [{name: a}]", "required field is missing"),
        ("extensionProviders: [{name: a, envoyExtAuthzGrpc: {}}]", "unknown field"),
        ("extensionProviders: [{name: a, envoyExtAuthzHttp: {service: a, port: 80}}]", "host name of a Service"),
        ("extensionProviders: [{name: a, envoyExtAuthzHttp: {service: a.b, port: 0}}]", "greater than or equal to 1"),
        ("extensionProviders: [{name: a, envoyExtAuthzHttp: {service: a.b, port: 1, statusOnError: '200'}}]", "status"),
        ("extensionProviders: [{name: a, envoyExtAuthzHttp: {service: a.b, port: 1, pathPrefix: x}}]", "begin it with"),
        (
            "extensionProviders: [{name: a, envoyExtAuthzHttp: "
            "{service: a.b, port: 1, includeAdditionalHeadersInCheck: {Host: b}}}]",
            "cannot be added",
        ),
        (
            "extensionProviders: [{name: a, envoyExtAuthzHttp: "
            "{service: a.b, port: 1, headersToUpstreamOnAllow: [a*b]}}]",
            "not the name of a header",
        ),
        (
            "extensionProviders: [{name: a, envoyExtAuthzHttp: {service: a.b, port: 1}}, "
            "{name: a, envoyExtAuthzHttp: {service: a.b, port: 2}}]",
            "two providers are called",
        ),
    ],
)
def test_what_cannot_work_says_so(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        told(tmp_path, text)
