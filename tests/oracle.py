"""The counting chapter once more, obviously right and slow (ORC-01, ORC-02).

Standard library only; nothing of `services` or `schemas`. It takes plain dictionaries and a
policy as YAML or JSON gives it, and works by another method than the rules: it compares all
pairs until nothing changes, counts by filtering the whole list, and finds a state by testing
every instant that could matter. Nothing is kept from one question to the next but the answers
of one patient's Oracle to the same question.

`recall` answers what was known when; `Oracle` counts what is known; `notice` and `retracts`
say how a flag is announced.
"""

from datetime import UTC, date, datetime, timedelta
from functools import cached_property
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
    coded = bool(first["out"] or second["in"]) and link["coded_up_to_hours"] > 0
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
    allowed = policy["ed"]["reregistration_minutes"]
    return bool(allowed > 0 and minutes <= allowed)


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


def no_visit(p: Plain, everything: list[list[Plain]], policy: Plain) -> list[tuple[str, bool]]:
    """Each code that is true of an ED segment, and whether it keeps it from counting."""
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
    said = [
        ("MANUAL", fact["manual"], True),
        ("PLANNED", fact["planned"], not count["planned"]),
        ("LWBS", fact["disposition"] == "lwbs", not count["lwbs"]),
        ("CANCELLED", short, True),
        ("REDIRECTED", fact["disposition"] == "redirected", not count["redirected"]),
        ("DOA", fact["disposition"] == "dead-on-arrival", True),
        ("EXCLUDED_SITE", fact["site"] in policy["ed"]["excluded_sites"], True),
        ("PREGNANCY", coded(fact, policy["codes"]["pregnancy"]), not count["pregnancy"]),
        ("NEWBORN", fact["service"] == "newborn" or coded(fact, policy["codes"]["newborn"]), True),
        ("DONOR", fact["service"] == "organ-donation", True),
        ("DURING_STAY", from_ward(p, everything, policy), not count["during_stay"]),
    ]
    return [(code, excludes) for code, applies, excludes in said if applies]


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


def no_stay(p: Plain, policy: Plain) -> list[tuple[str, bool]]:
    """Each code that is true of a stay segment, and whether it keeps it from counting."""
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

    day_surgery = fact["service"] == "day-surgery" or set(shown) == {"SS"}
    said = [
        ("MANUAL", fact["manual"], True),
        ("DAY_SURGERY", day_surgery, not count["day_surgery"]),
        ("ELECTIVE", fact["planned"] and not p["both"], not count["elective"]),
        ("OBSTETRIC", is_a("obstetrics", "obstetric") or delivered, not count["obstetric"]),
        ("NEWBORN", is_a("newborn", "newborn"), True),
        ("SERIES", is_a("series", "series"), not count["series"]),
        ("DIALYSIS", is_a("dialysis", "dialysis"), not count["dialysis"]),
        ("MENTAL_HEALTH", is_a("mental-health", "mental_health"), not count["mental_health"]),
        ("PALLIATIVE", is_a("palliative", "palliative"), not count["palliative"]),
        ("DONOR", fact["service"] == "organ-donation", True),
        ("REVERTED", p["back"] and same_day, not count["reverted_same_day"]),
    ]
    return [(code, excludes) for code, applies, excludes in said if applies]


ROWS = {
    "MANUAL": "CT-17",
    "PLANNED": "CR-07",
    "LWBS": "CR-08",
    "CANCELLED": "CR-10",
    "REDIRECTED": "CR-11",
    "DOA": "CR-12",
    "EXCLUDED_SITE": "CR-13",
    "PREGNANCY": "CR-21",
    "NEWBORN": "CR-22",
    "DONOR": "CR-27",
    "DURING_STAY": "CR-49",
    "DAY_SURGERY": "CR-16",
    "ELECTIVE": "CR-19",
    "OBSTETRIC": "CR-20",
    "SERIES": "CR-23",
    "DIALYSIS": "CR-24",
    "MENTAL_HEALTH": "CR-25",
    "PALLIATIVE": "CR-26",
    "REVERTED": "CR-50",
    "NONACUTE": "CR-18",
    "OBSERVATION": "CR-15",
    "NOT_ED": "CR-14",
    "START_ASSUMED": "CR-30",
    "LATE": "CR-31",
    "AMBIGUOUS_TIME": "CR-42",
    "STALE_OPEN": "CR-29",
    "NOT_CLOSED": "CT-23",
    "NOT_ADMITTED": "CT-04",
    "NOT_COUNTED": "CT-04",
}
"""The row of section 7 in which a code stands."""
UNNAMED = {"PREGNANCY", "MENTAL_HEALTH", "EXCLUDED_SITE"}
"""The table says "yes" without a code: said only as the reason, where a policy says no."""


