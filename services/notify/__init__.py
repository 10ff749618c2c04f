"""notify: whose patient is it, may they be told, which card. Open flow.py first."""
