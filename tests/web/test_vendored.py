"""What is not ours is listed and unchanged (NW-62, NW-64)."""

import hashlib
import json
import re
from base64 import b64encode
from importlib.metadata import distribution, version
from importlib.resources import files
from pathlib import Path

import pytest

from services.notify.web.rendering import assets, environment, vendored
from services.notify.web.words import Language
from tests.web.conftest import HERE
from tests.web.gallery import PICTURES

WEB = Path(str(files("services.notify.web")))
HTMX = "sha384-2OatzQy1H+Zd/IIrjr1TcuDGqLXeHhbooAyJY1KdQMKnr4LZ22k31GBLdYKHmVjg"
RESERVED = re.compile(
    r"gds[ -]?transport|@font-face|\.woff|govuk-crest|crest\.|crown|favicon\.ico|opengraph|gov\.uk",
    re.IGNORECASE,
)
OURS = {"passerelle.js", "passerelle.svg"}


def digest(file: Path) -> str:
    return f"sha384-{b64encode(hashlib.sha384(file.read_bytes()).digest()).decode()}"


def listed() -> list[tuple[Path, dict[str, str]]]:
    tests: list[dict[str, str]] = json.loads((HERE / "vendored.json").read_text())
    served = [(WEB / entry["file"], dict(entry)) for entry in vendored()]
    return served + [(HERE / entry["file"], entry) for entry in tests]


@pytest.mark.parametrize(("file", "entry"), listed(), ids=lambda one: getattr(one, "name", ""))
def test_a_vendored_file_is_the_one_in_the_manifest(file: Path, entry: dict[str, str]) -> None:
    assert digest(file) == entry["integrity"]
    assert all(entry[name] for name in ("name", "version", "licence", "source"))


def test_every_served_file_is_ours_or_in_the_manifest() -> None:
    known = {file.name for file, _ in listed()}
    assert set(assets()) == OURS | known - {"axe.min.js"}


def test_htmx_is_the_release_the_specification_names() -> None:
    """NW-60, and pages ask the browser to check it."""
    assert assets()["htmx.min.js"].integrity == HTMX
    assert f'integrity="{HTMX}"' in bytes(PICTURES["list"](Language.FRENCH).body).decode()


def test_the_pair_of_govuk_frontend_and_its_templates_is_pinned() -> None:
    entry = next(one for one in vendored() if one["name"] == "govuk-frontend")
    assert (entry["version"], version("govuk-frontend-jinja")) == ("6.6.0", "4.1.0")
    package = json.loads((WEB / "brand" / "package.json").read_text())["devDependencies"]
    assert package["govuk-frontend"] == entry["version"]
    assert package["htmx.org"] == "2.0.11"


def test_nothing_reserved_is_in_what_we_ship() -> None:
    """NW-62: no font, crest, icon or name of GOV.UK in any file the browser gets, nor in ours."""
    for name, asset in assets().items():
        assert not RESERVED.search(asset.body.decode()), name
    for file in (WEB / "templates").glob("*.html"):
        assert not RESERVED.search(file.read_text()), file.name
        assert "components/header" not in file.read_text()
        assert "components/footer" not in file.read_text()


@pytest.mark.parametrize("name", list(PICTURES))
def test_nothing_reserved_is_on_any_page(name: str) -> None:
    for language in Language:
        assert not RESERVED.search(bytes(PICTURES[name](language).body).decode())


def test_the_templates_of_others_bring_no_font_or_image() -> None:
    """A grep of the wheel itself (NW-62)."""
    names = [str(one) for one in distribution("govuk-frontend-jinja").files or ()]
    assert names
    assert not [
        one for one in names if one.endswith((".woff", ".woff2", ".ico", ".png", ".svg", ".css"))
    ]


def test_no_page_asks_the_browser_for_anything_elsewhere() -> None:
    """No CDN (NW-60): each address in a page or stylesheet is local."""
    for name in PICTURES:
        page = bytes(PICTURES[name](Language.FRENCH).body).decode()
        assert not re.search(r'(?:src|href|action)="(?:https?:)?//', page), name
    assert "url(" not in assets()["passerelle.css"].body.decode()


def test_htmx_runs_no_code_from_markup_and_keeps_no_history() -> None:
    """NW-63."""
    page = bytes(PICTURES["list"](Language.FRENCH).body).decode()
    said = re.search(r"name=\"htmx-config\" content='([^']+)'", page)
    assert said is not None
    assert json.loads(said[1]) == {
        "allowEval": False,
        "includeIndicatorStyles": False,
        "historyCacheSize": 0,
        "selfRequestsOnly": True,
    }


def test_no_template_has_an_inline_style_or_handler() -> None:
    """NW-74."""
    loader = environment().loader
    assert loader is not None
    for name in loader.list_templates():
        if not name.startswith("govuk_frontend_jinja"):
            source, _, _ = loader.get_source(environment(), name)
            assert not re.search(r"\sstyle=|\son[a-z]+=|hx-on", source), name
