"""Who is a frequent user, and why. Open flow.py first."""
