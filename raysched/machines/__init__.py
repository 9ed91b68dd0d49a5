"""Machines made on demand, by Ray's own cluster launcher, and used as hosts behind SSH."""
