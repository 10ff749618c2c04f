"""The command `passerelle`: operations, and the house on one machine for `up` and `demo`."""
