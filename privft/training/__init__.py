"""The training core: DP-SGD on units of text, through LoRA or a bare head.

    sampling   which units take part in a step (Poisson, keyed)
    examples   a unit's records as token ids; length buckets; microbatches
    basemodel  base models and tokenizers from local, safe files only
    adapter    what is trained: LoRA, a head, or both; saving it so that plain peft loads it
    losses     mean loss a record, logits only where there are labels
    clipping   exact per-unit gradients, clipped once a unit and summed in float64
    products   matrix products whose bits companions cannot change; one gradient a unit
    lowrank    a linear layer with LoRA as one step of the graph
    dropout    LoRA's dropout, with masks keyed by step, unit, record and layer
    quantised  a frozen base in 8 or 4 bits a number
    recompute  gradient checkpointing: activations computed again, to the same bits
    opacus_engine   the same gradients by Opacus, to hold ours against before every run
    noise      the Gaussian noise, keyed by step and parameter
    discrete   the same on whole numbers, safe in floating point
    adaptive   the clip norm that follows a quantile, and the noise on its count
    optimiser  what becomes of a noisy gradient, and what each option does under noise
    loop       Algorithm 1 of Abadi et al. 2016, read from top to bottom
    ranks      several processes with one run between them: shares, sums, agreement
    sharding   a frozen base shared out among the ranks
    checkpoint state as sealed bytes and as a digest
    scoring    losses of units without gradients, for audits and evaluation

Nothing here knows of the vault's files, the ledger or the audit: units, canaries and the step
journal are passed in.
"""
