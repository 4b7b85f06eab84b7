"""The cluster's controller: resources in, snapshots and certificates out, telemetry back."""
