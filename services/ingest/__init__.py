"""The hospitals' door: reads what they send, keeps it, states it once. Begin at flow.py."""
