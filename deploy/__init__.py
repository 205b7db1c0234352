"""Everything that runs OneBase: the command `onebase`, and what brings it to machines."""
