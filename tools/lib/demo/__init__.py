"""A tour of the mesh with evidence: `tools/demo`."""
