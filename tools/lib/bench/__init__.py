"""`tools/bench`: a pod-to-pod path through Nodemesh beside the same path direct and through a pair of Envoys."""
