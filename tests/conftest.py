"""For all tests."""

from hypothesis import HealthCheck, settings

# No assumption about the machine: with others at work on it an example, or drawing one, may take seconds.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
