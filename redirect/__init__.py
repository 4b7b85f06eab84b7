"""How a workload's traffic reaches `noded`: facts in, rules out (`plan`); `capture` applies, verifies and undoes them.

Nothing is imported here: the workers need `redirect.netns`, and must not pay for python-iptables and pyroute2 (36 MB).
"""
