"""Osler: medical image diagnosis with neural networks, always with how sure it is, why, and what was checked.

The public names, loaded when they are first used, so that ``import osler`` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from osler.ablation import ablate as ablate
    from osler.allocator import keep_memory as keep_memory
    from osler.case import Answer as Answer
    from osler.case import Case as Case
    from osler.case import Diagnosis as Diagnosis
    from osler.case import Finding as Finding
    from osler.data import read_case_at as read_case
    from osler.diagnoses import write_diagnosis as write_diagnosis
    from osler.diagnosis import diagnose as diagnose
    from osler.estimator import Classifier as Classifier
    from osler.evaluation import evaluate as evaluate
    from osler.explanation import explain as explain
    from osler.image import Image as Image
    from osler.inspection import Inspection as Inspection
    from osler.inspection import inspect as inspect
    from osler.model import Model as Model
    from osler.model import load as load_model
    from osler.pretraining import pretrain as pretrain
    from osler.problem import Problem as Problem
    from osler.public_sets import download as download
    from osler.training import train as train

_WHERE = {
    "Answer": ("case", "Answer"),
    "Case": ("case", "Case"),
    "Classifier": ("estimator", "Classifier"),
    "Diagnosis": ("case", "Diagnosis"),
    "Finding": ("case", "Finding"),
    "Image": ("image", "Image"),
    "Inspection": ("inspection", "Inspection"),
    "Model": ("model", "Model"),
    "Problem": ("problem", "Problem"),
    "ablate": ("ablation", "ablate"),
    "diagnose": ("diagnosis", "diagnose"),
    "download": ("public_sets", "download"),
    "evaluate": ("evaluation", "evaluate"),
    "explain": ("explanation", "explain"),
    "inspect": ("inspection", "inspect"),
    "keep_memory": ("allocator", "keep_memory"),
    "load_model": ("model", "load"),
    "pretrain": ("pretraining", "pretrain"),
    "read_case": ("data", "read_case_at"),
    "train": ("training", "train"),
    "write_diagnosis": ("diagnoses", "write_diagnosis"),
}
__all__ = list(_WHERE)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"osler has no {name!r}")
    module, attribute = _WHERE[name]
    return getattr(importlib.import_module(f"osler.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
