"""The `slurm` backend: jobs are handed to a Slurm site, which finds the nodes and GPUs itself.

Our own run id, in the name and the comment of each Slurm job, is the identity; Slurm's ids are only used for
as long as a listing is fresh. A run's folder lies on a file system that this machine shares with the nodes.
"""
