"""What we are made of is pinned, listed, and holds no secret (CS-101)."""

import base64
import json
import re
import secrets
import shutil
import tomllib
from typing import Any

import pytest

from tests import supply

UV = shutil.which("uv") or str(supply.ROOT / ".tooling" / "bin" / "uv")
LOCK: dict[str, Any] = tomllib.loads((supply.ROOT / "uv.lock").read_text())

PLANTED = {
    "private key": "-----BEGIN EC PRIVATE" + " KEY-----",
    "private JWK": json.dumps({"kty": "EC", "d": secrets.token_urlsafe(48)}),
    "signed token": ".".join(
        base64.urlsafe_b64encode(one).decode().rstrip("=")
        for one in (
            b'{"alg":"ES384","typ":"JWT"}',
            b'{"iss":"x","sub":"x"}',
            secrets.token_bytes(96),
        )
    ),
    "webhook secret": "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode(),
    "password in a URL": f"postgresql://passerelle:{secrets.token_hex(12)}@db.example.org/x",
    "cloud key": "AKIA" + "ABCDEFGHIJKLMNOP",
    "forge token": "ghp_" + secrets.token_hex(18),
    "key of 32 bytes": f'"k1": "{base64.b64encode(bytes(range(7, 231, 7))).decode()}"',
}


@pytest.mark.parametrize("kind", supply.SECRETS)
def test_a_secret_that_somebody_commits_is_found(kind: str) -> None:
    assert (2, kind) in list(supply.secrets_in(f"# harmless\nfound = {PLANTED[kind]}\n"))


def test_no_tracked_file_holds_a_secret() -> None:
    assert supply.kept_secrets() == []


def test_every_file_that_is_installed_is_pinned_by_its_hash() -> None:
    assert supply.unpinned(LOCK) == []


@pytest.mark.parametrize("plant", ["no hash", "another hash", "a branch", "no files"])
def test_a_package_that_is_not_pinned_is_found(plant: str) -> None:
    package: dict[str, Any] = {
        "name": "planted",
        "source": {"registry": "https://packages.example.org/simple"},
        "wheels": [{"hash": "sha256:00"}],
    }
    match plant:
        case "no hash":
            del package["wheels"][0]["hash"]
        case "another hash":
            package["wheels"][0]["hash"] = "md5:00"
        case "a branch":
            package["source"] = {"git": "https://git.example.org/planted"}
        case _:
            package["wheels"] = []
    assert supply.unpinned({"package": [package]})


def test_the_bills_list_all_that_is_delivered_and_nothing_else() -> None:
    """CycloneDX: of the distribution, and of the image, which has no database server."""
    made = supply.boms(UV)
    assert len(made) == 2
    for name, bom in made.items():
        assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.5")
        listed = {(one["name"], one["version"]): one for one in bom["components"]}
        names = {name for name, _ in listed}
        of_project = {re.split("[=>]", one)[0].replace(".", "-") for one in dependencies()}
        missing = of_project - names
        assert missing == ({supply.NOT_IN_THE_IMAGE} if "image" in name else set())
        assert ("python" in names) is ("image" in name)
        assert {"htmx.org", "govuk-frontend"} <= names
        assert "pytest" not in names
        for (package, version), one in listed.items():
            assert version, package
            assert one["purl"].startswith("pkg:"), package


def dependencies() -> list[str]:
    project = tomllib.loads((supply.ROOT / "pyproject.toml").read_text())["project"]
    return [str(one) for one in project["dependencies"]]
