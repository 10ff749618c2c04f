"""The counting chapter once more, obviously right and slow (ORC-01, ORC-02).

Standard library only; nothing of `services` or `schemas`. It takes plain dictionaries and a
policy as YAML or JSON gives it, and works by another method than the rules: it compares all
pairs until nothing changes, counts by filtering the whole list, and finds a state by testing
every instant that could matter. Nothing is stored.
"""

from datetime import UTC, date, datetime, timedelta
from itertools import combinations
from typing import Any
from zoneinfo import ZoneInfo

Plain = dict[str, Any]
Span = tuple[datetime, datetime]

ICD = ("icd-10", "2.16.840.1.113883.6.3", "2.16.840.1.113883.6.90")


# What one encounter is


def kinds(fact: Plain, policy: Plain) -> list[str]:
    """Which of `ed` and `hospital` its class history ever shows."""
    return [
        kind
        for kind in ("ed", "hospital")
        if any(code in policy["classes"][kind] for code, _ in fact["classes"])
    ]


def clip(since: datetime, fact: Plain) -> Span:
    start: Span = fact["start"]
    end = closing(fact)
    if since <= start[0]:
        return start
    if end and since > end[1]:
        return end
    return (since, since)


def closing(fact: Plain) -> Span | None:
    start: Span = fact["start"]
    end: Span | None = fact["end"]
    return start if end and end[1] < start[0] else end


def part(fact: Plain, kind: str, policy: Plain) -> Plain | None:
    """The ED visit or the stay in an encounter (CT-16, CT-20, CT-23)."""
    if not fact["start"] or fact["status"] in ("cancelled", "entered-in-error"):
        return None
    if kind not in kinds(fact, policy):
        return None
    if fact["status"] == "planned":
        on_time = fact["event_time"] >= fact["start"][0] - timedelta(minutes=5)
        if kind != "ed" or not on_time:
            return None
    having = [i for i, (code, _) in enumerate(fact["classes"]) if code in policy["classes"][kind]]
    first, last = having[0], having[-1]
    start = fact["start"] if first == 0 else clip(fact["classes"][first][1], fact)
    reaches_end = last == len(fact["classes"]) - 1
    end = closing(fact) if reaches_end else clip(fact["classes"][last + 1][1], fact)
    assumed = (
        timedelta(hours=policy["ed"]["assumed_end_hours"])
        if kind == "ed"
        else timedelta(days=policy["hospital"]["assumed_end_days"])
    )
    return {
        "fact": fact,
        "kind": kind,
        "start": start,
        "open": end is None,
        "end": end or (start[0] + assumed, start[1] + assumed),
        "in": first == 0 and fact["transfer_in"],
        "out": reaches_end and (fact["transfer_out"] or fact["disposition"] == "transferred"),
        "both": fact["status"] != "planned" and len(kinds(fact, policy)) == 2,
        "back": kind == "hospital" and fact["classes"][-1][0] in policy["classes"]["ed"],
    }


# Grouping (CT-21 to CT-26)


def age_of(p: Plain) -> Any:
    return (p["start"][0], p["end"][0], p["fact"]["encounter"])


def exact(moment: Span) -> bool:
    return moment[0] == moment[1]


def noon(moment: Span, policy: Plain) -> date:
    middle = moment[0] + (moment[1] - moment[0]) / 2
    return middle.astimezone(ZoneInfo(policy["timezone"])).date()


def gap_rule(first: Plain, second: Plain, link: Plain, policy: Plain) -> bool:
    coded = bool(first["out"] or second["in"])
    if not (exact(first["end"]) and exact(second["start"])):
        return coded and (noon(second["start"], policy) - noon(first["end"], policy)).days < 2
    hours = (second["start"][0] - first["end"][0]) / timedelta(hours=1)
    if coded and hours <= link["coded_up_to_hours"]:
        return True
    return bool(link["below_hours"] > 0 and hours < link["below_hours"])


def one(a: Plain, b: Plain, policy: Plain) -> bool:
    """Whether two parts of one kind are linked."""
    first, second = sorted((a, b), key=age_of)
    if (
        first["fact"]["part_of"] == second["fact"]["encounter"]
        or second["fact"]["part_of"] == first["fact"]["encounter"]
    ):
        return True
    if first["kind"] == "hospital":
        return gap_rule(first, second, policy["hospital"]["link"], policy)
    if first["fact"]["site"] != second["fact"]["site"]:
        return gap_rule(first, second, policy["ed"]["link"], policy)
    if not (exact(first["end"]) and exact(second["start"])):
        return False
    minutes = (second["start"][0] - first["end"][0]) / timedelta(minutes=1)
    return bool(minutes <= policy["ed"]["reregistration_minutes"])


