"""DICOM files that tests write: a few tags, and pixels as they are given."""

from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmwrite, uid
from pydicom.dataset import FileMetaDataset


def dataset(pixels: np.ndarray, **tags: Any) -> Dataset:
    """A single slice or frames of grey pixels ``(rows, columns)`` or ``(frames, rows, columns)``."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = uid.CTImageStorage, uid.generate_uid()
    made.SeriesInstanceUID, made.StudyInstanceUID = "1.2.3", "1.2"
    made.Modality, made.PatientID = "CT", "p1"
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows, made.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        made.NumberOfFrames = len(pixels)
    made.BitsAllocated = made.BitsStored = 8 * pixels.dtype.itemsize
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for name, value in tags.items():
        setattr(made, name, value)
    made.HighBit = made.BitsStored - 1
    return made


def write(path: Path, made: Dataset, syntax: str = uid.ExplicitVRLittleEndian) -> Path:
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    path.parent.mkdir(parents=True, exist_ok=True)
    dcmwrite(path, made, enforce_file_format=True)
    return path


def in_patient(position: Any, row: Any = (1, 0, 0), column: Any = (0, 1, 0), spacing: Any = (1, 1)) -> dict[str, Any]:
    """Tags of a slice in the patient; ``spacing`` is that between rows, then between columns."""
    return {
        "ImagePositionPatient": [float(f"{number:.8g}") for number in position],
        "ImageOrientationPatient": [float(f"{number:.8g}") for number in (*row, *column)],
        "PixelSpacing": list(spacing),
        "SliceThickness": 2.5,
        "FrameOfReferenceUID": "1.2.3.4",
    }
