"""Decorated calls and client-held leases: what runs in Ray for them."""
