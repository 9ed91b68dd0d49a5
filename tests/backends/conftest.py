"""Assertions of the conformance suite explain themselves as those of tests do."""

import pytest

pytest.register_assert_rewrite("raysched.testing.conformance")