def said_of(p: Plain, everything: list[list[Plain]], policy: Plain) -> list[tuple[str, bool]]:
    return no_visit(p, everything, policy) if p["kind"] == "ed" else no_stay(p, policy)


def admitted(group: list[Plain], everything: list[list[Plain]], policy: Plain) -> str | None:
    """By which row an ED visit led to a stay, the first that followed: CR-01, CR-02 or CR-03."""
    stays = [g for g in everything if g[0]["kind"] == "hospital"]
    for stay in sorted(stays, key=lambda g: (anchor(g), g[0]["fact"]["encounter"])):
        pairs = [(v["fact"], s["fact"]) for v in group for s in stay]
        if any(a["encounter"] == b["encounter"] for a, b in pairs):
            return "CR-02"
        if any(a["part_of"] == b["encounter"] or b["part_of"] == a["encounter"] for a, b in pairs):
            return "CR-03"
        if follows(group, stay, policy):
            return "CR-03" if stay[0]["fact"]["from_emergency"] else "CR-01"
    return "CR-01" if any(p["fact"]["disposition"] == "admitted" for p in group) else None


def why_not(
    group: list[Plain], everything: list[list[Plain]], policy: Plain
) -> tuple[str, str] | None:
    """Row and code of the first member's reason, if every member has one (CT-25)."""
    if group[0]["kind"] == "ed" and not policy["ed"]["count"]["admitted"]:
        by_hand = all(p["fact"]["manual"] for p in group)
        if not by_hand and admitted(group, everything, policy):
            return ("CR-01", "ADMITTED")
    reasons = [
        next((code for code, excludes in said_of(p, everything, policy) if excludes), None)
        for p in group
    ]
    first = reasons[0]
    return (ROWS[first], first) if first is not None and None not in reasons else None


def tied(a: Plain, b: Plain, policy: Plain) -> tuple[str, str, timedelta | None] | None:
    """Row, code and gap of the link between two parts; an overlap has no gap."""
    if not one(a, b, policy):
        return None
    first, second = sorted((a, b), key=age_of)
    lasted = second["start"][0] - first["end"][0]
    known = exact(first["end"]) and exact(second["start"]) and not first["open"]
    gap = lasted if known and lasted >= timedelta(0) else None
    ids = (first["fact"]["encounter"], second["fact"]["encounter"])
    if first["fact"]["part_of"] == ids[1] or second["fact"]["part_of"] == ids[0]:
        return ("CR-03", "LINKED", gap)
    if first["kind"] == "hospital":
        return ("CR-17", "LINKED", gap)
    if first["fact"]["site"] != second["fact"]["site"]:
        return ("CR-04", "LINKED", gap)
    return ("CR-05", "REREGISTERED", gap)


def waiting(group: list[Plain], at: datetime, policy: Plain) -> str | None:
    """What is said of a group that nobody closed (CT-23, CR-29)."""
    still = [p for p in group if p["open"]]
    stale = timedelta(days=policy[group[0]["kind"]]["stale_open_days"])
    if any(at >= p["start"][0] + stale for p in still):
        return "STALE_OPEN"
    if any(at >= p["end"][1] for p in still):
        return "NOT_CLOSED"
    return "OPEN" if still else None


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


def loose_row(code: str) -> str | None:
    """The row of what no group holds: planned is CT-16's, not CR-07's."""
    return "CT-16" if code == "PLANNED" else ROWS.get(code)