def groups(facts: list[Plain], policy: Plain) -> list[list[Plain]]:
    """Compare all pairs until nothing changes."""
    found = [[p] for f in facts for kind in ("ed", "hospital") if (p := part(f, kind, policy))]
    changed = True
    while changed:
        changed = False
        for a, b in combinations(found, 2):
            if a[0]["kind"] == b[0]["kind"] and any(one(x, y, policy) for x in a for y in b):
                found.remove(a)
                found.remove(b)
                found.append(a + b)
                changed = True
                break
    return [sorted(g, key=age_of) for g in found]


def follows(visit: list[Plain], stay: list[Plain], policy: Plain) -> bool:
    """Whether the hospital episode follows the ED visit (CT-26)."""
    for v in visit:
        for s in stay:
            a, b = v["fact"], s["fact"]
            if a["encounter"] == b["encounter"]:
                return True
            if a["part_of"] == b["encounter"] or b["part_of"] == a["encounter"]:
                return True
    last = max(visit, key=lambda p: (p["end"][1], p["end"][0], p["fact"]["encounter"]))
    if stay[0]["start"][0] < visit[0]["start"][0]:
        return False
    return gap_rule(last, stay[0], policy["hospital"]["link"], policy)


# Exclusions (section 7)


def coded(fact: Plain, prefixes: list[str]) -> bool:
    for system, code in fact["codes"] or []:
        if any(name in system.lower() for name in ICD):
            bare = code.replace(".", "").upper()
            if any(bare.startswith(p.replace(".", "").upper()) for p in prefixes):
                return True
    return False


def why_no_visit(p: Plain, everything: list[list[Plain]], policy: Plain) -> str | None:
    fact, count = p["fact"], policy["ed"]["count"]
    short = (
        fact["status"] == "finished"
        and not fact["triaged"]
        and fact["disposition"] != "lwbs"
        and fact["end"] is not None
        and exact(fact["end"])
        and exact(fact["start"])
        and (fact["end"][0] - fact["start"][0]) / timedelta(minutes=1)
        < policy["ed"]["min_minutes_if_untriaged"]
    )
    rules = [
        ("PLANNED", fact["planned"] and not count["planned"]),
        ("LWBS", fact["disposition"] == "lwbs" and not count["lwbs"]),
        ("CANCELLED", short),
        ("REDIRECTED", fact["disposition"] == "redirected" and not count["redirected"]),
        ("DOA", fact["disposition"] == "dead-on-arrival"),
        ("EXCLUDED_SITE", fact["site"] in policy["ed"]["excluded_sites"]),
        ("PREGNANCY", not count["pregnancy"] and coded(fact, policy["codes"]["pregnancy"])),
        ("NEWBORN", fact["service"] == "newborn" or coded(fact, policy["codes"]["newborn"])),
        ("DONOR", fact["service"] == "organ-donation"),
        ("DURING_STAY", not count["during_stay"] and from_ward(p, everything, policy)),
    ]
    return next((code for code, applies in rules if applies), None)


def from_ward(p: Plain, everything: list[list[Plain]], policy: Plain) -> bool:
    reach = timedelta(hours=policy["hospital"]["link"]["coded_up_to_hours"])
    at = p["start"][0]
    return any(
        (not s["open"] and s["start"][0] < at < s["end"][1])
        or (p["in"] and s["start"][0] < at <= s["end"][1] + reach)
        for g in everything
        for s in g
        if s["kind"] == "hospital" and s["fact"]["site"] != p["fact"]["site"]
    )


def why_no_stay(p: Plain, policy: Plain) -> str | None:
    fact, count, codes = p["fact"], policy["hospital"]["count"], policy["codes"]
    zone = ZoneInfo(policy["timezone"])
    same_day = p["start"][0].astimezone(zone).date() == p["end"][1].astimezone(zone).date()
    shown = [c for c, _ in fact["classes"] if c in policy["classes"]["hospital"]]
    delivered = any(
        "icd-10-ca" in system.lower()
        and code.upper().startswith("O")
        and code.replace(".", "")[5:6] in ("1", "2")
        for system, code in fact["codes"] or []
    )

    def is_a(service: str, name: str) -> bool:
        return bool(fact["service"] == service or coded(fact, codes[name]))

    rules = [
        (
            "DAY_SURGERY",
            not count["day_surgery"] and (fact["service"] == "day-surgery" or set(shown) == {"SS"}),
        ),
        ("ELECTIVE", not count["elective"] and fact["planned"] and not p["both"]),
        ("OBSTETRIC", not count["obstetric"] and (is_a("obstetrics", "obstetric") or delivered)),
        ("NEWBORN", is_a("newborn", "newborn")),
        ("SERIES", not count["series"] and is_a("series", "series")),
        ("DIALYSIS", not count["dialysis"] and is_a("dialysis", "dialysis")),
        ("MENTAL_HEALTH", not count["mental_health"] and is_a("mental-health", "mental_health")),
        ("PALLIATIVE", not count["palliative"] and is_a("palliative", "palliative")),
        ("DONOR", fact["service"] == "organ-donation"),
        ("REVERTED", not count["reverted_same_day"] and p["back"] and same_day),
    ]
    return next((code for code, applies in rules if applies), None)


