"""A region that never existed: its people, its hospitals and clinics, in this order.

region.py and life.py say who lives there and what befalls them, feed.py what the hospitals
send of it, fhir.py how that is written; all four are pure, from a seed. hospital.py and
clinic.py speak to the public doors over HTTP; flow.py tells the whole story of the demo,
files.py writes a region, sending.py sends one to doors that run already.
"""