def loose(fact: Plain, policy: Plain) -> list[tuple[str, str]]:
    """Kind and code of what no visit and no episode holds."""
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
        self.zone = ZoneInfo(policy["timezone"])
        self.groups = groups(facts, policy)
        self.reasons = [why_not(g, self.groups, policy) for g in self.groups]
        self.counted = [
            g for g, reason in zip(self.groups, self.reasons, strict=True) if reason is None
        ]
        self._said: dict[tuple[str, datetime], Any] = {}

    # What there is to count (CT-31)

    def within(self, kind: str, days: int, at: datetime) -> list[list[Plain]]:
        """The counted groups whose anchor is in the window that ends at `at` (CT-30)."""
        year = timedelta(days=days)
        return [g for g in self.counted if g[0]["kind"] == kind and at - year < anchor(g) <= at]

    def count(self, kind: str, days: int, at: datetime) -> int:
        return len(self.within(kind, days, at))

    def measure(self, name: str, days: int, at: datetime) -> int:
        if name == "ed_visits":
            return self.count("ed", days, at)
        if name == "hospital_episodes":
            return self.count("hospital", days, at)
        if name == "ed_sites":
            return len({p["fact"]["site"] for g in self.within("ed", days, at) for p in g})
        return sum(self.midnights(g, at) for g in self.within("hospital", days, at))

    def midnights(self, group: list[Plain], at: datetime) -> int:
        """Local midnights inside an episode up to `at`; at least one."""
        end = last_end(group)
        until = at if end is None or at < end else end
        return max(1, (self.local(until) - self.local(anchor(group))).days)

    def local(self, instant: datetime) -> date:
        return instant.astimezone(self.zone).date()

    # Who can be flagged (CR-28, CR-47)

    @cached_property
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
        return datetime(day.year, day.month, day.day, tzinfo=self.zone).astimezone(UTC)

    def of_age(self, at: datetime) -> bool:
        low, high = self.policy["person"]["age_min"], self.policy["person"]["age_max"]
        if self.person["birth_date"] is None:
            return True
        if low is not None and at < self.birthday(low):
            return False
        return high is None or at < self.birthday(high + 1)

    def can_be(self, at: datetime) -> bool:
        return not (self.dead_from and at >= self.dead_from) and self.of_age(at)

    # Whether the clauses are true, and when that may change

    def conditions(self) -> list[tuple[str, str, list[Plain]]]:
        return [
            (name, mode, clauses)
            for name in ("flag", "watch")
            for mode, clauses in (self.policy[name] or {}).items()
        ]

    def length(self, clause: Plain) -> int:
        days: int = clause.get("days") or self.policy["window"]["days"]
        return days

    def true(self, condition: str, at: datetime) -> bool:
        if (condition, at) not in self._said:
            self._said[condition, at] = self.can_be(at) and self.holds(condition, at)
        return bool(self._said[condition, at])

    def holds(self, condition: str, at: datetime) -> bool:
        """In each of `consecutive` adjoining windows (CT-31)."""
        said = [(mode, clauses) for name, mode, clauses in self.conditions() if name == condition]
        for mode, clauses in said:
            for n in range(self.policy["window"]["consecutive"]):
                answers = [
                    self.measure(
                        c["measure"], self.length(c), at - n * timedelta(days=self.length(c))
                    )
                    >= c["at_least"]
                    for c in clauses
                ]
                if not (any(answers) if mode == "any" else all(answers)):
                    return False
        return bool(said)

    @cached_property
    def fixed(self) -> list[datetime]:
        """Every instant at which something could change; hold ends and days in bed aside."""
        windows = range(self.policy["window"]["consecutive"] + 1)
        lengths = {self.policy["window"]["days"]}
        lengths |= {self.length(c) for _, _, clauses in self.conditions() for c in clauses}
        steps = {timedelta(days=d * n) for d in lengths for n in windows}
        found = {anchor(g) + step for g in self.counted for step in steps}
        if self.counts_days:
            found |= {m + step for g in self.counted for m in self.nights(g) for step in steps}
        if self.person["birth_date"]:
            low, high = self.policy["person"]["age_min"], self.policy["person"]["age_max"]
            found |= {self.birthday(low)} if low is not None else set()
            found |= {self.birthday(high + 1)} if high is not None else set()
        return sorted(found | ({self.dead_from} if self.dead_from else set()))

    @cached_property
    def counts_days(self) -> bool:
        return any(
            c["measure"] == "hospital_days" for _, _, clauses in self.conditions() for c in clauses
        )

    def nights(self, group: list[Plain]) -> list[datetime]:
        """Its local midnights, for as long as any window can see it begin."""
        if group[0]["kind"] != "hospital":
            return []
        seen = anchor(group) + timedelta(days=self.longest)
        end = min(last_end(group) or seen, seen)
        day = self.local(anchor(group))
        found: list[datetime] = []
        while True:
            day += timedelta(days=1)
            midnight = datetime(day.year, day.month, day.day, tzinfo=self.zone).astimezone(UTC)
            if midnight > end:
                return found
            found.append(midnight)

    # States (section 5)

    @cached_property
    def flags(self) -> list[tuple[datetime, datetime | None]]:
        """From when to when it is flagged: jump from each entry to its end."""
        found: list[tuple[datetime, datetime | None]] = []
        after: datetime | None = None
        while True:
            entries = [
                t for t in self.fixed if (after is None or t >= after) and self.true("flag", t)
            ]
            if not entries:
                return found
            since = entries[0]
            hold = since + timedelta(days=self.policy["hold_days"])
            ends = [t for t in {*self.fixed, hold} if t >= hold and not self.true("flag", t)]
            ends += [t for t in self.fixed if t > since and not self.can_be(t)]
            after = min(ends) if ends else None
            found.append((since, after))
            if after is None:
                return found

    @cached_property
    def instants(self) -> list[datetime]:
        return sorted({*self.fixed, *(until for _, until in self.flags if until)})

    def flagged(self, at: datetime) -> datetime | None:
        """Since when it is flagged at `at`, if it is."""
        found = [s for s, until in self.flags if s <= at and (until is None or at < until)]
        return found[0] if found else None

    def state_name(self, at: datetime) -> str:
        if self.flagged(at):
            return "flagged"
        return "watch" if self.true("watch", at) else "below"

    def state(self, at: datetime) -> tuple[str, bool, datetime | None]:
        """State, held, since."""
        name = self.state_name(at)
        if name == "flagged":
            return name, not self.true("flag", at), self.flagged(at)
        if name == "below":
            return name, False, None
        since = at
        for t in reversed(self.instants):
            if t <= at:
                if self.state_name(t) != "watch":
                    break
                since = t
        return name, False, since

    def seen(self, at: datetime) -> tuple[Any, ...]:
        days = self.policy["window"]["days"]
        state, held, _ = self.state(at)
        return (self.count("ed", days, at), self.count("hospital", days, at), state, held)

    def counts(self, at: datetime) -> tuple[tuple[int, ...], ...]:
        """One per clause, those of `flag` first; for each window, the newest first."""
        return tuple(
            tuple(
                self.measure(c["measure"], self.length(c), at - n * timedelta(days=self.length(c)))
                for _, _, clauses in self.conditions()
                for c in clauses
            )
            for n in range(self.policy["window"]["consecutive"])
        )

    @cached_property
    def longest(self) -> int:
        """Days of the longest window."""
        days: int = self.policy["window"]["days"]
        return max(
            [days, *(self.length(c) for _, _, clauses in self.conditions() for c in clauses)]
        )

    @cached_property
    def lookback(self) -> timedelta:
        """How far an explanation reaches: all windows of the longest clause."""
        return timedelta(days=self.longest * self.policy["window"]["consecutive"])

    def next_change(self, at: datetime) -> tuple[Any, ...] | None:
        now = (self.seen(at), self.counts(at))
        for t in self.instants:
            if t > at and (self.seen(t), self.counts(t)) != now:
                return (t, *self.seen(t))
        return None

    # Explanations (section 8)

    def items(self, at: datetime) -> dict[tuple[str, tuple[str, ...]], Plain]:
        """Everything in the window (CT-60), by kind and encounters. What no group holds has no
        notes of its own: None.
        """
        found = {
            (g[0]["kind"], names(g)): {
                "reason": reason,
                "anchor": anchor(g),
                "end": last_end(g),
                "exact": exact(g[0]["start"]),
                "sites": sorted({p["fact"]["site"] for p in g}),
                "notes": self.notes(g, reason, at),
            }
            for g, reason in zip(self.groups, self.reasons, strict=True)
            if at - self.lookback < anchor(g) <= at
        }
        return found | {
            (kind, (f["encounter"],)): {
                "reason": (loose_row(code), code),
                "anchor": f["start"][0],
                "end": None,
                "exact": exact(f["start"]),
                "sites": [f["site"]],
                "notes": None,
            }
            for f in self.facts
            for kind, code in loose(f, self.policy)
            if at - self.lookback < f["start"][0] <= at
        }

    def notes(
        self, group: list[Plain], reason: tuple[str, str] | None, at: datetime
    ) -> frozenset[tuple[str | None, str]]:
        """Row and code of all that is said of a group beside its reason."""
        found: set[tuple[str | None, str]] = set()
        for p in group:
            fact = p["fact"]
            codes = [
                code for code, _ in said_of(p, self.groups, self.policy) if code not in UNNAMED
            ]
            learnt = fact["first_recorded"] - fact["start"][1]
            if fact["backfill"] or learnt > timedelta(hours=self.policy["alert_max_age_hours"]):
                codes.append("LATE")
            codes += ["START_ASSUMED"] if fact["start_is_assumed"] else []
            codes += ["AMBIGUOUS_TIME"] if fact["time_is_ambiguous"] else []
            passed = {c for c, _ in fact["classes"]} & set(self.policy["classes"]["not_counted"])
            if "OBSENC" in passed and (p["kind"] == "ed" or not p["both"]):
                codes.append("OBSERVATION")
            if "NONAC" in passed and (p["kind"] == "hospital" or not p["both"]):
                codes.append("NONACUTE")
            found |= {(ROWS.get(code), code) for code in codes}
        if code := waiting(group, at, self.policy):
            found.add((ROWS.get(code), code))
        for a, b in combinations(group, 2):
            if tie := tied(a, b, self.policy):
                found.add(tie[:2])
        if group[0]["kind"] == "ed" and (row := admitted(group, self.groups, self.policy)):
            found.add((row, "ADMITTED"))
        return frozenset((row, code) for row, code in found if not reason or code != reason[1])

    def gaps(self, at: datetime) -> dict[tuple[str, tuple[str, ...]], timedelta | None]:
        """Of each pair that is one visit or episode: what lay between."""
        return {
            (g[0]["kind"], names(g)): tie[2]
            for g in self.groups
            if len(g) == 2 and anchor(g) <= at and (tie := tied(g[0], g[1], self.policy))
        }

    def pathway(self, at: datetime) -> str | None:
        """CR-26: palliative care in a hospital, counted or not, unless it was cancelled."""
        shown = [
            p["fact"]
            for g in self.groups
            if g[0]["kind"] == "hospital" and at - self.lookback < anchor(g) <= at
            for p in g
        ]
        shown += [
            f
            for f in self.facts
            for kind, code in loose(f, self.policy)
            if kind == "hospital" and code != "CANCELLED"
            if at - self.lookback < f["start"][0] <= at
        ]
        prefixes = self.policy["codes"]["palliative"]
        found = [f for f in shown if f["service"] == "palliative" or coded(f, prefixes)]
        return "palliative" if found else None

    def answer(self, at: datetime) -> Plain:
        ed, hospital, state, held = self.seen(at)
        return {
            "ed_visits": ed,
            "hospital_episodes": hospital,
            "counts": self.counts(at),
            "state": state,
            "held": held,
            "since": self.state(at)[2],
            "next": self.next_change(at),
            "items": self.items(at),
            "gaps": self.gaps(at),
            "pathway": self.pathway(at),
            "entered_in_error": sum(f["status"] == "entered-in-error" for f in self.facts),
        }


