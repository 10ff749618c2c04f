"""The published definitions that come with Passerelle, each a policy file (counting.md section 6).

A file holds only what differs from `qc-default`; what it leaves out are that one's values.
"""

from importlib import resources

DEFAULT = "qc-default"

_FOLDER = resources.files("services.screening") / "policies"


def names() -> list[str]:
    """All of them, the default first."""
    found = {file.name.removesuffix(".yaml") for file in _FOLDER.iterdir()}
    return sorted(found, key=lambda name: (name != DEFAULT, name))


def text(name: str) -> str:
    """The file of a preset. KeyError: there is none of that name."""
    if name not in names():
        raise KeyError(name)
    return (_FOLDER / f"{name}.yaml").read_text()
