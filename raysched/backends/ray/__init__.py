"""The ray backend: keeps leases in Ray's placement groups, and runs commands through the node agents.

`backend.RayBackend` is what the backend actor uses; `groups` makes and removes placement groups, `records`
remembers them, `exact` gets the GPUs that were asked for, `holds` says what each lease needs, `outside`
finds GPUs that others hold, `agents` reaches the nodes.
"""
