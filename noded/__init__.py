"""The daemon on each host: `control` (one process) and `data` (worker processes), with `link` between them."""
