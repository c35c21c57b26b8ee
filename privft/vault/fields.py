"""Which column of the operator's files is what: the map from rows to records.

A record has one of four forms, after the names that TRL and the chat templates use:

    text                 {"id", "text"}
    prompt, completion   {"id", "prompt", "completion"}
    messages             {"id", "messages": [{"role", "content"}, ...]}
    text, label          {"id", "text", "label"}

`subject` names the column that says whose record it is; it is needed when the unit is the subject.
`id` names the column with the record's id; without it the id is made from the source's hash and the
row's number, so that the same file added twice is still recognised.

The map is a public fact (it is in the manifest): it holds names of columns, never their content.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from privft.errors import UsageError
from privft.vault.keys import Value

Column = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")]
Form = Literal["text", "prompt-completion", "messages", "text-label"]

_FORMS: dict[frozenset[str], Form] = {
    frozenset({"text"}): "text",
    frozenset({"prompt", "completion"}): "prompt-completion",
    frozenset({"messages"}): "messages",
    frozenset({"text", "label"}): "text-label",
}


class FieldMap(Value):
    """Names of columns; those that make up the record's form, and `subject` and `id`."""

    text: Column | None = None
    prompt: Column | None = None
    completion: Column | None = None
    messages: Column | None = None
    label: Column | None = None
    subject: Column | None = None
    id: Column | None = None

    @model_validator(mode="after")
    def _one_form(self) -> FieldMap:
        named = sorted(self.content())
        if frozenset(named) not in _FORMS:
            raise UsageError(
                f"a field map with {', '.join(named) or 'no content'}",
                hint="name text, or prompt and completion, or messages, or text and label",
            )
        return self

    def content(self) -> dict[str, str]:
        """Record key -> column, for the keys that make up the record's form."""
        keys = ("text", "prompt", "completion", "messages", "label")
        return {key: column for key in keys if (column := getattr(self, key)) is not None}

    def columns(self) -> list[str]:
        """Every column that is read."""
        others = (self.subject, self.id)
        return [*self.content().values(), *(column for column in others if column is not None)]

    @property
    def form(self) -> Form:
        """Which of the four forms records have."""
        return _FORMS[frozenset(self.content())]
