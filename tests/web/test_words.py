"""Two languages, whole and equal (NW-40 to NW-43). No browser, no database."""

import ast
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from string import Formatter
from zoneinfo import ZoneInfo

import pytest
from babel.messages.catalog import Catalog, Message
from babel.messages.pofile import read_po
from jinja2 import nodes

from schemas.encounter_recorded_v1 import Disposition
from services.notify import card, consent, correction, holding, incident, override, reading
from services.notify.web import consent_views, views
from services.notify.web.rendering import environment
from services.notify.web.words import Language, Words, choose
from tests.web.gallery import PICTURES

WEB = Path(str(files("services.notify.web")))
SCREENING = WEB.parents[1] / "screening"
ZONE = ZoneInfo("America/Toronto")
FRENCH, ENGLISH = Words(Language.FRENCH, ZONE), Words(Language.ENGLISH, ZONE)


def catalogue(language: Language) -> Catalog:
    path = WEB / "locale" / language.value / "LC_MESSAGES" / "passerelle.po"
    with path.open("rb") as text:
        return read_po(text, locale=language.value, abort_invalid=True)


def messages(language: Language) -> dict[str, Message]:
    return {
        one.id if isinstance(one.id, str) else one.id[0]: one
        for one in catalogue(language)
        if one.id
    }


def forms(message: Message) -> tuple[str, ...]:
    return (message.string,) if isinstance(message.string, str) else tuple(message.string or ())


def screening_codes() -> set[str]:
    """Every code of a Note that screening can write, read off its source."""
    found = set()
    for file in SCREENING.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "Note"
                and node.args
            ):
                code = node.args[0]
                either = [code.body, code.orelse] if isinstance(code, ast.IfExp) else [code]
                found |= {str(one.value) for one in either if isinstance(one, ast.Constant)}
    return found


def values(kind: type[StrEnum]) -> set[str]:
    return {one.value for one in kind}


MEASURES = values(views.Measure)
GRANTS = {"permitted", "implied"}
"""Reasons of a release; the register says why something was kept back."""
FAULTS = {
    *("effect", "whom", "unknown", "date", "past", "performer", "relative", "alone", "parent"),
    *("source", "reference", "long", "media", "large", "language", "risks", "system", "number"),
    *("foreign", "stale", "reason", "short", "labels", "patient", "verdict", "again", "ground"),
    "cannot_ask",
    *("missing", "future", "order", "count", "undecided", "untold", "overtaken"),
}
"""What may be wrong with a field of a form: paper.read, override.faults, the pages."""
FAMILIES: Mapping[str, set[str]] = {
    "role": values(views.Role),
    "tier": values(views.Tier),
    "event": values(views.Happening),
    "status": values(views.Progress),
    "list.filter": values(views.Filter),
    "consent": {*values(views.Ground), "level1", "level2", "level3"},
    "why": MEASURES | {f"{one}_days" for one in MEASURES},
    "why.kind": {"ed", "hosp"},
    "visit.ended": values(Disposition),
    "why.clause": MEASURES,
    "why.then": values(views.Standing),
    "standing": values(views.Standing),
    "exclusion": values(correction.Reason),
    "visits": {
        f"{does}_{part}" for does in ("exclude", "undo") for part in ("title", "text", "do")
    },
    "visits.lacks": {"reason", "note"},
    "patients.col": {"patient", "standing", "visits", "latest"},
    "why.col": {"date", "place", "kind", "length", "counted", "reason"},
    "col": {"patient", "event", "reason", "due", "owner", "state", "action"},
    "person.gender": {"female", "male", "other", "unknown"},
    "outcome": values(views.Outcome),
    "channel": values(views.Channel),
    "app": {f"to_{one.value}" for one in Language},
    "ground": {*(values(consent.Reason) - GRANTS), "other"},
    "retract": values(card.Why),
    "code": {*screening_codes(), "other"},
    "consent.status": set(reading.STATUSES),
    "incident": {*incident.FIELDS, *(f"{one}_hint" for one in incident.TEXTS)} - {"closed", "risk"},
    "incident.risk": values(incident.Risk),
    "report.copy": {"patient", "officer"},
    "report.in": values(Language),
    "label": {code.lower() for code in consent.SENSITIVITY_ABOVE},
    "h3.place": {f"{one}{part}" for one in values(consent_views.Place) for part in ("", "_text")},
    "hold.why": values(holding.Why),
    "hold.text": values(holding.Why),
    "hold.do": values(holding.Why),
    "glass.ground": values(override.Ground),
    "review.verdict": values(override.Verdict),
    "review.notice": values(override.Notice),
    "fault": FAULTS,
}
"""Keys that a page puts together: what may follow the dot."""


def spelled_out() -> Iterator[str]:
    """Every string in a template or a module of the pages that could be a key."""
    for name in environment().loader.list_templates():  # type: ignore[union-attr]  # it has one
        if name.startswith("govuk_frontend_jinja"):
            continue
        source, _, _ = environment().loader.get_source(environment(), name)  # type: ignore[union-attr]  # it has one
        for node in environment().parse(source).find_all(nodes.Const):
            if isinstance(node.value, str):
                yield node.value
    for file in WEB.glob("*.py"):
        for part in ast.walk(ast.parse(file.read_text())):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield part.value


