"""A mesh of several hosts on one machine, in network namespaces. For trying and testing; never installed."""
