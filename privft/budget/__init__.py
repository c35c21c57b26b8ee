"""The privacy budget: what one run does (`mechanism`), what it costs (`accounting`), whether it
may run (`filter`), and the memory that cannot be rolled back (`ledger`, `translog`).

Importing this package loads neither torch nor the accountants.
"""
