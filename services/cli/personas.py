"""What people see of the loopback authority: the personas, one click each, in two languages."""

from collections.abc import Mapping, Sequence

from jinja2 import DictLoader, Environment

from services.plumbing.region import Person, Region

Words = Sequence[tuple[str, str]]
"""Language and sentence, for each language."""

NOT_FROM_HERE: Words = (
    ("fr", "Cette demande ne vient pas de cette page."),
    ("en", "This request does not come from this page."),
)
SIGNED_OUT: Words = (
    ("fr", "La session est terminée."),
    ("en", "You are signed out."),
)
UNKNOWN_PARTY: Words = (
    ("fr", "Le service qui demande la connexion, ou son adresse de retour, est inconnu."),
    ("en", "The service that asks for the sign-in, or its address, is unknown."),
)
UNREADABLE: Words = (
    ("fr", "Cette demande n'est pas lisible."),
    ("en", "This request cannot be read."),
)

ROLES: Mapping[str, tuple[str, str]] = {
    "clinic_cm": (
        "Infirmière ou infirmier gestionnaire de cas (clinique)",
        "Clinic case manager (nurse)",
    ),
    "hosp_cm": ("Gestionnaire de cas (centre hospitalier)", "Hospital case manager"),
    "physician": ("Médecin", "Physician"),
    "lead_md": ("Médecin responsable", "Lead physician"),
    "clinic_manager": ("Gestionnaire de la clinique", "Clinic manager"),
    "coordinator": (
        "Coordonnatrice ou coordonnateur clinico-administratif",
        "Clinical administrative coordinator",
    ),
    "manager": ("Gestionnaire du programme", "Programme manager"),
    "ops": ("Exploitation", "Operations"),
    "privacy": ("Responsable de la protection des renseignements", "Privacy officer"),
}
"""Of nurse-web.md, appendix: French, English."""


def _where(region: Region, person: Person) -> tuple[str, str]:
    """Clinic or site of a person, in French and English."""
    clinic = region.clinic(person.clinic) if person.clinic else None
    place = clinic or (region.site(person.site) if person.site else None)
    if place is None:
        return ("", "")
    either = next(iter(place.name.values()), place.id)
    return (place.name.get("fr", either), place.name.get("en", either))


_TEMPLATES = Environment(
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    loader=DictLoader(
        {
            "frame": """<!doctype html>
<html lang="fr">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Passerelle : connexion de démonstration / demonstration sign-in</title>
<style nonce="{{ nonce }}">
body { font: 1.1rem/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 46rem; padding: 1rem;
  color: #1a1a1a; background: #fff }
.warning { border: 3px solid #8a4b00; background: #fff6e5; padding: .25rem 1rem; margin: 1rem 0 }
ul { list-style: none; padding: 0 }
button { display: block; width: 100%; margin: 0 0 .75rem; padding: .75rem 1rem; font: inherit;
  text-align: left; border: 2px solid #1f4e79; background: #fff; color: inherit; cursor: pointer }
button:hover { background: #e8f1f9 }
button:focus-visible { outline: 4px solid #8a4b00; outline-offset: 2px }
strong, .line { display: block }
</style>
</head>
<body>
<main>
{% block content %}{% endblock %}
</main>
</body>
</html>
""",
            "personas": """{% extends "frame" %}
{% block content %}
<h1>Connexion de démonstration <span lang="en">/ Demonstration sign-in</span></h1>
<div class="warning">
<p>Démonstration : ces personnes n'existent pas et aucun mot de passe n'est demandé.</p>
<p lang="en">Demonstration: these people do not exist, and no password is asked for.</p>
</div>
<form method="post" action="/authorize">
{% for name, value in kept.items() %}
<input type="hidden" name="{{ name }}" value="{{ value }}">
{% endfor %}
<ul>
{% for person, place in people %}
<li><button name="persona" value="{{ person.id }}">
<strong>{{ person.id }} · {{ person.name }}</strong>
{% for role in person.roles %}
<span class="line">{{ roles[role][0] }} / <span lang="en">{{ roles[role][1] }}</span></span>
{% endfor %}
{% if place[0] %}
<span>{{ place[0] }}</span>{% if place[1] != place[0] %} / <span lang="en">{{ place[1] }}</span>
{% endif %}
{% endif %}
</button></li>
{% endfor %}
</ul>
</form>
{% endblock %}
""",
            "words": """{% extends "frame" %}
{% block content %}
<h1>Passerelle</h1>
{% for language, sentence in words %}
<p lang="{{ language }}">{{ sentence }}</p>
{% endfor %}
{% endblock %}
""",
        }
    ),
)


def personas(region: Region, kept: Mapping[str, str], nonce: str) -> str:
    """The page of personas; `kept` is the authorization request, which the form carries on."""
    people = [(person, _where(region, person)) for person in region.people if person.roles]
    page = _TEMPLATES.get_template("personas")
    return page.render(kept=kept, people=people, roles=ROLES, nonce=nonce)


def plain(words: Words, nonce: str) -> str:
    """A page that says one thing, in each language."""
    return _TEMPLATES.get_template("words").render(words=words, nonce=nonce)
