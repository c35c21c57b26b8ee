"""Whether a run can be expected to learn anything, from its public numbers alone.

The rule.  Let all units agree: every clipped gradient is the same vector, as long as the clip norm
C.  A run of T steps at expected batch B then adds up T B C of it, and noise of standard deviation
sqrt(T) sigma C along it (sigma: the gradients' noise multiplier).  So along one direction the
signal of the whole run is worth

    s = sqrt(T) B / sigma        standard deviations of its noise,

and no run can do better.  Real units agree in part, and a model learns many directions at once, so
far more than 1 is needed.  How much more was measured (`benchmarks/usefulness.py`: a linear head on
frozen features, 77 classes, 500 to 10,003 units, few large batches and many small ones).  The
share kept of what is learnt without noise depends on s and hardly on anything else:

    s                 30     100     300    1000    3000   10000
    share kept       1%      3%     18%     64%     87%     94%     (means of the six rows)

Below `UNLIKELY` a run keeps less than a fifth there, and `privft plan` says so.  Language models
with LoRA are another task, with the same order of magnitude: s was 623 and 441 in the two runs that
README quotes ("make demo" and MTS-Dialog), which gained 1.2 and 0.4 nats a token.

What s depends on.  With q = B/N, the mu of Gaussian DP is about q sqrt(T) / sigma for sigma well
above 1 (Bu, Dong, Long, Su 2020, "Deep learning with Gaussian differential privacy"), so s is about
N mu: at a given epsilon it grows with the number of units and, once sigma is large, with nothing
else.  Where sigma is about 1, as with few steps, larger batches and more steps bring it nearer to
that: 3,000 units at epsilon 1 have s = 593 at batch 96 and 50 steps, 841 at batch 300, 804 at 200
steps, and 12,000 units have 2,221 at batch 384.  Hence the advice of the warning.
"""

from __future__ import annotations

import math

from privft.budget.mechanism import Mechanism

UNLIKELY = 300.0


def signal_to_noise(mechanism: Mechanism) -> float:
    """s of the module's docstring."""
    noise = mechanism.gradient_noise_multiplier
    return math.sqrt(mechanism.steps) * mechanism.expected_batch_size / noise


def warnings(mechanism: Mechanism) -> list[str]:
    """What makes a useful model unlikely, in words; empty where nothing does."""
    ratio = signal_to_noise(mechanism)
    if ratio >= UNLIKELY:
        return []
    return [
        f"a useful model is unlikely: signal to noise, sqrt(steps) * expected batch / noise "
        f"multiplier, is {ratio:.0f}, and below {UNLIKELY:.0f} a run learns less than a fifth of "
        "what it would without noise; more units or a larger epsilon help most, and while the "
        "noise multiplier is below about 2 also larger batches and more steps"
    ]
