"""What carries the three stories. It knows the envelope of an event, never a particular one."""
