"""How a workload's traffic reaches `noded`: facts in, rules out (`plan`), then `apply`, `verify` and `undo` them."""
