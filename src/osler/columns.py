"""What a column of a cohort's table is, by its name alone: known at diagnosis, an outcome, an identifier, a date."""

import re
from typing import Literal

Meaning = Literal["outcome", "identifier", "date", "acquisition", "attribute", ""]

# Whole words of a name, * for any ending. The first meaning that fits counts, and what is ambiguous stands with the
# outcomes: a covariate that is withheld costs little, one that tells the answer costs all.
_WORDS: tuple[tuple[Meaning, str], ...] = (
    (
        "outcome",
        "surviv* death dead died deceased mortality alive outcome* prognos* los stay* discharge* transfer* icu mcu "
        "intubat* extubat* ventilat* vent oxy supplemental therap* treat* surgery resect* chemotherapy radiotherapy "
        "response relapse recurrence progression pfs dfs event censored diagn* patholog* histolog* biopsy "
        "grade* stage* birads pirads lirads tirads gleason tnm pcr test* vacc* serolog* severity score* label* "
        "target class truth gt incl* excl* criteri* report* impression conclusion finding* annotation* segment* "
        "mask* box* bbox contour* lesion* rating*",
    ),
    (
        "identifier",
        "id ids uid uuid mrn accession name* filename file path url uri link doi hash md5 sha* patientid caseid "
        "studyid imageid subjectid case subject image images group fold split",
    ),
    ("date", "date* time timestamp year month day offset birth* dob"),
    (
        "acquisition",
        "hospital site institution centre center city country state address zip postcode department ward scanner "
        "manufacturer device station operator radiologist reader licence license source view position portable "
        "protocol kvp exposure orientation",
    ),
    (
        "attribute",
        "age sex gender height weight bmi ethnicity race smok* packyears pack pulse heart* respiratory temperature "
        "saturation spo2 pressure bp sys* dias* symp* history hist menopaus* pregnan* comorbid* hypertension "
        "diabetes laterality side leukocyte* leucocyte* lymphocyte* neutrophil* thrombocyte* platelet* hemoglobin "
        "haemoglobin crp ldh creatinine glucose cholesterol blood hco3 wheezing cough* fever headache fatigue "
        "dyspn* nausea pain medication* medis psa ca125",
    ),
)


def meaning(name: str) -> Meaning:
    """What the name of a column says that it holds; empty where it says nothing.

    Outcomes are all that is known only with or after the diagnosis, other people's opinion of the image among them.
    """
    words = re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    for found, patterns in _WORDS:
        for pattern in patterns.split():
            if any(word.startswith(pattern[:-1]) if pattern[-1] == "*" else word == pattern for word in words):
                return found
    return ""
