"""The `k8s` backend: a run is a Job of a Kubernetes cluster, which finds the nodes and GPUs itself.

The name of each object is made from the run's id, so that nothing is made twice. A ConfigMap beside each Job,
its record, says what became of the run; it outlives the Job, so that a Job which somebody deleted is not made
again (docs/decisions/0013).
"""
