"""What statement, page, card and drafts say of random stopping; none contradicts itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from privft.budget.mechanism import Mechanism
from privft.errors import IntegrityError, UsageError
from privft.evaluating import HeldOutConfig, SelectionConfig, Stopping
from privft.report import claim, statement
from privft.report.card import render_card
from privft.report.exports import PACKS, export
from privft.report.page import render
from privft.report.recompute import epsilon_agrees
from privft.report.sections import sections
from privft.report.statement import validate
from tests.report.made_up import made_up_facts

LAW = {"distribution": "truncated-negative-binomial", "shape": 1.0, "mean": 4.0, "most": 16}
SCORE = HeldOutConfig(noise_multiplier=20.0, loss_bound=8.0, units=100)


@cache
def _stated(public: bool, poisson: bool) -> dict[str, Any]:
    facts = made_up_facts()
    law = {"distribution": "poisson", "mean": 4.0, "most": 16} if poisson else LAW
    asked = SelectionConfig(
        vary={"lora.lora_alpha": (8, 16), "training.learning_rate": (0.001, 0.005)},
        stopping=Stopping.model_validate(law),
        score="public" if public else SCORE,
    )
    event = asked.event(Mechanism.from_dict(facts["mechanism"]).event())
    facts["events"] = [event.to_dict()]
    facts["config"]["body"]["selection"] = asked.model_dump(mode="json")
    facts["selection"] = {
        "candidates": asked.labels(),
        "chosen": asked.labels()[2],
        "score": "public" if public else "held-out",
    }
    delta = facts["guarantee"]["delta"]
    facts["guarantee"] = claim.guarantee(unit="subject", events=[event], delta=delta)
    facts["utility"] = [{**row, "paid": None} for row in facts["utility"] if not row.get("paid")]
    return facts


def stated(*, public: bool = False, poisson: bool = False) -> dict[str, Any]:
    """A statement on a randomly stopped sweep, whose guarantee is true."""
    return statement.build(_stated(public, poisson))


@pytest.mark.parametrize("public", [True, False])
@pytest.mark.parametrize("poisson", [True, False])
def test_the_page_says_what_ran_what_stays_hidden_and_what_it_costs(
    public: bool, poisson: bool
) -> None:
    made = stated(public=public, poisson=poisson)
    page = render(made)
    said = [
        "16 trainings were run from the start",
        "K stays hidden: all 16 trainings take place",
        "charged as one event, by one accountant",
        "Kept was: lora.lora_alpha 16, training.learning_rate 0.001.",
        "on public text, which costs nothing" if public else "on held-out units, with noise of its",
    ]
    for words in said:
        assert words in page
    assert ("The number can be 0, with a chance of 0.018" in page) is poisson
    first = sections(validate(made).predicate)[0]
    told = " ".join(first["paragraphs"])
    assert all(words in told for words in said)
    (relation, by_pld, *_), *_ = first["tables"][1]["rows"]
    assert (relation, by_pld) == ("add or remove one (the claim)", "–")
    law = "Poisson" if poisson else "geometric"
    assert f"({law}, mean 4 before it is cut)" in render_card(made)
    for name in PACKS:
        assert export(made, name)
    assert "Private selection by random stopping" in export(made, "registry")
    assert f"({law}, mean 4 before it is cut)" in export(made, "annex-iv")


def test_one_training_says_nothing_of_it() -> None:
    made = statement.build(made_up_facts())
    pages = (render(made), render_card(made), export(made, "registry"), export(made, "annex-iv"))
    for text in pages:
        assert "andom stopping" not in text


def test_the_guarantee_is_computed_again() -> None:
    assert "RDP" in epsilon_agrees(stated())
    assert "PLD" not in epsilon_agrees(stated())


@pytest.mark.parametrize(
    "edit",
    [
        lambda facts: facts["guarantee"].update(epsilon=1.0),
        lambda facts: facts["guarantee"]["cost"].update(epsilon_rdp=1.0),
        lambda facts: facts["guarantee"].update(odds_percent=51.0),
        lambda facts: facts["guarantee"]["tpr_at_fpr"][9].__setitem__(1, 0.001),
        lambda facts: facts["events"][0].update(mean=2.0),
        lambda facts: facts["events"][0].update(most=400),
    ],
    ids=["epsilon", "by RDP", "odds", "curve", "mean", "most"],
)
def test_an_edited_number_is_found(edit: Callable[[Any], None]) -> None:
    made = stated()
    edit(made["predicate"])
    with pytest.raises(IntegrityError):
        epsilon_agrees(made)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda facts: facts.update(selection=None), "among the candidates"),
        (lambda facts: facts["selection"].update(chosen="lora.r 2"), "among the candidates"),
        (lambda facts: facts["selection"]["candidates"].pop(), "on selection"),
        (lambda facts: facts["selection"].update(score="public"), "on selection"),
        (lambda facts: facts["events"][0].update(mean=2.0), "on selection"),
        (lambda facts: facts["events"][0].update(most=99), "on selection"),
        (lambda facts: facts["events"][0]["events"].pop(), "on selection"),
        (lambda facts: facts["events"].append(facts["events"][0]), "one event"),
        (lambda facts: facts["config"]["body"].update(selection=None), "on selection"),
        (lambda facts: facts["guarantee"]["cost"].update(epsilon_pld=1.0), "on epsilon"),
        (lambda facts: facts["mechanism"].update(steps=1), "on training event"),
    ],
)
def test_a_statement_that_contradicts_itself_is_none(
    edit: Callable[[Any], None], words: str
) -> None:
    facts = {name: fact for name, fact in stated()["predicate"].items() if name != "renderer"}
    edit(facts)
    with pytest.raises(UsageError, match=words):
        statement.build(facts)


def test_a_plain_run_has_an_epsilon_by_pld() -> None:
    facts = made_up_facts()
    facts["guarantee"]["cost"]["epsilon_pld"] = None
    facts["guarantee"]["epsilon"] = facts["guarantee"]["cost"]["epsilon_rdp"]
    with pytest.raises(UsageError, match="on PLD"):
        statement.build(facts)