def anchor(group: list[Plain]) -> datetime:
    start: datetime = group[0]["start"][0]
    return start


def last_end(group: list[Plain]) -> datetime | None:
    """The latest end; None while a part has none."""
    if any(p["open"] for p in group):
        return None
    end: datetime = max((p["end"][1], p["end"][0]) for p in group)[1]
    return end


def names(group: list[Plain]) -> tuple[str, ...]:
    return tuple(sorted(p["fact"]["encounter"] for p in group))


# What was known when (CT-01, CT-02, CT-15, CT-17, CT-70)


def newest(versions: list[Plain], name: str, at: datetime) -> list[Plain]:
    """Of each thing its highest version among those recorded by `at`."""
    known = [v for v in versions if v["recorded"] <= at]
    best: dict[Any, Plain] = {}
    for version in sorted(known, key=lambda v: v["version"], reverse=True):
        best.setdefault(version[name], version)
    return list(best.values())


def survivor(key: Any, links: list[Plain]) -> Any:
    """Follow the links in force to their end."""
    into = {k["retired"]: k["surviving"] for k in links if k["active"]}
    while key in into:
        key = into[key]
    return key


def recall(history: Plain, patient: Any, at: datetime) -> tuple[list[Plain], Plain] | None:
    """The facts and the person behind `patient`, as a system knows them that was fed only
    what was recorded by `at`. None: the key is unknown then, or retired.

    `history` lists every version of `facts`, `persons`, `links` and `exclusions`; the last have
    `encounter`, `version`, `excluded`, `recorded`.
    """
    links = newest(history["links"], "retired", at)
    people = newest(history["persons"], "key", at)
    mine = [p for p in people if survivor(p["key"], links) == patient]
    if not mine or survivor(patient, links) != patient:
        return None
    excluded = {
        x["encounter"] for x in newest(history["exclusions"], "encounter", at) if x["excluded"]
    }
    first: dict[Any, datetime] = {}
    for f in sorted(history["facts"], key=lambda f: f["recorded"]):
        first.setdefault(f["encounter"], f["recorded"])
    facts = [
        f | {"first_recorded": first[f["encounter"]], "manual": f["encounter"] in excluded}
        for f in newest(history["facts"], "encounter", at)
        if f["patient"] in {p["key"] for p in mine}
    ]
    own = [p["birth_date"] for p in mine if p["key"] == patient and p["birth_date"]]
    births = own or [p["birth_date"] for p in mine if p["birth_date"]]
    deaths = [p["death"] for p in mine if p["death"]]
    return facts, {
        "birth_date": min(births) if births else None,
        "death": min(deaths) if deaths else None,
    }


