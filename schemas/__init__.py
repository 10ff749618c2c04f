"""All that the services share about each other: the events, one module a type and version."""
