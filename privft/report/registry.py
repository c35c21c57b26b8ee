"""An entry for the OpenDP Differential Privacy Deployments Registry, as typed values.

The registry keeps one YAML file a deployment and checks it against a JSON schema
(github.com/opendp/deployments-registry-data, `schemas/deployments-schema.yaml`).  The models here
restate that schema as of commit `SCHEMA_COMMIT`: names, types, enumerations and what is required;
its texts are not copied.  An entry that is built from them cannot fail to fit, and a test holds the
YAML that `render` writes to a second restatement by a validator of its own.

The registry changed its layout several times.  This is the newest whole schema that could be read:
`basic`, `dp_variant`, `privacy_loss`, `deployment_model`, `implementation`, `administrative`.  An
older one with `product`, `dp_flavor`, `model`, `accounting` and `resources` is written no more.
Scripts of later commits name more fields that end in `_details`; their schema was not at hand.

What only people know says `[TO DO]`.  Where the schema takes one of a few words and no other, the
draft has one of them with `[TO DO]` in a comment behind it, as the registry's own template does.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import yaml
from pydantic import Field

from privft.report.values import Amount, Strict, Words

SCHEMA_COMMIT = "057e5d81cf60150dd3307e0cf4504b957802fb3b"
TODO = "[TO DO]"
_FOR_PEOPLE = {
    "data_curator_type": "Government, Industry or Nonprofit",
    "publication_date": "this is when the run was settled; write when it was published",
}
_MISSING = (
    "basic.data_product_sector, one of Technology, Healthcare, Education, Government, Energy, "
    "Finance"
)
_Date = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]


class Curator(Strict):
    """Who publishes the data product."""

    data_curator_name: Words
    data_curator_type: Literal["Government", "Industry", "Nonprofit"]


class Basic(Strict):
    """Tier 1: what it is, whose, and what for."""

    name: Words
    data_curators: Annotated[list[Curator], Field(min_length=1)]
    description: Words
    intended_use: Words
    data_product_type: Literal[
        "Summary statistics",
        "Machine learning model",
        "Dataset",
        "Synthetic data",
        "Interactive API",
        "SQL queries",
    ]
    data_product_region: Words
    publication_date: _Date


class Variant(Strict):
    """Which definition of differential privacy, over which data sets."""

    variant_name: Literal["Pure DP", "Approximate DP", "Zero-concentrated DP", "Renyi DP", "Custom"]
    data_domain: Words
    unprotected_quantities: Words


class Parameters(Strict):
    """How strongly."""

    epsilon: Amount
    delta: Amount


class PrivacyLoss(Strict):
    """Whose data, how strongly; `number_of_privacy_units` is the declared number, never a count."""

    privacy_unit: Words
    privacy_unit_details: Words
    number_of_privacy_units: Annotated[int, Field(ge=1)]
    privacy_parameters: Parameters
    privacy_parameters_details: Words


class DeploymentModel(Strict):
    """Who is trusted, and how often something leaves."""

    model_name: Literal["Local", "Central", "Shuffle", "Federated", "Varies"]
    trust_assumptions: Words
    actors: Words
    release_type: Literal["One release", "Many releases"]
    release_type_details: Words
    data_source_type: Literal["Static", "Dynamic"]
    access_type: Literal["Interactive", "Non-interactive"]


class Implementation(Strict):
    """Tier 3: mechanisms, accounting, and why it was done so."""

    preprocessing_and_hyperparameter_tuning: Words
    mechanisms: Words
    composition: Words
    post_processing: Words
    justification: Words
    utility: Words
    additional_information: Words


class Administrative(Strict):
    """The registry's own part."""

    status: Literal[
        "Converted",
        "Draft",
        "Pending",
        "Changes Required",
        "Approved",
        "Approved (Update Requested)",
        "Approved (Pending)",
    ]
    registry_authors: Annotated[list[Words], Field(min_length=1)]
    tier: Literal[1, 2, 3]


class Deployment(Strict):
    """The entry's one part beside its name in links."""

    basic: Basic
    dp_variant: Variant
    privacy_loss: PrivacyLoss
    deployment_model: DeploymentModel
    implementation: Implementation
    administrative: Administrative


class Entry(Strict):
    """One file of the registry."""

    url_slug: Words
    deployment: Deployment


def render(entry: Entry) -> str:
    """The entry as YAML, with what people still have to choose in comments."""
    text = yaml.safe_dump(
        entry.model_dump(),
        sort_keys=False,
        allow_unicode=True,
        width=1 << 20,  # one value a line, so that no text can look like a key of its own
    )
    for key, words in _FOR_PEOPLE.items():
        line = re.compile(rf"^([ -]*{key}: .*)$", re.MULTILINE)
        text = line.sub(rf"\1  # {TODO} {words}", text, count=1)
    return f"# {TODO} add deployment.{_MISSING}\n{text}"
