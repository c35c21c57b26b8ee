"""Clinical-style notes that a small grammar makes up, with planted secrets; nobody is in them.

The demo and the tests need text that a language model can learn something from, that has subjects
with several records each, and that holds secrets whose leaking can be measured.  Real notes may not
be shipped, so these are made: a patient gets an age, a sex, one or two conditions and a clinician's
habits of writing; each note then follows from the condition (complaint, finding, assessment, drug,
plan belong together), in one of five forms.  That is the structure to be learned; the rest is noise
of numbers and word choice.

    {"patient_id": "SYNTHETIC-T-000017", "note_id": "SYNTHETIC-T-000017-2", "synthetic": true,
     "text": "58F w/ HTN. CC: headache x3d. VS: BP 164/98, HR 88. A: uncontrolled HTN. ..."}

Every row is marked in its ids and in a field of its own; the text itself is not, because the model
would learn the mark.  `part` separates worlds: "train" (T) and "held-out" (H) share the grammar and
no patient.  Secrets (`MRN 4837-2219`, an invented record number in each note of its patient) are
only in "train".

Guarantees: the same seed gives the same bytes on every Python, since only `Random.random` is used,
whose sequence Python promises to keep; patient number i does not depend on how many there are.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

Part = Literal["train", "held-out"]
Row = dict[str, Any]
ItemT = TypeVar("ItemT")

MARK = "SYNTHETIC"
_VERSION = "privft-synthetic-v1"


@dataclass(frozen=True, kw_only=True)
class Secret:
    """An invented record number and the patient in whose every note it stands."""

    patient_id: str
    text: str


@dataclass(frozen=True, kw_only=True)
class _Condition:
    short: str
    complaints: tuple[str, ...]
    findings: tuple[str, ...]
    assessments: tuple[str, ...]
    drugs: tuple[tuple[str, str, str], ...]  # name, dose, frequency
    plans: tuple[str, ...]
    labs: tuple[str, ...]
    clinic: str


def _condition(short: str, clinic: str, *columns: str) -> _Condition:
    complaints, findings, assessments, drugs, plans, labs = (
        tuple(cell.strip() for cell in column.split("|")) for column in columns
    )
    parsed = tuple(drug.split(", ") for drug in drugs)
    return _Condition(
        short=short,
        clinic=clinic,
        complaints=complaints,
        findings=findings,
        assessments=assessments,
        drugs=tuple((name, dose, frequency) for name, dose, frequency in parsed),
        plans=plans,
        labs=labs,
    )


_CONDITIONS = (
    _condition(
        *("HTN", "cardiology"),
        "headache|blurred vision|dizziness on standing|nosebleeds",
        "no JVD, lungs clear|S4 gallop, no edema|fundi with AV nicking",
        "uncontrolled HTN|HTN above goal|orthostasis from diuretic",
        "lisinopril, 20 mg, daily|amlodipine, 5 mg, daily|losartan, 50 mg, daily",
        "low salt diet|home BP log|BMP in 2 wk",
        "K 4.8, Cr 1.1|Na 138, K 3.4",
    ),
    _condition(
        *("T2DM", "endocrine"),
        "polyuria and thirst|tingling in both feet|fasting sugars over 200",
        "monofilament reduced at both feet|acanthosis at neck|no foot ulcer",
        "T2DM, poor control|diabetic neuropathy|T2DM, improving",
        "metformin, 1000 mg, BID|glargine, 18 units, QHS|empagliflozin, 10 mg, daily",
        "diabetic teaching|podiatry referral|retinal screening",
        "A1c 9.2|A1c 7.8, glucose 211|urine albumin 48",
    ),
    _condition(
        *("COPD", "pulmonary"),
        "worse dyspnea and green sputum|cough and wheeze|breathless on one flight of stairs",
        "diffuse wheeze, long expiration|accessory muscle use|barrel chest, faint breath sounds",
        "COPD exacerbation|COPD, stable|acute bronchitis on COPD",
        "prednisone, 40 mg, daily|tiotropium, 18 mcg, daily|azithromycin, 250 mg, daily",
        "smoking cessation|nebs Q4H|flu and pneumococcal vaccine",
        "CXR hyperinflated, no infiltrate|ABG pH 7.36, CO2 52",
    ),
    _condition(
        *("CHF", "cardiology"),
        "leg swelling|weight up 3 kg in a week|orthopnea, three pillows",
        "JVP 10 cm, bibasilar crackles|2+ pitting edema to knees|S3, displaced apex",
        "acute on chronic systolic CHF|volume overload|CHF, euvolemic now",
        "furosemide, 40 mg, BID|carvedilol, 6.25 mg, BID|spironolactone, 25 mg, daily",
        "daily weights|2 L fluid restriction|echo this week",
        "BNP 1240|BNP 860, Cr 1.4|EF 30%",
    ),
    _condition(
        *("asthma", "pulmonary"),
        "night cough and chest tightness|wheeze after cold air|albuterol use every 4 h",
        "scattered expiratory wheeze|good air movement, no wheeze|peak flow 60% of best",
        "asthma flare|moderate persistent asthma|exercise induced bronchospasm",
        "albuterol, 2 puffs, PRN|fluticasone, 110 mcg, BID|montelukast, 10 mg, QHS",
        "spacer teaching|asthma action plan|step up controller",
        "eos 6%|FEV1 72% predicted",
    ),
    _condition(
        *("GERD", "GI"),
        "burning after meals|sour taste at night|epigastric pain",
        "mild epigastric tenderness, no guarding|abdomen soft|no melena on exam",
        "GERD|possible peptic ulcer|dyspepsia",
        "omeprazole, 20 mg, daily|famotidine, 40 mg, QHS|sucralfate, 1 g, QID",
        "avoid NSAIDs and late meals|H pylori stool test|EGD if no better",
        "Hgb 13.1|H pylori negative",
    ),
    _condition(
        *("OA", "ortho"),
        "right knee pain on stairs|hip stiffness in the morning|left knee swelling",
        "crepitus, small effusion|reduced internal rotation|no warmth or redness",
        "knee OA|hip OA|OA flare, no infection",
        "acetaminophen, 1 g, TID|naproxen, 500 mg, BID|diclofenac gel, 4 g, QID",
        "PT referral|weight loss|steroid injection next visit",
        "XR joint space narrowing|uric acid 5.2",
    ),
    _condition(
        *("depression", "psychiatry"),
        "low mood and poor sleep|no appetite, no interest|early waking and guilt",
        "flat affect, no SI|tearful, good eye contact|slowed speech, oriented x3",
        "MDD, moderate|MDD in partial remission|adjustment disorder",
        "sertraline, 50 mg, daily|mirtazapine, 15 mg, QHS|bupropion, 150 mg, daily",
        "CBT referral|safety plan reviewed|PHQ9 at next visit",
        "TSH 2.1|PHQ9 16",
    ),
    _condition(
        *("UTI", "primary care"),
        "dysuria and frequency|flank pain and chills|cloudy urine",
        "suprapubic tenderness|no CVA tenderness|right CVA tenderness",
        "uncomplicated cystitis|pyelonephritis|recurrent UTI",
        "nitrofurantoin, 100 mg, BID|ciprofloxacin, 500 mg, BID|cephalexin, 500 mg, QID",
        "push fluids|urine culture sent|return if fever",
        "UA nitrite positive|WBC 13.4, UA leuks 3+",
    ),
    _condition(
        *("AF", "cardiology"),
        "palpitations at rest|fluttering and fatigue|skipped beats",
        "irregularly irregular, no murmur|rate 128, BP stable|lungs clear, no edema",
        "AF with RVR|paroxysmal AF|rate controlled AF",
        "metoprolol, 50 mg, BID|apixaban, 5 mg, BID|diltiazem, 120 mg, daily",
        "Holter for 48 h|discussed stroke risk|cardioversion if it persists",
        "INR 1.1|TSH 0.9, K 4.0",
    ),
    _condition(
        *("migraine", "neurology"),
        "throbbing left headache with nausea|aura then headache|headache worse with light",
        "neuro exam normal|neck supple, fundi sharp|photophobia, no focal deficit",
        "migraine with aura|migraine without aura|medication overuse headache",
        "sumatriptan, 50 mg, PRN|propranolol, 40 mg, BID|topiramate, 25 mg, QHS",
        "headache diary|limit triptans to 2 a week|sleep hygiene",
        "MRI brain normal|ESR 12",
    ),
    _condition(
        *("CKD", "nephrology"),
        "fatigue and itching|foamy urine|ankle swelling by evening",
        "pale conjunctivae, trace edema|no asterixis|BP above goal, lungs clear",
        "CKD 3b, stable|CKD 4, progressing|anemia of CKD",
        "sevelamer, 800 mg, TID|calcitriol, 0.25 mcg, daily|epoetin, 4000 units, weekly",
        "avoid NSAIDs|renal diet|vascular access planning",
        "Cr 2.6, eGFR 24|Hgb 9.4, ferritin 88|phos 5.9",
    ),
    _condition(
        *("hypothyroid", "endocrine"),
        "weight gain and cold intolerance|dry skin, hair loss|tired all day",
        "delayed ankle reflexes|small firm goiter|no thyroid nodule",
        "hypothyroidism, undertreated|hypothyroidism at goal|Hashimoto thyroiditis",
        "levothyroxine, 75 mcg, daily|levothyroxine, 100 mcg, daily|liothyronine, 5 mcg, daily",
        "take on empty stomach|recheck TSH in 6 wk|no change",
        "TSH 11.2, fT4 0.6|TSH 3.0",
    ),
    _condition(
        *("LBP", "ortho"),
        "back pain after lifting|pain down the left leg|stiff back in the morning",
        "SLR positive on left|paraspinal spasm, strength 5/5|no saddle anesthesia",
        "mechanical LBP|L5 radiculopathy|lumbar strain",
        "ibuprofen, 600 mg, TID|cyclobenzaprine, 10 mg, QHS|gabapentin, 300 mg, TID",
        "stay active|PT twice a week|MRI if weakness",
        "XR lumbar spine normal|CRP 3",
    ),
)

_PARTNERS = ("HLD", "obesity", "tobacco use", "OSA", "anxiety", "gout", "anemia")
_NEGATIVES = ("fever", "chest pain", "syncope", "weight loss", "vomiting", "SOB", "rash")
_ADVICE = (
    "rest and fluids",
    "to come in tomorrow",
    "to go to ED if worse",
    "to hold the next dose",
)
_COURSES = ("uneventful", "slow but steady", "brief O2 need", "one night of fever, then well")
_DAYS = ("Monday", "Tuesday", "Thursday", "Friday", "Sunday", "last night", "this morning")
_OBSERVED = ("resting comfortably", "up to chair", "ambulated in hall", "family at bedside")
_RESULTS = ("improved", "unchanged", "worse than last time", "at goal")


class _Writer:
    """One patient: a keyed generator and what stays the same from note to note."""

    def __init__(self, seed: int, part: Part, number: int) -> None:
        label = f"{_VERSION}|{seed}|{part}|{number}".encode()
        self._random = random.Random(int.from_bytes(hashlib.sha256(label).digest(), "big"))
        self.patient_id = f"{MARK}-{part[0].upper()}-{number:06d}"
        self.condition = self.pick(_CONDITIONS)
        self.age = self.between(19, 93)
        self.sex = self.pick("FM")
        self.partner = self.pick(_PARTNERS) if self.chance(0.5) else ""
        self.drug = self.pick(self.condition.drugs)
        self.forms = (self.pick(_FORMS), self.pick(_FORMS))

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def pick(self, items: Sequence[ItemT]) -> ItemT:
        return items[int(self._random.random() * len(items))]

    def between(self, low: int, high: int) -> int:
        return low + int(self._random.random() * (high - low + 1))

    @property
    def history(self) -> str:
        return self.condition.short + (f", {self.partner}" if self.partner else "")

    @property
    def prescription(self) -> str:
        return " ".join(self.drug)

    def duration(self) -> str:
        return f"{self.between(1, 9)}{self.pick('ddw')}"

    def vitals(self) -> str:
        systolic, diastolic = self.between(100, 179), 2 * self.between(25, 49)
        return f"BP {systolic}/{diastolic}, HR {self.between(56, 118)}"

    def note(self) -> str:
        if self.chance(0.25):
            self.drug = self.pick(self.condition.drugs)
        form = self.pick(self.forms)
        return form(self, self.condition)


def _clinic(w: _Writer, c: _Condition) -> str:
    return (
        f"{w.age}{w.sex} w/ {w.history}. CC: {w.pick(c.complaints)} x{w.duration()}. "
        f"VS: {w.vitals()}. A: {w.pick(c.assessments)}. P: {w.prescription}; {w.pick(c.plans)}."
    )


def _exam(w: _Writer, c: _Condition) -> str:
    return (
        f"S: {w.pick(c.complaints)}, denies {w.pick(_NEGATIVES)}. O: {w.pick(c.findings)}. "
        f"A/P: {w.pick(c.assessments)}. Start {w.prescription}. RTC {w.between(1, 8)} wk."
    )


def _telephone(w: _Writer, c: _Condition) -> str:
    return (
        f"TEL: {w.age}{w.sex} reports {w.pick(c.complaints)} since {w.pick(_DAYS)}; denies "
        f"{w.pick(_NEGATIVES)}. Advised {w.pick(_ADVICE)}. Continue {w.prescription}. "
        f"F/u {c.clinic}."
    )


def _results(w: _Writer, c: _Condition) -> str:
    return (
        f"Labs: {w.pick(c.labs)}, {w.pick(_RESULTS)}. Hx {w.history}. "
        f"Plan: {w.prescription}, {w.pick(c.plans)}. Repeat in {w.between(2, 12)} wk."
    )


def _discharge(w: _Writer, c: _Condition) -> str:
    return (
        f"DC: {w.age}{w.sex} admitted w/ {w.pick(c.complaints)}, dx {w.pick(c.assessments)}. "
        f"Course {w.pick(_COURSES)}, {w.pick(_OBSERVED)}. Home on {w.prescription}. "
        f"F/u {c.clinic} {w.between(1, 4)} wk."
    )


_FORMS = (_clinic, _exam, _telephone, _results, _discharge)


def _patient(
    seed: int, part: Part, number: int, *, most_notes: int, secret_share: float
) -> tuple[list[Row], Secret | None]:
    writer = _Writer(seed, part, number)
    count = writer.between(1, most_notes)
    holds_secret = writer.chance(secret_share) and part == "train"
    digits = f"{writer.between(0, 9999):04d}-{writer.between(0, 9999):04d}"
    secret = Secret(patient_id=writer.patient_id, text=f"MRN {digits}") if holds_secret else None
    rows = []
    for note in range(1, count + 1):
        text = writer.note()
        rows.append(
            {
                "patient_id": writer.patient_id,
                "note_id": f"{writer.patient_id}-{note}",
                "text": f"{secret.text}. {text}" if secret else text,
                "synthetic": True,
            }
        )
    return rows, secret


def _patients(
    seed: int, part: Part, patients: int, most_notes: int, secret_share: float
) -> Iterator[tuple[list[Row], Secret | None]]:
    if patients < 1 or most_notes < 1 or not 0 <= secret_share <= 1:
        raise ValueError(
            "expected patients >= 1, most_notes >= 1 and 0 <= secret_share <= 1, got "
            f"{patients}, {most_notes}, {secret_share}"
        )
    for number in range(patients):
        yield _patient(seed, part, number, most_notes=most_notes, secret_share=secret_share)


def generate(
    seed: int,
    patients: int,
    *,
    part: Part = "train",
    most_notes: int = 6,
    secret_share: float = 0.02,
) -> Iterator[Row]:
    """Rows of `patients` patients, each with 1 to `most_notes` notes (uniformly many).

    part: "held-out" shares no patient with "train" and holds no secrets.
    secret_share: the chance of each patient to have a planted record number.
    """
    for rows, _ in _patients(seed, part, patients, most_notes, secret_share):
        yield from rows


def secrets(
    seed: int, patients: int, *, most_notes: int = 6, secret_share: float = 0.02
) -> tuple[Secret, ...]:
    """The secrets that `generate` plants in "train" under the same arguments."""
    found = _patients(seed, "train", patients, most_notes, secret_share)
    return tuple(secret for _, secret in found if secret is not None)


def write_jsonl(path: Path, rows: Iterable[Row]) -> int:
    """Write rows as JSON lines; returns how many.  For made-up rows only: they are plaintext."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count