def composed() -> set[str]:
    return {f"{family}.{member}" for family, members in FAMILIES.items() for member in members}


def test_both_languages_have_the_same_keys() -> None:
    assert messages(Language.FRENCH).keys() == messages(Language.ENGLISH).keys()


@pytest.mark.parametrize("language", list(Language))
def test_no_message_is_empty_or_uncertain(language: Language) -> None:
    for key, message in messages(language).items():
        assert all(forms(message)), key
        assert not message.fuzzy, key


def test_a_message_takes_the_same_values_in_both_languages_and_forms() -> None:
    french, english = messages(Language.FRENCH), messages(Language.ENGLISH)
    for key in french:
        asked = {
            frozenset(name for _, name, _, _ in Formatter().parse(form) if name)
            for message in (french[key], english[key])
            for form in forms(message)
        }
        assert len(asked) == 1, key
        assert len(forms(french[key])) == len(forms(english[key])), key


def test_every_key_that_is_used_exists() -> None:
    """NW-43. A key is a dotted word whose first part is one of the catalogue's."""
    known = set(messages(Language.FRENCH))
    tops = {key.partition(".")[0] for key in known}
    shape = re.compile(r"[a-z]+(\.[a-z0-9_-]+)+")
    spelled = {
        one
        for one in spelled_out()
        if shape.fullmatch(one) and one.partition(".")[0] in tops and not one.endswith(".html")
    }
    begun = {one for one in spelled if any(key.startswith(one) for key in composed())}
    used = (spelled - begun) | composed()
    assert used <= known, used - known


def test_every_key_that_exists_is_used() -> None:
    """NW-43."""
    used = set(spelled_out()) | composed()
    assert set(messages(Language.FRENCH)) <= used, set(messages(Language.FRENCH)) - used


TEXT_OPTIONS = {"text", "html", "titleText", "titleHtml", "visuallyHiddenText", "label", "hint"}
READ_ALOUD = re.compile(r'(?:aria-label|alt|title|placeholder|data-label|value)="([^"{]+)"')


def test_no_template_has_a_bare_string() -> None:
    """NW-43: neither between tags, nor in an attribute that is read, nor given to a macro."""
    loader = environment().loader
    assert loader is not None
    for name in loader.list_templates():
        if name.startswith("govuk_frontend_jinja"):
            continue
        source, _, _ = loader.get_source(environment(), name)
        tree = environment().parse(source)
        html = "".join(
            str(part.data) if isinstance(part, nodes.TemplateData) else "\x00"
            for output in tree.find_all(nodes.Output)
            for part in output.nodes
        )
        between = re.sub(r"<[^>]*>", "\n", html)
        assert not re.search(r"[^\W\d_]{2,}", re.sub(r"&[a-z]+;", "", between)), (name, between)
        assert not [one for one in READ_ALOUD.findall(html) if re.search(r"[^\W\d_]{2}", one)], name
        for pair in tree.find_all(nodes.Pair):
            if isinstance(pair.key, nodes.Const) and pair.key.value in TEXT_OPTIONS:
                assert not isinstance(pair.value, nodes.Const), (name, pair.key.value)


FORBIDDEN = re.compile(
    r"abus|non.?compliant|non.?complian|inappropri|frequent.?flyer|non.?observan|inobservan"
    r"|récalcitran|simulat|injustifi|unjustified",
    re.IGNORECASE,
)


@pytest.mark.parametrize("language", list(Language))
def test_no_word_blames_the_person(language: Language) -> None:
    """NW-42."""
    for key, message in messages(language).items():
        assert not any(FORBIDDEN.search(form) for form in forms(message)), key


ENGLISH_DEFAULTS = (
    "Skip to main content",
    "There is a problem",
    "Error:",
    "Menu",
    "Success",
    "Important",
    "GOV.UK",
    "Warning",
    "Crown copyright",
)


@pytest.mark.parametrize("name", list(PICTURES))
def test_no_english_default_of_a_macro_is_on_a_french_page(name: str) -> None:
    """NW-43."""
    page = bytes(PICTURES[name](Language.FRENCH).body).decode()
    alone = re.sub(r'<div class="p-other" lang="en">.*?</div>', "", page, flags=re.DOTALL)
    assert not [one for one in ENGLISH_DEFAULTS if one in alone]


@pytest.mark.parametrize("name", list(PICTURES))
def test_no_page_mixes_the_languages(name: str) -> None:
    """US-N8: no phrase of the other catalogue, unless it is marked as such (3.1.2)."""
    french, english = messages(Language.FRENCH), messages(Language.ENGLISH)
    for language, other in ((Language.FRENCH, english), (Language.ENGLISH, french)):
        page = bytes(PICTURES[name](language).body).decode()
        alone = re.sub(
            r'<(div|button|span)[^>]* lang="[a-z]+"[^>]*>.*?</\1>', "", page, flags=re.DOTALL
        )
        own = {form for one in messages(language).values() for form in forms(one)}
        strangers = {
            form
            for message in other.values()
            for form in forms(message)
            if len(form) > 12 and "{" not in form and form not in own
        }
        assert not [one for one in strangers if one.replace("'", "&#39;") in alone]


