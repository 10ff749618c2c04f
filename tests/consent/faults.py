# ruff: noqa: E501 - source texts stand as they are, in one piece
"""Deliberate faults of the consent engine, each to be caught by table or properties.

A fault is a change of the source text: what it says now, and what it would say. `proof.py`
plants them one by one into a copy.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Fault:
    name: str
    rule: str
    """The CS id it breaks."""
    old: str
    new: str
    module: str = "consent"


FAULTS: Final = (
    # three values
    Fault(
        "an unknown deny does not apply",
        "CS-05",
        "return deny.answer is not Answer.NO",
        "return deny.answer is Answer.YES",
    ),
    Fault(
        "an unknown permit grants",
        "CS-05",
        "return permit.answer is Answer.YES",
        "return permit.answer is not Answer.NO",
    ),
    Fault(
        "the second look does not hope for denies",
        "CS-34",
        "            return deny.answer is Answer.YES",
        "            return deny.answer is not Answer.NO",
    ),
    Fault(
        "the second look does not hope for permits",
        "CS-34",
        "            return permit.answer is not Answer.NO",
        "            return permit.answer is Answer.YES",
    ),
    Fault(
        "AND forgets a no",
        "CS-05",
        "        if test.answer is Answer.NO:\n            return NO",
        "        if test.answer is Answer.NO:\n            continue",
    ),
    Fault(
        "AND forgets an unknown",
        "CS-05",
        "return _in_doubt(tests) if found.answer is Answer.UNKNOWN else YES",
        "return YES",
    ),
    Fault(
        "OR forgets a yes",
        "CS-05",
        "        if test.answer is Answer.YES:\n            return YES",
        "        if test.answer is Answer.YES:\n            continue",
    ),
    Fault(
        "OR forgets an unknown",
        "CS-05",
        "return _in_doubt(tests) if found.answer is Answer.UNKNOWN else NO",
        "return NO",
    ),
    # which Consents speak
    Fault(
        "an inactive Consent speaks", "CS-10", "for d in may_be if d.active)", "for d in may_be)"
    ),
    Fault(
        "the oldest version speaks", "CS-10", "newest = max((d.version", "newest = min((d.version"
    ),
    Fault(
        "active is looked at before latest",
        "CS-10",
        "several = list(versions)",
        "several = [d for d in versions if d.active]",
    ),
    Fault(
        "a lost version number is overlooked",
        "CS-10",
        " and all(d.version is not None for d in may_be)",
        "",
    ),
    Fault(
        "a tie of active and withdrawn is active",
        "CS-10",
        "len({d.active for d in may_be}) == 1 and ",
        "",
    ),
    Fault("any scope speaks", "CS-11", "if d.privacy and asked.directory", "if asked.directory"),
    Fault(
        "category outweighs scope",
        "CS-11",
        '    if any(_among(c.get("system"), CONSENT_SCOPE) for c in scope):\n        return any(_says_privacy(c) for c in scope)\n',
        "    if any(_says_privacy(c) for c in scope):\n        return True\n",
        "reading",
    ),
    Fault(
        "category never speaks",
        "CS-11",
        "    return any(_says_privacy(c) for concept in several for c in _codings(concept))",
        "    return False",
        "reading",
    ),
    Fault(
        "everybody's Consents speak",
        "CS-12",
        " and asked.directory.resolve(d.patient) in own]",
        "]",
    ),
    Fault(
        "aliases are forgotten",
        "CS-12",
        "own = {asked.patient} | asked.aliases",
        "own = {asked.patient}",
    ),
    Fault(
        "identifiers are not looked up",
        "CS-12",
        'return self.identifiers.get(reference.identifier or "", literal)',
        "return literal",
    ),
    Fault(
        "an identifier behind a foreign address is not asked",
        "CS-12",
        "        if literal is not None and not is_foreign(literal):\n            return literal",
        "        if literal is not None:\n            return literal",
    ),
    Fault(
        "an identifier outweighs an own address",
        "CS-12",
        "        if literal is not None and not is_foreign(literal):\n            return literal",
        "        pass",
    ),
    Fault(
        "own addresses are not recognised",
        "CS-60",
        'literal = literal.removeprefix(base.rstrip("/") + "/")',
        "pass",
    ),
    Fault(
        "the last two parts of any address are its name",
        "CS-12",
        "    if is_foreign(literal):\n            return literal",
        '    if is_foreign(literal):\n            return "/".join(parts[-2:])',
    ),
    Fault(
        "a version in a reference is part of the name",
        "CS-12",
        'if len(parts) > 2 and parts[-2] == "_history":',
        "if False:",
    ),
    # not computable
    Fault(
        "modifier extensions are ignored",
        "CS-13",
        "if _is_odd(resource) or _modifies(resource):",
        "if _is_odd(resource):",
        "reading",
    ),
    Fault(
        "nested modifier extensions are ignored",
        "CS-13",
        'return bool(node.get("modifierExtension")) or any(_modifies(v) for v in node.values())',
        'return bool(node.get("modifierExtension"))',
        "reading",
    ),
    Fault(
        "implicit rules are ignored",
        "CS-13",
        '        or resource.get("implicitRules") is not None\n',
        "",
        "reading",
    ),
    Fault(
        "what is not computable is ignored",
        "CS-13",
        "say = _Say.PERMIT if mood is _Mood.HOPEFUL else _Say.DENY\n            return _Voice(say, frozenset({Reason.NOT_COMPUTABLE}))",
        "return _SILENT",
    ),
    Fault(
        "what is not computable is a plain no",
        "CS-34",
        "say = _Say.PERMIT if mood is _Mood.HOPEFUL else _Say.DENY\n            return _Voice(say, frozenset({Reason.NOT_COMPUTABLE}))",
        "return _Voice(_Say.DENY, frozenset({Reason.NOT_COMPUTABLE}))",
    ),
    Fault(
        "what is not computable is not flagged",
        "CS-13",
        "if any(not is_computable(d) for d in rules):",
        "if False:",
    ),
    Fault(
        "nothing said is a permit", "CS-13", "return directive.base is not None\n", "return True\n"
    ),
    Fault(
        "a root without type or base is computed",
        "CS-13",
        "if root.effect is None and directive.base is None:",
        "if False:",
    ),
    Fault(
        "a nested rule without type is left out",
        "CS-13",
        '    if effect is None and not root:\n        raise UnreadableError("type")',
        '    if effect is None and not root:\n        effect = "permit"',
        "reading",
    ),
    Fault(
        "an unreadable date is no date",
        "CS-13",
        '    if partial is None:\n        raise UnreadableError("dateTime")',
        "    if partial is None:\n        return _FIRST, _FOREVER",
        "reading",
    ),
    Fault(
        "unknown elements are overlooked",
        "CS-13",
        'or any(e not in CONSENT_ELEMENTS for e in resource if not e.startswith("_"))',
        "",
        "reading",
    ),
    Fault(
        "a misspelt status is inactive",
        "CS-13",
        'active=status == "active" or not _among(status, STATUSES),',
        'active=status == "active",',
        "reading",
    ),
    Fault(
        "an empty list of actors is everybody",
        "CS-05",
        "if any(node.get(condition) == [] for condition in CONDITIONS):",
        "if False:",
        "reading",
    ),
    Fault(
        "a period turned round never applies",
        "CS-13",
        "if start and end and start[0] > end[1]:",
        "if False:",
        "reading",
    ),
    Fault(
        "the first of two bases counts",
        "CS-20",
        "    if len(found) > 1:",
        "    if False:",
        "reading",
    ),
    # time
    Fault(
        "the root's period is not looked at",
        "CS-14",
        "return root.period is None or at in root.period",
        "return True",
    ),
    Fault(
        "a nested period is not looked at",
        "CS-23",
        "return YES if rule.period is None else _truth(case.asked.at in rule.period)",
        "return YES",
    ),
    Fault(
        "an end is its first instant",
        "CS-14",
        "return Period(start[0] if start else None, end[1] if end else None)",
        "return Period(start[0] if start else None, end[0] if end else None)",
        "reading",
    ),
    Fault(
        "a start is its last instant",
        "CS-14",
        "return Period(start[0] if start else None, end[1] if end else None)",
        "return Period(start[1] if start else None, end[1] if end else None)",
        "reading",
    ),
    Fault(
        "an exact end is outside",
        "CS-14",
        "(self.end is None or at <= self.end)",
        "(self.end is None or at < self.end)",
    ),
    Fault(
        "an exact start is outside",
        "CS-14",
        "(self.start is None or self.start <= at)",
        "(self.start is None or self.start < at)",
    ),
    Fault(
        "partial dates are in UTC",
        "CS-14",
        "return _utc(datetime.combine(day, time(), zone))",
        "return _utc(datetime.combine(day, time(), UTC))",
        "reading",
    ),
    Fault(
        "a permit of tomorrow grants today",
        "CS-15",
        "if directive.dated is not None and directive.dated > asked.at:",
        "if False:",
    ),
    Fault(
        "a deny of tomorrow is not heard",
        "CS-15",
        "        if voice.say is not _Say.PERMIT:\n            return voice\n        if directive.dated",
        "        if directive.dated",
    ),
    # minors
    Fault(
        "fourteen begins the day after",
        "CS-16",
        ".date() >= _fourteenth_birthday",
        ".date() > _fourteenth_birthday",
    ),
    Fault(
        "fourteen begins in UTC",
        "CS-16",
        "asked.at.astimezone(policy.zone).date()",
        "asked.at.astimezone(UTC).date()",
    ),
    Fault(
        "the age rule is everybody's", "CS-16", "if policy.profile is not Profile.QC:", "if False:"
    ),
    Fault(
        "of an unknown age a relative may grant",
        "CS-16",
        "            if grown is None:",
        "            if False:",
    ),
    Fault(
        "relatives may grant for adults",
        "CS-16",
        "            if grown:\n",
        "            if False:\n",
    ),
    Fault(
        "one relative among performers is enough",
        "CS-16",
        "        else:\n            return []\n    return found",
        "    return found",
        "reading",
    ),
    Fault(
        "relatives named by identifier are not seen",
        "CS-16",
        "return bool(named) and all(",
        "return False and all(",
    ),
    Fault(
        "a relative's void permit is not flagged",
        "CS-16",
        "signs.add(Sign.PERFORMER_NOT_ENTITLED)",
        "pass",
    ),
    # base and encodings
    Fault("OPTINR is a deny", "CS-20", "self in {Base.OPTIN, Base.OPTINR}", "self in {Base.OPTIN}"),
    Fault(
        "OPTOUTE is a permit",
        "CS-20",
        "self in {Base.OPTIN, Base.OPTINR}",
        "self in {Base.OPTIN, Base.OPTINR, Base.OPTOUTE}",
    ),
    Fault(
        "emergencies are not excepted",
        "CS-20",
        'if base is Base.EMRGONLY and "ETREAT" in above:',
        "if False:",
    ),
    Fault(
        "a base permit reaches everything",
        "CS-20",
        "reached = bool(above & self._policy.optin_purposes)",
        "reached = True",
    ),
    Fault(
        "a base reaches a purpose, not what is under it",
        "CS-20",
        "reached = bool(above & self._policy.optin_purposes)",
        "reached = self._asked.purpose in self._policy.optin_purposes",
    ),
    Fault(
        "a typeless exception has the base's effect",
        "CS-21",
        "return Effect.PERMIT if base is not None and base.effect is Effect.DENY else Effect.DENY",
        "return Effect.DENY if base is not None and base.effect is Effect.DENY else Effect.PERMIT",
    ),
    Fault(
        "a container is no container",
        "CS-21",
        "return root is not None and root.effect is None and root.bare",
        "return False",
    ),
    Fault(
        "a period is a condition",
        "CS-21",
        "        return not (\n            self.actors",
        "        return not (\n            self.period\n            or self.actors",
    ),
    Fault("a dataPeriod is no condition", "CS-21", "            or self.data_period\n", ""),
    Fault(
        "a base deny is not heard",
        "CS-22",
        "        if base is not None and base.effect is Effect.DENY:\n            return _Voice(_Say.DENY, voice.why)\n",
        "",
    ),
    Fault(
        "a base permit never answers",
        "CS-22",
        "if base is not None and self._root.effect is Effect.DENY and reached:",
        "if False:",
    ),
    Fault(
        "a base permit answers also under a root permit",
        "CS-22",
        "if base is not None and self._root.effect is Effect.DENY and reached:",
        "if base is not None and reached:",
    ),
    Fault(
        "an implicit deny comes before the base",
        "CS-22",
        "        if base is not None and base.effect is Effect.DENY:\n            return _Voice(_Say.DENY, voice.why)\n        if voice.say is _Say.IMPLICIT_DENY:\n            return voice\n",
        "        if voice.say is _Say.IMPLICIT_DENY:\n            return voice\n        if base is not None and base.effect is Effect.DENY:\n            return _Voice(_Say.DENY, voice.why)\n",
    ),
    # elements
    Fault(
        "purposes are not a tree",
        "CS-24",
        "if code.code in purposes_above(case.asked.purpose):",
        "if code.code == case.asked.purpose:",
    ),
    Fault(
        "an unknown purpose is another one",
        "CS-05",
        "return NO if known else unknown(Reason.UNKNOWN_CONDITION)",
        "return NO",
    ),
    Fault("purposes are not looked at", "CS-24", "    if rule.purposes:\n", "    if False:\n"),
    Fault(
        "access is not disclosure",
        "CS-24",
        "code.code == asked or (code.code in FLOW and asked in FLOW)",
        "code.code == asked",
    ),
    Fault("actions are not looked at", "CS-24", "    if rule.actions:\n", "    if False:\n"),
    Fault(
        "an action of text is none",
        "CS-05",
        "        if not codings:\n            found.append(Code(None, None))",
        "        if not codings:\n            pass",
        "reading",
    ),
    Fault(
        "rules do not flow down",
        "CS-24",
        "return _one_of(named, directory.upwards(case.asked.recipient))",
        "return _one_of(named, frozenset({case.asked.recipient}))",
    ),
    Fault(
        "rules flow up",
        "CS-24",
        "return _one_of(named, directory.upwards(case.asked.recipient))",
        "return _one_of(case.asked.recipient, directory.upwards(named))",
    ),
    Fault(
        "a foreign address is somebody else",
        "CS-05",
        "return unknown(Reason.UNKNOWN_ACTOR) if is_foreign(named) else NO",
        "return NO",
    ),
    Fault(
        "an unknown group is empty",
        "CS-24",
        "        if not directory.knows_group(named):\n            return unknown(Reason.UNKNOWN_ACTOR)\n",
        "",
    ),
    Fault(
        "an actor that names nobody is nobody",
        "CS-05",
        "    named = directory.resolve(who)\n    if named is None:\n        return unknown(Reason.UNKNOWN_ACTOR)\n    if named == reader",
        "    named = directory.resolve(who)\n    if named is None:\n        return NO\n    if named == reader",
    ),
    Fault(
        "the reader is not recognised", "CS-24", "    if named == reader:\n        return YES\n", ""
    ),
    Fault(
        "unknown readers are in no group",
        "CS-33",
        "        if reader is None:\n            return unknown(Reason.UNKNOWN_READERS)\n",
        "",
    ),
    Fault(
        "unknown readers are not the person named",
        "CS-33",
        "    if reader is None and directory.works_at(named, case.asked.recipient):\n        return unknown(Reason.UNKNOWN_READERS)\n",
        "",
    ),
    Fault(
        "unknown readers may be anybody",
        "CS-24",
        "if reader is None and directory.works_at(named, case.asked.recipient):",
        "if reader is None:",
    ),
    Fault(
        "a witness is a recipient",
        "CS-24",
        "    return NO if match.answer is Answer.NO else unknown(Reason.UNKNOWN_ACTOR)",
        "    return match",
    ),
    Fault(
        "a witness is nobody",
        "CS-24",
        "    return NO if match.answer is Answer.NO else unknown(Reason.UNKNOWN_ACTOR)",
        "    return NO",
    ),
    Fault(
        "a role nobody can read is nobody's",
        "CS-05",
        "    if role.system not in ROLE_SYSTEMS or role.code is None:\n        return unknown(Reason.UNKNOWN_ACTOR)",
        "    if role.system not in ROLE_SYSTEMS or role.code is None:\n        return NO",
    ),
    Fault(
        "a primary recipient is none", "CS-24", 'frozenset({"IRCP", "PRCP"})', 'frozenset({"IRCP"})'
    ),
    Fault(
        "a custodian's parents do not count",
        "CS-24",
        "    if any(named in directory.upwards(h) or named",
        "    if any(named == h or named",
    ),
    Fault(
        "an unknown custodian is another one",
        "CS-24",
        "    if holder is None:\n        return unknown(missing)",
        "    if holder is None:\n        return NO",
    ),
    Fault(
        "a custodian is cached for every item",
        "CS-37",
        "key = (reader, item.custodian)",
        "key = (reader, None)",
    ),
    Fault(
        "an author is a matter of the request",
        "CS-23",
        "return rest if rule.of_author else every([rest, _actors(rule, case)])",
        "return every([rest, _actors(rule, case)])",
    ),
    Fault(
        "an author's role is not resolved",
        "CS-24",
        "    return held or frozenset({who})",
        "    return frozenset({who})",
    ),
    Fault(
        "an author's team does not count",
        "CS-24",
        " or named in directory.groups.get(h, ()) for h in holders",
        " for h in holders",
    ),
    Fault("labels are not looked at", "CS-24", "    if rule.labels:\n", "    if False:\n"),
    Fault(
        "not assessed is normal",
        "CS-24",
        "    if labels is None:\n        return unknown(Reason.UNKNOWN_LABEL)",
        "    if labels is None:\n        labels = frozenset()",
    ),
    Fault(
        "a deny from R means R alone",
        "CS-24",
        "held >= level if deny else held <= level",
        "held == level if deny else held <= level",
    ),
    Fault(
        "a permit up to R means R alone",
        "CS-24",
        "held >= level if deny else held <= level",
        "held >= level if deny else held == level",
    ),
    Fault(
        "a sensitivity does not raise the level",
        "CS-24",
        "return max(stated, RESTRICTED) if sensitive else stated",
        "return stated",
    ),
    Fault(
        "the lowest level counts",
        "CS-24",
        "stated = max(levels, default=NORMAL)",
        "stated = min(levels, default=NORMAL)",
    ),
    Fault(
        "an unlabelled item is unrestricted",
        "CS-24",
        "stated = max(levels, default=NORMAL)",
        "stated = max(levels, default=0)",
    ),
    Fault(
        "M is above N", "CS-24", '("U", "L", "M", "N", "R", "V")', '("U", "L", "N", "M", "R", "V")'
    ),
    Fault(
        "sensitivities are not a tree",
        "CS-59",
        "        elif SENSITIVITIES_ABOVE[kind] & named:",
        "        elif kind in named:",
    ),
    Fault(
        "SUD has one parent",
        "CS-59",
        '"SUD": frozenset({"SPI", "ETH"})',
        '"SUD": frozenset({"SPI"})',
    ),
    Fault(
        "a label above the denied one is another",
        "CS-24",
        "        elif any(kind in SENSITIVITIES_ABOVE[n] for n in named):\n            tests.append(unknown(Reason.UNKNOWN_LABEL))\n",
        "",
    ),
    Fault(
        "a permit needs one covered label",
        "CS-24",
        "return every(tests) if tests else NO",
        "return some(tests) if tests else NO",
    ),
    Fault(
        "a permit of a kind covers what has none",
        "CS-24",
        "return every(tests) if tests else NO",
        "return every(tests)",
    ),
    Fault(
        "an unreadable rule label is none",
        "CS-05",
        "        elif _sensitivity_of(code) is None:\n            tests.append(unknown(Reason.UNKNOWN_CONDITION))\n",
        "",
    ),
    Fault(
        "old systems are foreign",
        "CS-24",
        "system = SYSTEM_ALIASES.get(system, system) if system is not None else None",
        "pass",
    ),
    Fault(
        "deprecated codes are levels",
        "CS-24",
        'if system == CONFIDENTIALITY and code in {"PSY", "HIV", "ETH", "SDV"}:',
        "if False:",
    ),
    Fault("classes are not looked at", "CS-24", "    if rule.classes:\n", "    if False:\n"),
    Fault(
        "an unknown class is another one",
        "CS-05",
        "code.system != RESOURCE_TYPES or code.code not in R4_TYPES",
        "code.system != RESOURCE_TYPES",
    ),
    Fault("codes are not looked at", "CS-24", "    if rule.codes:\n", "    if False:\n"),
    Fault(
        "unknown codes are none",
        "CS-24",
        "    if codes is None:\n        return unknown(Reason.UNKNOWN_CODE)",
        "    if codes is None:\n        return NO",
    ),
    Fault(
        "codes of another system are other codes",
        "CS-24",
        "    if codes and all(c.system != code.system for c in codes):\n        return unknown(Reason.UNKNOWN_CODE)\n",
        "",
    ),
    Fault("known and none is unknown", "CS-60", "    if codes and all(", "    if all("),
    Fault(
        "codes are equal whatever their system",
        "CS-24",
        "    if code in codes:",
        "    if code.code in {c.code for c in codes}:",
    ),
    Fault(
        "undated is outside",
        "CS-24",
        "    if item.start is None:\n        return unknown(Reason.UNKNOWN_DATE)",
        "    if item.start is None:\n        return NO",
    ),
    Fault(
        "a deny of a time needs the whole of it",
        "CS-24",
        "return _truth(begun and (period.start is None or last >= period.start))",
        "return _truth(first in period and last in period)",
    ),
    Fault(
        "a permit of a time needs a part of it",
        "CS-24",
        "return _truth(first in period and last in period)",
        "return _truth(first in period or last in period)",
    ),
    Fault(
        "the end of an item is not looked at",
        "CS-24",
        "sorted((item.start, item.end or item.start))",
        "sorted((item.start, item.start))",
    ),
    Fault(
        "dataPeriods are not looked at",
        "CS-24",
        "    if rule.data_period is not None:\n        tests",
        "    if False:\n        tests",
    ),
    Fault(
        "an instance is whatever belongs to it",
        "CS-24",
        '    if datum.meaning != "instance":\n',
        "    if True:\n",
    ),
    Fault(
        "related is the thing itself alone",
        "CS-24",
        '    if datum.meaning != "instance":\n',
        "    if False:\n",
    ),
    Fault("data are not looked at", "CS-24", "    if rule.data:\n", "    if False:\n"),
    # the tree
    Fault(
        "a missed restriction does not survive",
        "CS-25",
        "        return _survivors(found, mood)",
        "        return _SILENT",
    ),
    Fault(
        "it survives whatever the parent's purpose",
        "CS-25",
        "every([found.rest, child.both])",
        "child.both",
    ),
    Fault(
        "a child without actors survives",
        "CS-25",
        "if child.rule.effect is Effect.DENY and child.rule.actors",
        "if child.rule.effect is Effect.DENY",
    ),
    Fault(
        "a permit survives as a deny",
        "CS-25",
        "if child.rule.effect is Effect.DENY and child.rule.actors",
        "if child.rule.actors",
    ),
    Fault(
        "a missed rule is walked",
        "CS-25",
        "    if found.request.answer is Answer.NO:\n        return _survivors(found, mood)\n",
        "",
    ),
    Fault(
        "a permit among children wins",
        "CS-25",
        "for say in (_Say.DENY, _Say.PERMIT):",
        "for say in (_Say.PERMIT, _Say.DENY):",
    ),
    Fault(
        "a parent overrides its children",
        "CS-25",
        "voice = _spoken(voices) or _own_voice(found, _joined(voices), mood, above, root=root)",
        "voice = _own_voice(found, _joined(voices), mood, above, root=root)",
    ),
    Fault(
        "an exception grants more than was withheld",
        "CS-25",
        "below = above if rule.effect is Effect.PERMIT else every([above, both])",
        "below = YES",
    ),
    Fault(
        "an exception to a doubtful deny grants",
        "CS-25",
        "say = _Say.PERMIT if mood.grants(above) else _Say.SILENT",
        "say = _Say.PERMIT if mood.stands(above) else _Say.SILENT",
    ),
    Fault(
        "only the nearest deny above counts",
        "CS-25",
        "else every([above, both])",
        "else both",
    ),
    Fault(
        "a permit under a permit needs the parent's match",
        "CS-25",
        "below = above if rule.effect is Effect.PERMIT else every([above, both])",
        "below = every([above, both])",
    ),
    Fault(
        "a permit does not deny what it leaves out",
        "CS-25",
        "return _Voice(_Say.IMPLICIT_DENY if root else _Say.SILENT, found.item.why | doubts)",
        "return _Voice(_Say.SILENT, found.item.why | doubts)",
    ),
    Fault(
        "a nested permit denies what it leaves out",
        "CS-25",
        "return _Voice(_Say.IMPLICIT_DENY if root else _Say.SILENT, found.item.why | doubts)",
        "return _Voice(_Say.DENY, found.item.why | doubts)",
    ),
    Fault(
        "a permit of an unknown request grants",
        "CS-25",
        "if rule.effect is Effect.PERMIT and voice.say is _Say.PERMIT and not mood.grants(found.request):",
        "if False:",
    ),
    Fault(
        "a permit of an unknown request is not walked",
        "CS-25",
        "    if found.request.answer is Answer.NO:\n        return _survivors(found, mood)",
        "    if found.request.answer is Answer.NO:\n        return _survivors(found, mood)\n    if rule.effect is Effect.PERMIT and not mood.grants(found.request):\n        return _Voice(_Say.SILENT, found.request.why)",
    ),
    # combining
    Fault(
        "permit wins over deny",
        "CS-30",
        "    if denies:\n        newest",
        "    if denies and not permits:\n        newest",
    ),
    Fault(
        "an implicit deny is not heard",
        "CS-30",
        "if implicit := [(d, v) for d, v in voices if v.say is _Say.IMPLICIT_DENY]:",
        "if implicit := []:",
    ),
    Fault(
        "an implicit deny wins over a permit",
        "CS-30",
        "    if permits:\n        return _permitted(permits)",
        "    if permits and not any(v.say is _Say.IMPLICIT_DENY for _, v in voices):\n        return _permitted(permits)",
    ),
    Fault("the newest Consent wins", "CS-31", "if newer and mood is _Mood.HOPEFUL:", "if newer:"),
    Fault(
        "of equal instants the permit is newer",
        "CS-31",
        "if (d.dated or _OLDEST) > newest]",
        "if (d.dated or _OLDEST) >= newest]",
    ),
    Fault(
        "newer than any deny is newer",
        "CS-31",
        "newest = max(d.dated or _OLDEST for d, _ in denies)",
        "newest = min(d.dated or _OLDEST for d, _ in denies)",
    ),
    Fault("a conflict is a plain no", "CS-31", "if newer and mood is _Mood.HOPEFUL:", "if False:"),
    Fault("a conflict is not flagged", "CS-31", "conflict=bool(newer))", "conflict=False)"),
    Fault(
        "no dateTime is the newest",
        "CS-31",
        "if (d.dated or _OLDEST) > newest]",
        "if (d.dated or _LAST) > newest]",
    ),
    Fault(
        "implied releases outside the circle",
        "CS-32",
        " and under_treatment and asked.circle:",
        " and under_treatment:",
    ),
    Fault(
        "implied releases for any purpose",
        "CS-32",
        " and under_treatment and asked.circle:",
        " and asked.circle:",
    ),
    Fault(
        "opt-in is implied",
        "CS-32",
        "if policy.default is Default.IMPLIED and under_treatment",
        "if under_treatment",
    ),
    Fault(
        "one reader is enough",
        "CS-33",
        "    if all(h.released for h in sober):",
        "    if any(h.released for h in sober):",
    ),
    Fault(
        "one hopeful reader is enough",
        "CS-34",
        "    if not all(h.released for h in hopeful):",
        "    if not any(h.released for h in hopeful):",
    ),
    Fault(
        "nobody reads",
        "CS-33",
        "for reader in asked.readers or (None,):",
        "for reader in asked.readers:",
    ),
    Fault(
        "a reader in a role is nobody we know",
        "CS-33",
        "            found |= asked.directory.members(reader) or {None}",
        "            found.add(reader)",
    ),
    Fault(
        "a reader in an unknown role is nobody",
        "CS-33",
        "asked.directory.members(reader) or {None}",
        "asked.directory.members(reader)",
    ),
    # the value
    Fault(
        "a hold is enough for a card",
        "CS-35",
        "    if released and asked.met(released):",
        "    if released | doubtful and asked.met(released | doubtful):",
    ),
    Fault(
        "a hold is a no",
        "CS-35",
        "on_hold = bool(doubtful) and asked.met(released | doubtful)",
        "on_hold = False",
    ),
    Fault(
        "any doubt is a hold",
        "CS-35",
        "on_hold = bool(doubtful) and asked.met(released | doubtful)",
        "on_hold = bool(doubtful)",
    ),
    Fault(
        "a finding needs one permitted reader",
        "CS-35",
        "if any(all(h.say is _Say.PERMIT for h in readers) for readers in heard):",
        "if any(any(h.say is _Say.PERMIT for h in readers) for readers in heard):",
    ),
    Fault(
        "one denied item is a deny",
        "CS-35",
        "if heard and all(any(h.say in silenced",
        "if heard and any(any(h.say in silenced",
    ),
    Fault(
        "an implicit deny is no finding",
        "CS-35",
        "silenced = {_Say.DENY, _Say.IMPLICIT_DENY}",
        "silenced = {_Say.DENY}",
    ),
    Fault(
        "held visits count",
        "CS-40",
        "ed, hosp = len(self._ed & decision.released), len(self._hosp & decision.released)",
        "ed, hosp = len(self._ed), len(self._hosp)",
        "decide",
    ),
    Fault(
        "both thresholds are needed",
        "CS-60",
        "ed >= derived.ed_threshold or hosp >= derived.hosp_threshold",
        "ed >= derived.ed_threshold and hosp >= derived.hosp_threshold",
        "decide",
    ),
    Fault(
        "diagnoses are visits",
        "CS-60",
        'if item.resource_type == "Encounter"]',
        "if True]",
        "decide",
    ),
    Fault(
        "a day lasts an instant",
        "CS-14",
        "ended = begun  # a day without an hour lasts the day (CS-14)",
        "pass",
        "decide",
    ),
)
