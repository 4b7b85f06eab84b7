"""The plug-in's place in the chain that a container runtime uses."""

import json
import subprocess
from pathlib import Path

import pytest

from redirect.cni.install import NAME, Installer, NotInstalledError

LIST = """{"cniVersion":"0.4.0","name":"kbridge",
 "plugins":[{"type":"bridge","ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]]}},
 {"type":"portmap"}]}"""
SINGLE = '{"cniVersion": "0.3.1", "name": "flat", "type": "bridge", "bridge": "cni0"}'


@pytest.fixture
def installer(tmp_path: Path) -> Installer:
    for name in ("bin", "conf"):
        (tmp_path / name).mkdir()
    return Installer(tmp_path / "bin", tmp_path / "conf", tmp_path / "state", tmp_path / "run")


def put(installer: Installer, name: str, text: str) -> Path:
    path = installer.conf_dir / name
    path.write_text(text)
    path.chmod(0o640)
    return path


def types(path: Path) -> list[str]:
    return [plugin["type"] for plugin in json.loads(path.read_text())["plugins"]]


def files(installer: Installer) -> dict[str, tuple[str, int]]:
    folders = (installer.conf_dir, installer.bin_dir)
    return {p.name: (p.read_text(), p.stat().st_mode) for folder in folders for p in folder.iterdir()}


def test_it_comes_last_in_the_first_list_by_name(installer: Installer) -> None:
    put(installer, "20-other.conflist", LIST)
    put(installer, "05-broken.conflist", '{"plugins": "none"}')
    put(installer, "00-notes.txt", "hello")
    path = put(installer, "10-net.conflist", LIST)
    assert installer.ensure() == path
    assert types(path) == ["bridge", "portmap", NAME]
    assert json.loads(path.read_text())["plugins"][:2] == json.loads(LIST)["plugins"]
    assert types(installer.conf_dir / "20-other.conflist") == ["bridge", "portmap"]
    assert (installer.bin_dir / NAME).stat().st_mode & 0o777 == 0o755


def test_doing_it_again_writes_nothing(installer: Installer) -> None:
    path = put(installer, "10-net.conflist", LIST)
    installer.ensure()
    before = [p.stat() for p in (path, installer.bin_dir / NAME)]
    assert installer.ensure() == path
    assert [p.stat() for p in (path, installer.bin_dir / NAME)] == before


@pytest.mark.parametrize("name", ["10-net.conflist", "10-net.conf", "10-net.json"])
def test_uninstalling_puts_back_the_very_bytes(installer: Installer, name: str) -> None:
    put(installer, name, LIST if name.endswith("list") else SINGLE)
    put(installer, "99-other.conf", SINGLE)
    before = files(installer)
    installer.ensure()
    (installer.namespaces / "shop").touch()
    installer.uninstall()
    assert files(installer) == before
    assert not installer.state_dir.exists()
    installer.uninstall()
    assert files(installer) == before


def test_a_single_plug_in_becomes_a_list(installer: Installer) -> None:
    path = put(installer, "10-net.conf", SINGLE)
    chained = installer.ensure()
    assert chained.name == "10-net.conflist"
    assert not path.exists()
    parsed = json.loads(chained.read_text())
    assert (parsed["cniVersion"], parsed["name"]) == ("0.3.1", "flat")
    assert parsed["plugins"] == [{"type": "bridge", "bridge": "cni0"}, {"type": NAME}]


@pytest.mark.parametrize(("name", "text"), [("10-net.conflist", LIST), ("10-net.conf", SINGLE)])
def test_a_file_that_its_owner_writes_anew_is_chained_anew(installer: Installer, name: str, text: str) -> None:
    put(installer, name, text)
    installer.ensure()
    new = text.replace("bridge", "macvlan")
    put(installer, name, new)
    assert types(installer.ensure())[-1] == NAME
    assert types(installer.ensure())[0] == "macvlan"
    installer.uninstall()
    assert {path.name: path.read_text() for path in installer.conf_dir.iterdir()} == {name: new}


def test_what_somebody_else_changed_meanwhile_is_kept(installer: Installer) -> None:
    path = put(installer, "10-net.conflist", LIST)
    installer.ensure()
    parsed = json.loads(path.read_text())
    parsed["plugins"].insert(1, {"type": "bandwidth"})
    path.write_text(json.dumps(parsed))
    installer.uninstall()
    assert types(path) == ["bridge", "bandwidth", "portmap"]


def test_a_plug_in_chained_behind_ours_leaves_ours_last(installer: Installer) -> None:
    path = put(installer, "10-net.conflist", LIST)
    installer.ensure()
    parsed = json.loads(path.read_text())
    parsed["plugins"].append({"type": "tuning"})
    path.write_text(json.dumps(parsed))
    installer.ensure()
    assert types(path) == ["bridge", "portmap", "tuning", NAME]


def test_with_no_network_yet_it_waits(installer: Installer) -> None:
    with pytest.raises(NotInstalledError, match="holds no CNI configuration"):
        installer.ensure()
    put(installer, "10-net.conflist", LIST)
    assert types(installer.ensure())[-1] == NAME


def test_uninstalling_what_never_was_installed_changes_nothing(installer: Installer) -> None:
    put(installer, "10-net.conflist", LIST)
    before = files(installer)
    installer.uninstall()
    assert files(installer) == before


@pytest.mark.root
def test_uninstalling_succeeds_where_the_state_folder_is_a_mount(installer: Installer) -> None:
    path = put(installer, "10-net.conflist", LIST)
    installer.state_dir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", installer.state_dir], check=True)
    try:
        installer.ensure()
        installer.uninstall()
        assert path.read_text() == LIST
        assert list(installer.state_dir.iterdir()) == []
    finally:
        subprocess.run(["umount", installer.state_dir], check=True)


def test_no_file_that_a_runtime_would_read_is_ever_half_written(installer: Installer) -> None:
    path = put(installer, "10-net.conflist", LIST)
    inode = path.stat().st_ino
    installer.ensure()
    assert path.stat().st_ino != inode  # another file took its name
    assert [p.name for p in installer.conf_dir.iterdir()] == [path.name]


@pytest.mark.root
def test_a_state_folder_that_is_a_mount_is_emptied(installer: Installer) -> None:
    put(installer, "10-net.conflist", LIST)
    installer.state_dir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(installer.state_dir)], check=True)
    try:
        installer.ensure()
        installer.uninstall()
        assert list(installer.state_dir.iterdir()) == []
    finally:
        subprocess.run(["umount", str(installer.state_dir)], check=True)
