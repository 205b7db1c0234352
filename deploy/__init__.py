"""Everything that runs OneBase: the command line, the demo, later containers and the benchmark."""
