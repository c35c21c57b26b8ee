"""What the compliance officer reads, signs, and can check alone.

`statement` holds the one truth about a run: strict models of the facts, and the in-toto Statement
that is signed.  Everything else is rendered from it and from nothing else: `page` (one
self-contained HTML file, its charts from `plots`, its hazard table from `hazards`), `card` (the
README.md of a model hub, and the licence note).  `proof` ties a statement to the ledger; `verify`
checks a whole released folder offline.

Nothing in this package loads torch, and nothing in it reads a record.
"""