def why_not(group: list[Plain], everything: list[list[Plain]], policy: Plain) -> str | None:
    """The reason of the first member, if every member has one (CT-25)."""
    if group[0]["kind"] == "ed":
        if not policy["ed"]["count"]["admitted"] and (
            any(p["fact"]["disposition"] == "admitted" for p in group)
            or any(g[0]["kind"] == "hospital" and follows(group, g, policy) for g in everything)
        ):
            return "ADMITTED"
        reasons = [why_no_visit(p, everything, policy) for p in group]
    else:
        reasons = [why_no_stay(p, policy) for p in group]
    return reasons[0] if None not in reasons else None


OTHER = {
    "NONAC": ("hospital", "NONACUTE"),
    "OBSENC": ("hospital", "OBSERVATION"),
    "SS": ("hospital", "DAY_SURGERY"),
    "AMB": ("ed", "NOT_ED"),
    "HH": ("ed", "NOT_ED"),
    "VR": ("ed", "NOT_ED"),
    "FLD": ("ed", "NOT_ED"),
    "PRENC": ("hospital", "NOT_ADMITTED"),
    "EMER": ("ed", "NOT_ED"),
    "IMP": ("hospital", "NOT_COUNTED"),
    "ACUTE": ("hospital", "NOT_COUNTED"),
}


def loose(fact: Plain, policy: Plain) -> list[tuple[str, str]]:
    """Kind and reason of what no visit and no episode holds."""
    if fact["status"] == "entered-in-error" or not fact["start"] or not fact["classes"]:
        return []
    has = kinds(fact, policy)
    if not has:
        kind, reason = OTHER[fact["classes"][-1][0]]
        return [(kind, "CANCELLED" if fact["status"] == "cancelled" else reason)]
    reason = "CANCELLED" if fact["status"] == "cancelled" else "PLANNED"
    return [(kind, reason) for kind in has if part(fact, kind, policy) is None]


# Counting and states (sections 4 and 5)


