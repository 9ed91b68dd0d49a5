"""What a Python program uses: decorators, leases, placement groups, submissions."""
