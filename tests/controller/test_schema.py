"""Goldens: `rejected/X.yaml` and, in `rejected/X.errors`, every problem that is to be reported for it, in order.

After a change that is meant, `NODEMESH_WRITE_GOLDENS=1 pytest tests/controller/test_schema.py` writes them anew: read
the difference.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.schema.documents import dotted, read
from controller.schema.manifests import load

REJECTED = Path(__file__).with_name("rejected")


@pytest.mark.parametrize("name", sorted(path.stem for path in REJECTED.glob("*.yaml")))
def test_every_problem_is_reported_with_line_field_and_remedy(name: str) -> None:
    path, golden = REJECTED / f"{name}.yaml", REJECTED / f"{name}.errors"
    _manifests, problems = load([(path.name, path.read_text())])
    found = "".join(f"{problem}\n" for problem in problems)
    if os.environ.get("NODEMESH_WRITE_GOLDENS"):
        golden.write_text(found)
    assert found == golden.read_text()


ACCEPTED = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: full, namespace: shop, annotations: {istio.io/dry-run: "true"}, creationTimestamp: null}
spec:
  selector: {matchLabels: {app: web, app.kubernetes.io/part-of: shop}}
  action: DENY
  rules:
    - from:
        - source:
            principals: ["cluster.local/ns/shop/sa/web", "cluster.local/ns/shop/*", "*/sa/web", "*"]
            notPrincipals: ["cluster.local/ns/a/sa/b"]
            requestPrincipals: ["issuer/*"]
            notRequestPrincipals: ["x"]
            namespaces: [shop, "sh*", "*op"]
            notNamespaces: [other]
            ipBlocks: [10.0.0.1, 10.0.0.0/8, "fd00::/8", 10.1.2.3/16]
            notIpBlocks: [10.0.0.2]
            remoteIpBlocks: [1.2.3.4]
            notRemoteIpBlocks: [1.2.3.5/32]
        - source: {serviceAccounts: [web, shop/web], notServiceAccounts: [db]}
      to:
        - operation:
            {hosts: [a], notHosts: [b], ports: ["80"], notPorts: ["81"], methods: [GET], notMethods: [PUT],
             paths: ["/a*"], notPaths: ["/{*}"]}
      when:
        - {key: "request.headers[User-Agent]", values: ["Mozilla/*"]}
        - {key: "request.auth.claims[a][b]", notValues: [x]}
        - {key: source.principal, values: ["cluster.local/ns/shop/sa/web"]}
        - {key: source.namespace, values: [shop]}
        - {key: destination.port, values: ["80"]}
        - {key: destination.ip, notValues: [10.0.0.0/8]}
        - {key: connection.sni, values: [x]}
    - {}
"""


@pytest.mark.parametrize("version", ["security.istio.io/v1", "security.istio.io/v1beta1", "nodemesh.dev/v1alpha1"])
def test_istios_whole_schema_is_accepted_under_each_group(version: str) -> None:
    ((manifest,), problems) = load([("f", ACCEPTED.replace("security.istio.io/v1", version))])
    assert problems == []
    assert manifest.key == ("AuthorizationPolicy", "shop", "full")


def test_the_namespace_is_default_where_it_is_left_out_and_an_empty_spec_will_do_for_a_policy() -> None:
    text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\n"
    for spec in ("", "spec: {}\n", "spec:\n"):
        ((manifest,), problems) = load([("f", text + spec)])
        assert problems == []
        assert manifest.namespace == "default"


def test_json_and_lists_are_read_too() -> None:
    service = '{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"ports": [{"port": 80}]}}'
    text = f'{{"apiVersion": "v1", "kind": "List", "items": [{service}]}}'
    ((manifest,), problems) = load([("f", text)])
    assert problems == []
    assert manifest.key == ("Service", "default", "x")


def test_a_line_number_counts_from_the_start_of_the_file_after_a_broken_document() -> None:
    _manifests, problems = load([("f", "---\na: [\n---\n\nkind: Nope\napiVersion: v1\nmetadata: {name: x}\n")])
    assert [(p.line, p.path) for p in problems][-1] == (5, "kind")


def test_aliases_that_grow_are_bounded() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    _documents, (problem,) = read("f", "\n".join(lines))
    assert "too many values" in problem.message


def test_nesting_is_bounded() -> None:
    for text in ("[" * 100 + "]" * 100, "[" * 100_000, "a: &a [*a]", "&a {k: *a}"):
        _documents, problems = read("f", text)
        assert len(problems) == 1


@given(st.text())
def test_no_text_raises(text: str) -> None:
    load([("f", text)])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["apiVersion", "kind", "metadata", "name", "spec", "rules", "from", "source", "ports"]),
                inner,
                max_size=4,
            )
        ),
    ),
    st.sampled_from(["Service", "Workload", "AuthorizationPolicy", "PeerAuthentication"]),
)
def test_any_shape_is_judged_and_located(value: object, kind: str) -> None:
    version = "v1" if kind == "Service" else "nodemesh.dev/v1alpha1"
    document = {"apiVersion": version, "kind": kind, "metadata": {"name": "x"}, "spec": value}
    _manifests, problems = load([("f", json.dumps(document))])
    assert all(p.line == 1 and p.column >= 1 for p in problems)


def test_paths_are_written_as_people_write_them() -> None:
    assert dotted(("spec", "rules", 0, "from")) == "spec.rules[0].from"
    assert dotted(("metadata", "labels", "app.kubernetes.io/name")) == "metadata.labels['app.kubernetes.io/name']"
