"""The controller's home on Kubernetes: what it reads from the API server and what it writes there."""
