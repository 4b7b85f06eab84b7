"""`python -m kubebed`, which `tools/kubebed` calls."""

import sys

from kubebed.cli import main

sys.exit(main(sys.argv[1:]))
