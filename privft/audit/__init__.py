"""The audit room: attacks with known power, honest bounds, and a verdict that gates release.

    bounds      what right guesses in one run say about epsilon              (pure)
    rates       bounds from independent runs; the mu of a Gaussian; exposure (pure)
    suite       what a suite attacks, how hard, and what fails the run
    canaries    units made to be attacked, each in the run by its own fair coin
    attacks     scores, guesses, exposure, membership inference
    extraction  whether planted secrets can be had from the model by greedy decoding
    control     the leaky twin on which the same attacks must succeed
    probe       a model of known gradients, trained by the real loop
    selfcheck   the attack on the mechanism itself, through that probe
    stepcheck   one step of the model at hand, before the first real one
    verdict     an audit of one run, weighed and said in words

Verdicts rest on canaries and on generated data only (DESIGN.md, invariant 8).  Attacks on real
units are for a person inside the enclave, and are kept apart by type.
"""
