"""A real Kubernetes cluster on one machine, in namespaces, from Debian packages. Never installed."""
