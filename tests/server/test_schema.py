"""What the server says of its answers is what is written."""

import json

import numpy as np
from pydantic import TypeAdapter

from osler import writing
from osler.case import Answer, Case, Diagnosis, Finding, Mask, Question
from osler.image import Affine, Image
from osler.server import schema


def test_a_diagnosis_with_places_is_as_described() -> None:
    mask = Mask(np.ones((1, 2, 3), bool), (0, 1, 1))
    placed = Finding("mask", "lesion", "model:0", 0.9, (0.5, 1.0), box=mask.box, mask=mask)
    answer = Answer(
        "mask", "segmentation", (placed, Finding("mask", "cyst", "model:0", 0.0)), ("lesion",), threshold=0.5,
        uncertainty=np.zeros((1, 1, 8, 8), np.float32),
    )  # fmt: skip
    said = Diagnosis("x", {"mask": answer}, None, False, (), (), (), "0" * 64, "torch", "float32", 0.1, 1.0)
    image = Image(np.zeros((1, 1, 1, 8, 8), np.uint8), Affine(np.eye(4)))
    question = Question("mask", "segmentation", ("lesion", "cyst"), values=((1,), (2,)))
    written = writing.as_data(said, Case("x", "x", {"image": image}), {"mask": question})
    text = json.dumps(written)
    # There and back: what is written is described, and what is described is written.
    kinds = TypeAdapter(schema.Diagnosis)
    back = kinds.validate_json(text)
    assert json.loads(kinds.dump_json(back)) == json.loads(text)
