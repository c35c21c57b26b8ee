"""privft: fine-tune language models on sensitive text, with a privacy guarantee that holds.

The flow, left to right; policy and ledger stand at every gate:

    intake -> vault -> units -> tokenised examples -> Poisson batch -> microbatches
           -> per-unit clipped gradients -> noise -> adapter (sealed)
           -> audit -> report -> release (the only exit)

Glossary
    unit        whose data one guarantee protects: a record, or a subject (a patient, an account
                holder) whose records all move together.  The unit is also what is sampled, what
                is clipped, what is encrypted under its own key, and what can be erased.
    epsilon     the largest factor, as exp(epsilon), by which one unit's presence can change the
                odds of anything that an observer of the adapter can see, but for delta.
    mechanism   the one value that says what a run does to the data (`privft.budget.mechanism`).
    ledger      the append-only record of all that was spent on a data set, over all runs.
    plan        what a run is going to do, priced and bound to data, policy, model and budget.
    canary      a made-up unit, included by a coin, by which the audit tries to catch the run.

What is NOT protected
    Facts about the population that hold with or without any one unit; the base model's own
    training data; text that several units share; anybody whose records the operator failed to
    assign to one unit; a host whose administrator is the attacker while a run is going on.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("privft")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+source"
