"""Why trainings are slow: pure functions from what was measured to a cause and the mend."""
