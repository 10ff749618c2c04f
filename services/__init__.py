"""Passerelle: tells a clinic, as far as consent allows, that its patient is a frequent user.

Read three stories, in this order: ingest/flow.py, screening/flow.py, notify/flow.py.
The pure files beside them decide; store.py keeps; plumbing carries.
"""
