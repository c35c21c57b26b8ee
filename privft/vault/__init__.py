"""The vault: records are sealed at intake, opened in memory only, and can be erased one by one.

One principle runs through it: the privacy unit is the sampling unit is the encryption unit is the
erasure unit.  A unit (a record, or a subject with all of its records) is one *cell*, sealed under
a random key of its own; forgetting the key forgets the unit.

From the bytes upwards:

    floe.py        sealed bytes: FLOE, for cells and for streams                          (pure)
    keys.py        who can open: recipients, and how an epoch key is wrapped to each of them
    services.py    recipients whose private key a key service keeps, through any program
    tokens.py      a PKCS#11 token as such a service
    cells.py       one unit <-> one padded, sealed cell
    segments.py    immutable files of cells
    fields.py      which column of a source is what
    overlap.py     keyed hashes that show when two vaults hold the same people or text
    index.py       where each cell lies and under which key; the Merkle tree over the cells
    manifest.py    the signed file that says which of all files are the vault
    durable.py     the only writes to disk: new files, and the atomic change of the manifest
    digested.py    a file that is read and held against its signed hash at once
    state.py       open and commit one version of a vault
    intake.py      source files -> rows -> records, streamed, with line numbers
    parquet.py     encrypted Parquet -> rows, with a key or through a key service
    duplicates.py  text that several units share, which weakens what one unit's guarantee means
    grouping.py    records -> units, in bounded memory, spilled only under a key that is in memory
    arrivals.py    what an intake remembers of every record until its commit
    adding.py      add records; a unit that grows gets a new cell under a new key
    rotation.py    new epoch, new recipients, and re-encryption
    preview.py     what a change would do, without writing
    erasure.py     erase units, and the signed certificate of it
    proofs.py      that a unit is in a version, or is not, for others to check
    verify.py      check a whole vault, with or without its key
    store.py       the front door: create, Vault, inspect
"""
