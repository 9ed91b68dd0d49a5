"""A plugin of pytest: Hypothesis tells that a test fails, and spends no minutes on the smallest example."""

from hypothesis import Phase, settings

settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate], print_blob=False)
settings.load_profile("mutants")
