"""The `noded` command: read the configuration, then run the daemon until SIGTERM."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from noded import config, logs


def main() -> None:
    """Exit 0 after an orderly stop, 1 if the daemon can't run here, 2 if the command line or configuration is wrong."""
    parser = argparse.ArgumentParser(prog="noded", description="The mesh's daemon on this host.")
    parser.add_argument("--config", type=Path, default=Path("/etc/nodemesh/noded.yaml"), metavar="FILE")
    parser.add_argument("--node", metavar="NAME", help="this host's name, whatever the configuration says")
    parser.add_argument("--controller", metavar="HOST:PORT", help="the controller, whatever the configuration says")
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    parser.add_argument("--clean-up", action="store_true", help="remove what noded left on this host and exit")
    parser.add_argument(
        "--pods", action="store_true", help="with --clean-up: also remove capture from workloads that still run"
    )
    arguments = parser.parse_args()
    if arguments.pods and not arguments.clean_up:
        parser.error("--pods goes with --clean-up")
    try:
        settings = config.load(arguments.config, node=arguments.node, controller=arguments.controller)
    except config.ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    if arguments.check:
        print(f"{arguments.config}: ok")
        return
    logs.start(settings.log_level)
    import trio  # after --check, which needs none of what follows

    from noded.control import clean_up, daemon
    from noded.control.failure import CannotRun

    try:
        if arguments.clean_up:
            trio.run(clean_up.run, settings, arguments.pods, strict_exception_groups=True)
        else:
            trio.run(daemon.run, settings, strict_exception_groups=True)
    except* CannotRun as group:
        leaf: BaseException = group
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        print(f"noded: {leaf}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