def ask(history: Plain, patient: Any, policy: Plain, known_at: datetime) -> Oracle | None:
    known = recall(history, patient, known_at)
    return Oracle(*known, policy) if known else None


# How a flag is announced (CT-42, CT-44)


def learnt(history: Plain) -> list[datetime]:
    """Every instant at which anything became known."""
    return sorted({v["recorded"] for versions in history.values() for v in versions})


def notice(history: Plain, patient: Any, policy: Plain, known_at: datetime) -> str | None:
    """`alert` or `quiet` for the flag that stands at `known_at`; None if none does.

    The fact that completed the entry is the one since which, without a break, the flag is
    known to begin where it begins.
    """
    present = ask(history, patient, policy, known_at)
    since = present.flagged(known_at) if present else None
    if present is None or since is None:
        return None
    completed = known_at
    for instant in reversed([t for t in learnt(history) if t <= known_at]):
        then = ask(history, patient, policy, instant)
        if then is None or since not in [begun for begun, _ in then.flags]:
            break
        completed = instant
    if met_before(present, since, timedelta(days=policy["quiet_reentry_days"])):
        return "quiet"
    merges = [k for k in history["links"] if k["recorded"] == completed and k["active"]]
    if merges:
        return "quiet" if any(was_flagged(history, m, policy) for m in merges) else "alert"
    facts = [f for f in history["facts"] if f["recorded"] == completed]
    if any(f["backfill"] for f in facts):
        return "quiet"
    late = completed - since > timedelta(hours=policy["alert_max_age_hours"])
    return "quiet" if late else "alert"


def met_before(present: Oracle, since: datetime, within: timedelta) -> bool:
    """Whether `met` was true at an instant of the time `within` before `since`."""
    looked_at = [since - within, *(t for t in present.fixed if since - within < t)]
    return any(present.true("flag", t) for t in looked_at if t < since)


def was_flagged(history: Plain, merge: Plain, policy: Plain) -> bool:
    """Whether one of the two keys was flagged when they were merged."""
    before = merge["recorded"] - timedelta(microseconds=1)
    links = newest(history["links"], "retired", before)
    keys = {survivor(merge["retired"], links), survivor(merge["surviving"], links)}
    oracles = [ask(history, key, policy, before) for key in keys]
    return any(o is not None and o.flagged(merge["recorded"]) is not None for o in oracles)


def retracts(announced: datetime, present: Oracle, at: datetime) -> bool:
    """Whether a flag announced as beginning at `announced` was never true on present facts,
    and has ended.
    """
    if present.flagged(at) is not None:
        return False
    return not any(
        since <= at and (until is None or until > announced) for since, until in present.flags
    )
