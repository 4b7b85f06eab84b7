"""`mesh-controller`: reads the configuration and runs the daemon."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import trio

from controller import logs
from controller.ca import CaError
from controller.config import ConfigError, load
from controller.daemon import Daemon
from controller.kubernetes.access import AccessError
from controller.listeners import ListenError
from controller.store import StoreError


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("/etc/nodemesh/controller.yaml"),
    show_default=True,
    help="The configuration file.",
)
@click.version_option(package_name="nodemesh")
def main(path: Path) -> None:
    """Run the mesh's controller: resources in, snapshots and certificates out."""
    try:
        config = load(path)
        logs.set_up(config.log_level)
        daemon = Daemon(config)
    except (ConfigError, StoreError, CaError, AccessError) as error:
        raise click.ClickException(str(error)) from error
    try:
        trio.run(daemon.run)
    except ListenError as error:
        raise click.ClickException(str(error)) from error
    finally:
        daemon.close()
    sys.exit(0)


if __name__ == "__main__":
    main()
