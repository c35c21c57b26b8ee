"""Every error that privft raises on purpose, and the exit code that it ends with.

An error says in one line what is wrong and by how much; its hint says what to do.  Neither ever
holds the content of a record, a key or a passphrase: errors are printed, logged and pasted into
tickets.

    PrivftError                1   something failed while running
    ├── UsageError             2   the caller asked for something that makes no sense
    │   ├── ConfigError        2   a YAML file that does not say what it must
    │   └── InputError         2   rows, model folders or files that cannot be used
    ├── AccountingError        1   an accountant's answer that must not be trusted
    ├── OrderError             1   stages called out of order
    ├── NotForThisKey          1   the key does not open this (another one may)
    ├── PolicyRefused         10   a policy says no
    ├── BudgetExceeded        11   the privacy budget says no
    ├── AuditFailed           12   the audit says no, or is missing
    ├── IntegrityError        13   altered, truncated, replayed or badly signed
    │   └── SignatureError    13   a signature that does not hold, or by nobody known
    ├── PlanError             14   a plan that is stale or not approved
    └── DoctorFailed          15   the machine is not fit for the job

`NotForThisKey` is deliberately no `IntegrityError`: the first means "try the next key", the second
means "stop".
"""

from __future__ import annotations


class PrivftError(Exception):
    """Base of the tree: `message` says what and how much, `hint` says what to do."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(PrivftError):
    """The caller asked for something that makes no sense."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration, policy or suite file that does not say what it must."""


class InputError(UsageError):
    """Rows, model folders or files that cannot be used as they are."""


class AccountingError(PrivftError):
    """An accountant's answer that must not be trusted: negative, NaN, inconsistent, unsupported."""


class OrderError(PrivftError):
    """A stage called before the one that it needs, or after it was closed."""


class NotForThisKey(PrivftError):
    """This key does not open this; nothing says that anything was altered."""


class PolicyRefused(PrivftError):
    """A policy says no."""

    exit_code = 10


class BudgetExceeded(PrivftError):
    """The privacy budget of the data set says no."""

    exit_code = 11


class AuditFailed(PrivftError):
    """The audit says no, or has not been held."""

    exit_code = 12


class IntegrityError(PrivftError):
    """Altered, truncated, reordered or replayed."""

    exit_code = 13


class SignatureError(IntegrityError):
    """A signature that does not hold, or by nobody that the trust root knows."""


class PlanError(PrivftError):
    """A plan that is stale, altered, or lacks an approval that the policy asks for."""

    exit_code = 14


class DoctorFailed(PrivftError):
    """The machine is not fit for the job."""

    exit_code = 15
