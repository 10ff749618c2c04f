"""docs/fr/counting.md in the words of docs/counting.md, as far as a test reads them: its tables."""

import re
from typing import Final

HEADINGS: Final = {
    "e": "e",
    "établissement": "site",
    "arrivée": "arrived",
    "départ": "left",
    "classe": "class",
    "précisions": "said of it",
    "compte comme": "counts as",
    "pourquoi": "why",
    "instant": "at",
    "urgence": "ED",
    "épisodes": "stays",
    "établissements": "sites",
    "jours": "days",
    "avant": "before",
    "état": "state",
    "définition": "preset",
    "règle": "id",
    "situation": "situation",
    "par défaut": "by default",
    "code": "code",
    "paramètre": "parameter",
    "repéré si": "flagged when",
    "source": "source",
}
STATES: Final = {
    "sous le seuil": "below",
    "près du seuil": "watch",
    "repéré": "flagged",
    "repéré, maintenu": "flagged, held",
}
REMARKS: Final = {
    "hospitalisé": "admitted",
    "parti avant d'être vu": "lwbs",
    "parti contre avis médical": "left-against-advice",
    "réorienté": "redirected",
    "décédé": "died",
    "décédé à l'arrivée": "dead-on-arrival",
    "vers des soins non aigus": "nonacute-care",
    "annulé": "cancelled",
    "saisi par erreur": "entered-in-error",
    "en sortie temporaire": "onleave",
    "prévu": "planned",
    "sans triage": "untriaged",
    "transfert entrant": "transfer in",
    "transfert sortant": "transfer out",
    "vient de l'urgence": "from the ED",
    "début présumé": "start assumed",
    "heure ambiguë": "ambiguous",
    "reprise de données": "backfill",
    "exclu à la main": "excluded by hand",
    "statut prévu": "status planned",
    "service chirurgie d'un jour": "service day-surgery",
    "service dialyse": "service dialysis",
    "service don d'organes": "service organ-donation",
    "service obstétrique": "service obstetrics",
    "service soins palliatifs": "service palliative",
}
BEGINNINGS: Final = {
    "fait partie de ": "part of ",
    "envoyé ": "sent ",
    "reçu ": "recorded ",
}
"""Of a remark, before what is the same in both languages."""
LINES: Final = {
    "Politique : ": "Policy: ",
    "Personne : née le ": "Person: born ",
    "Personne : décédée le ": "Person: died ",
}


def english(line: str) -> str:
    """A line of the French page as the English one has it, as far as a test reads it."""
    for french, said in LINES.items():
        if line.startswith(french):
            return said + line.removeprefix(french)
    return line


def heading(cell: str) -> str:
    return HEADINGS[cell]


def cell(column: str, text: str) -> str:
    """What stands under an English heading."""
    match column:
        case "class":
            return text.replace(" dès ", " from ")
        case "state":
            return STATES[text]
        case "counts as":
            return re.sub(r"épisode (\d)", r"stay \1", re.sub(r"visite (\d)", r"ED visit \1", text))
        case "said of it":
            return ", ".join(map(_remark, filter(None, text.split(", "))))
        case _:
            return text


def _remark(text: str) -> str:
    for french, said in BEGINNINGS.items():
        if text.startswith(french):
            return said + text.removeprefix(french)
    return REMARKS.get(text, text)
