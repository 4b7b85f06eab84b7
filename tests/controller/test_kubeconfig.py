from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.kubernetes import kubeconfig
from controller.kubernetes.access import Access, AccessError

PEM = "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n"


def config(name: str = "a", *, current: str = "", user: Any = None, **cluster: Any) -> dict[str, Any]:
    return {
        "current-context": current or name,
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "clusters": [{"name": name, "cluster": {"server": f"https://{name}.example"} | cluster}],
        "users": [{"name": name, "user": {"token": f"token-{name}"} if user is None else user}],
    }


def load(folder: Path, *configs: dict[str, Any], context: str = "") -> Access:
    paths = []
    for index, each in enumerate(configs):
        paths.append(folder / f"{index}.yaml")
        paths[-1].write_text(yaml.safe_dump(each))
    return kubeconfig.load(paths, context)


def program(folder: Path, answer: object) -> dict[str, Any]:
    path = folder / "log-in"
    asked = f'printf %s "$KUBERNETES_EXEC_INFO $WHO $1" > {folder}/asked'
    path.write_text(f"#!/bin/sh\n{asked}\ncat <<'E'\n{json.dumps(answer)}\nE\n")
    path.chmod(0o755)
    return {
        "apiVersion": "client.authentication.k8s.io/v1beta1",
        "command": "./log-in",
        "args": ["now"],
        "env": [{"name": "WHO", "value": "me"}],
    }


def test_the_current_context_is_taken_or_the_one_that_is_named(tmp_path: Path) -> None:
    both = config("a")
    for key, value in config("b").items():
        if isinstance(value, list):
            both[key] += value
    assert (load(tmp_path, both).server, load(tmp_path, both).bearer()) == ("https://a.example", "token-a")
    assert load(tmp_path, both, context="b").server == "https://b.example"


def test_of_several_files_the_first_to_say_something_counts(tmp_path: Path) -> None:
    first, second = config("a"), config("a", **{"certificate-authority-data": base64.b64encode(PEM.encode()).decode()})
    assert load(tmp_path, first, second).ca == ""
    assert load(tmp_path, second, first).ca == PEM
    assert load(tmp_path, config("a"), config("b"), context="b").server == "https://b.example"


def test_paths_are_relative_to_their_file(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(PEM)
    (tmp_path / "token").write_text("secret\n")
    access = load(tmp_path, config(user={"tokenFile": "token"}, **{"certificate-authority": "ca.pem"}))
    assert (access.ca, access.bearer()) == (PEM, "secret")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"token": "t"}, ("t", b"")),
        ({"clientCertificateData": PEM, "clientKeyData": PEM}, ("", PEM.encode())),
    ],
)
def test_a_user_may_log_in_by_a_program(tmp_path: Path, status: object, expected: tuple[str, bytes]) -> None:
    access = load(tmp_path, config(user={"exec": program(tmp_path, {"status": status})}))
    assert (access.bearer(), access.client_chain) == expected
    asked, who, word = (tmp_path / "asked").read_text().rsplit(" ", 2)
    assert json.loads(asked)["kind"] == "ExecCredential"
    assert (who, word) == ("me", "now")


def broken_program(folder: Path) -> dict[str, Any]:
    return config(user={"exec": program(folder, {})})


def missing_program(_folder: Path) -> dict[str, Any]:
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": "no-such-program", "installHint": "get it"}
    return config(user={"exec": plugin})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda _: config(current="x"), "no context 'x'; known are a"),
        (lambda _: {**config(), "current-context": ""}, "no current context"),
        (lambda _: config(user={"username": "u", "password": "p"}), "username"),
        (lambda _: config(user={"exec": {"apiVersion": "client.authentication.k8s.io/v1alpha1"}}), "v1alpha1"),
        (lambda _: config(**{"certificate-authority": "none.pem"}), "not usable"),
        (lambda _: {"contexts": 3}, "not a kubeconfig"),
        (missing_program, "get it"),
        (broken_program, "failed"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, make: Any, says: str) -> None:
    with pytest.raises(AccessError, match=says):
        load(tmp_path, make(tmp_path))


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    assert "token-a" not in repr(load(tmp_path, config()))
