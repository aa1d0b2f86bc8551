"""Real agents, run without a network, that must leave the same history in every saver."""