class Oracle:
    """One patient under one policy. `person` has `birth_date` and `death`, or None."""

    def __init__(self, facts: list[Plain], person: Plain, policy: Plain) -> None:
        self.facts, self.person, self.policy = facts, person, policy
        self.groups = groups(facts, policy)
        self.reasons = [why_not(g, self.groups, policy) for g in self.groups]
        self.counted = [
            (g[0]["kind"], g[0]["start"][0])
            for g, reason in zip(self.groups, self.reasons, strict=True)
            if reason is None
        ]

    def count(self, kind: str, days: int, at: datetime) -> int:
        year = timedelta(days=days)
        return len([a for k, a in self.counted if k == kind and at - year < a <= at])

    def dead_from(self) -> datetime | None:
        ends = [self.person["death"]] if self.person["death"] else []
        for f in self.facts:
            if f["status"] in ("cancelled", "entered-in-error"):
                continue
            if f["disposition"] == "died":
                when = f["end"] or f["start"]
                ends.append(when[1] if when else f["event_time"])
            if f["disposition"] == "dead-on-arrival" and f["start"]:
                ends.append(f["start"][0])
        return min(ends) if ends else None

    def birthday(self, age: int) -> datetime:
        born = self.person["birth_date"]
        try:
            day = date(born.year + age, born.month, born.day)
        except ValueError:
            day = date(born.year + age, 3, 1)
        zone = ZoneInfo(self.policy["timezone"])
        return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)

    def can_be(self, at: datetime) -> bool:
        dead = self.dead_from()
        if dead and at >= dead:
            return False
        low, high = self.policy["person"]["age_min"], self.policy["person"]["age_max"]
        if self.person["birth_date"] is None:
            return True
        if low is not None and at < self.birthday(low):
            return False
        return high is None or at < self.birthday(high + 1)

    def true(self, condition: str, at: datetime) -> bool:
        if not self.can_be(at) or not self.policy[condition]:
            return False
        ((mode, clauses),) = self.policy[condition].items()
        answers = [
            self.count(
                "ed" if c["measure"] == "ed_visits" else "hospital",
                c.get("days") or self.policy["window"]["days"],
                at,
            )
            >= c["at_least"]
            for c in clauses
        ]
        return any(answers) if mode == "any" else all(answers)

    def instants(self) -> list[datetime]:
        """Every instant at which something could change, hold ends aside."""
        lengths = {self.policy["window"]["days"]}
        for condition in ("flag", "watch"):
            for clauses in (self.policy[condition] or {}).values():
                lengths |= {c["days"] for c in clauses if c.get("days")}
        found = {a for _, a in self.counted}
        found |= {a + timedelta(days=d) for _, a in self.counted for d in lengths}
        if self.person["birth_date"]:
            low, high = self.policy["person"]["age_min"], self.policy["person"]["age_max"]
            found |= {self.birthday(low)} if low is not None else set()
            found |= {self.birthday(high + 1)} if high is not None else set()
        dead = self.dead_from()
        return sorted(found | ({dead} if dead else set()))

    def flags(self) -> list[tuple[datetime, datetime | None]]:
        """From when to when it is flagged: jump from each entry to its end."""
        found: list[tuple[datetime, datetime | None]] = []
        instants = self.instants()
        after: datetime | None = None
        while True:
            entries = [
                t for t in instants if (after is None or t >= after) and self.true("flag", t)
            ]
            if not entries:
                return found
            since = entries[0]
            hold = since + timedelta(days=self.policy["hold_days"])
            ends = [t for t in {*instants, hold} if t >= hold and not self.true("flag", t)]
            ends += [t for t in instants if t > since and not self.can_be(t)]
            after = min(ends) if ends else None
            found.append((since, after))
            if after is None:
                return found

    def state(self, at: datetime) -> tuple[str, bool, datetime | None]:
        for since, until in self.flags():
            if since <= at and (until is None or at < until):
                return "flagged", not self.true("flag", at), since
        if not self.true("watch", at):
            return "below", False, None
        since = at
        ends = [until for _, until in self.flags() if until]
        for t in sorted({*self.instants(), *ends}, reverse=True):
            if t <= at:
                if self.state_name(t) != "watch":
                    break
                since = t
        return "watch", False, since

    def state_name(self, at: datetime) -> str:
        for since, until in self.flags():
            if since <= at and (until is None or at < until):
                return "flagged"
        return "watch" if self.true("watch", at) else "below"

    def seen(self, at: datetime) -> tuple[Any, ...]:
        days = self.policy["window"]["days"]
        state, held, _ = self.state(at)
        return (self.count("ed", days, at), self.count("hospital", days, at), state, held)

    def clauses(self, at: datetime) -> list[int]:
        return [
            self.count(
                "ed" if c["measure"] == "ed_visits" else "hospital",
                c.get("days") or self.policy["window"]["days"],
                at,
            )
            for name in ("flag", "watch")
            for listed in (self.policy[name] or {}).values()
            for c in listed
        ]

    def next_change(self, at: datetime) -> tuple[Any, ...] | None:
        ends = [until for _, until in self.flags() if until]
        now = (self.seen(at), self.clauses(at))
        for t in sorted({*self.instants(), *ends}):
            if t > at and (self.seen(t), self.clauses(t)) != now:
                return (t, *self.seen(t))
        return None

    def items(self, at: datetime) -> set[tuple[str, tuple[str, ...], bool, str | None]]:
        """Kind, encounters, counted, reason of everything in the window (CT-60)."""
        year = timedelta(days=self.policy["window"]["days"])
        found = {
            (
                g[0]["kind"],
                tuple(sorted(p["fact"]["encounter"] for p in g)),
                reason is None,
                reason,
            )
            for g, reason in zip(self.groups, self.reasons, strict=True)
            if at - year < g[0]["start"][0] <= at
        }
        return found | {
            (kind, (f["encounter"],), False, reason)
            for f in self.facts
            for kind, reason in loose(f, self.policy)
            if at - year < f["start"][0] <= at
        }

    def answer(self, at: datetime) -> Plain:
        ed, hospital, state, held = self.seen(at)
        return {
            "ed_visits": ed,
            "hospital_episodes": hospital,
            "state": state,
            "held": held,
            "since": self.state(at)[2],
            "next": self.next_change(at),
            "items": self.items(at),
        }