def test_unknown_codes_have_a_word_too() -> None:
    page = bytes(PICTURES["card"](Language.FRENCH).body).decode()
    assert "Autre motif (SITE_RULE_9)" in page


def test_a_key_that_does_not_exist_is_an_error_not_a_text() -> None:
    with pytest.raises(KeyError):
        FRENCH.say("list.no_such_key")


# NW-41


@pytest.mark.parametrize(
    ("n", "french", "english"),
    [
        (1, "1re", "1st"),
        (2, "2e", "2nd"),
        (3, "3e", "3rd"),
        (4, "4e", "4th"),
        (11, "11e", "11th"),
        (12, "12e", "12th"),
        (13, "13e", "13th"),
        (21, "21e", "21st"),
        (112, "112e", "112th"),
    ],
)
def test_ordinals(n: int, french: str, english: str) -> None:
    assert (FRENCH.nth(n), ENGLISH.nth(n)) == (french, english)


def test_the_reason_is_said_as_the_appendix_has_it() -> None:
    said = {
        words.language: words.say("why.ed", nth=words.nth(4), t=4) for words in (FRENCH, ENGLISH)
    }
    assert said[Language.FRENCH] == "4e visite à l'urgence en 12 mois (seuil : 4)"
    assert said[Language.ENGLISH] == "4th emergency visit in 12 months (threshold: 4)"


@pytest.mark.parametrize(
    ("n", "french", "english"),
    [
        (0, "En retard de 0 jour", "0 days late"),
        (1, "En retard de 1 jour", "1 day late"),
        (2, "En retard de 2 jours", "2 days late"),
    ],
)
def test_french_counts_nothing_and_one_as_singular(n: int, french: str, english: str) -> None:
    assert FRENCH.say("due.late", n=n) == french
    assert ENGLISH.say("due.late", n=n) == english


def test_dates_and_times_are_written_as_each_language_writes_them() -> None:
    at = datetime(2026, 11, 24, 19, 32, tzinfo=UTC)
    assert FRENCH.moment(at) == "24 novembre 2026, 14 h 32"
    assert ENGLISH.moment(at) == "November 24, 2026, 2:32 p.m."
    assert FRENCH.day(date(2026, 12, 1)) == "1er décembre 2026"
    assert ENGLISH.day(date(2026, 12, 1)) == "December 1, 2026"
    assert FRENCH.clock(datetime(2026, 7, 1, 13, 5, tzinfo=UTC)) == "9 h 05"


def test_a_day_is_that_of_the_zone() -> None:
    assert FRENCH.day(datetime(2026, 11, 25, 3, 0, tzinfo=UTC)) == "24 novembre 2026"


def test_numbers_and_shares() -> None:
    assert (FRENCH.number(5.6), ENGLISH.number(5.6)) == ("5,6", "5.6")
    assert (FRENCH.percent(0.12), ENGLISH.percent(0.12)) == ("12\N{NO-BREAK SPACE}%", "12%")
    assert FRENCH.say("list.now", n=1200) == "1\N{NO-BREAK SPACE}200 maintenant"


@pytest.mark.parametrize(
    ("span", "french", "english"),
    [
        (timedelta(minutes=30), "30 min", "30 min"),
        (timedelta(hours=6, minutes=8), "6 h 08", "6 h 08 min"),
        (timedelta(days=8), "8 jours", "8 days"),
    ],
)
def test_lengths(span: timedelta, french: str, english: str) -> None:
    assert (FRENCH.length(span), ENGLISH.length(span)) == (french, english)


def test_a_sentence_that_ends_in_pm_has_one_full_stop() -> None:
    at = datetime(2026, 11, 24, 19, 32, tzinfo=UTC)
    said = ENGLISH.say("banner.silent", h="H", t=ENGLISH.moment(at))
    assert (
        said
        == "No data from H since November 24, 2026, 2:32 p.m. No notice does not mean no visit."
    )


def test_what_is_put_into_markup_is_escaped() -> None:
    assert "&lt;b&gt;" in FRENCH.mark("fresh.as_of", t="<b>")


@pytest.mark.parametrize(
    ("asked", "accept", "chosen"),
    [
        ((None, None), "", "fr"),
        ((None, None), "de, it;q=0.8", "fr"),
        ((None, None), "en-CA,en;q=0.9,fr;q=0.8", "en"),
        ((None, None), "en;q=0.2, fr-CA;q=0.9", "fr"),
        ((None, None), "en;q=x", "en"),
        ((None, "en"), "fr", "en"),
        (("fr", "en"), "en", "fr"),
        (("de", None), "en", "en"),
    ],
)
def test_the_language_is_the_one_asked_for_last(
    asked: tuple[str | None, ...], accept: str, chosen: str
) -> None:
    """NW-40: the switch, then the person's own setting, then the browser's, then French."""
    assert choose(*asked, accept=accept) is Language(chosen)
