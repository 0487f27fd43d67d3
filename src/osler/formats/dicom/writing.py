"""Masks as a segmentation object (SEG; PS3.3 A.51): binary, a segment each, on the grid of their images."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from osler.case import Code, Source
from osler.formats.dicom import series
from osler.formats.dicom.series import Arranged
from osler.image import Affine
from osler.problem import Problem

if TYPE_CHECKING:
    from pydicom import Dataset

_SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"
# Patient and study are those of the source (PS3.3 C.7.1.1, C.7.2.1); true: empty where they are missing (type 2).
_COPIED = {
    **dict.fromkeys(("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"), True),
    **dict.fromkeys(("ReferringPhysicianName", "StudyID", "AccessionNumber"), True),
    **dict.fromkeys(("StudyInstanceUID", "StudyDescription", "PatientAge", "PatientSize", "PatientWeight"), False),
    **dict.fromkeys(
        ("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"), False
    ),
    **dict.fromkeys(("TimezoneOffsetFromUTC", "IssuerOfPatientID"), False),
}
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
# Context groups of Segmented Property Types (PS3.16), each with its category of CID 7150; the first with the name.
_GROUPS = (
    ("cid7194", Code("SCT", "49755003", "Morphologically Abnormal Structure")),
    ("cid7192", Code("SCT", "123037004", "Anatomical Structure")),
    ("cid7191", Code("SCT", "85756007", "Tissue")),
)
_SYNONYMS = {"tumor": "neoplasm", "tumour": "neoplasm", "oedema": "edema", "haemorrhage": "hemorrhage"}
_UNKNOWN = Code("SCT", "309825002", "Spatial and Relational Concept")
_DERIVED = Code("DCM", "113076", "Segmentation")
_PURPOSE = Code("DCM", "121322", "Source image for image processing operation")
_LEARNED = Code("DCM", "123110", "Artificial Intelligence")


@dataclass(frozen=True, eq=False)
class Drawn:
    """One segment before it is written.

    Attributes:
        name: of its class; ``label`` tells it from others of that class.
        masks: ``(time, depth, height, width)`` on the image's grid.
        code: of the class, where one is known; else it is looked up by its name.
    """

    name: str
    label: str
    masks: NDArray[np.bool_]
    code: Code | None = None


@dataclass(frozen=True)
class Maker:
    """Who drew: name of the software, its version, and the model's own name or hash."""

    software: str
    version: str
    model: str


def write(path: Path, source: Source, drawn: Sequence[Drawn], maker: Maker) -> None:
    """Writes masks of the image at ``source``, which must be DICOM; nothing is left half-written.

    Patient and study are those of the source, each frame refers to its image (and frame) there and repeats its
    place. Empty frames are left out where the source is one volume.

    Raises:
        Problem: the source cannot be read, or says neither where its slices lie nor that there is only one.
    """
    from pydicom import dcmwrite

    arranged = series.arrange(source.path, source.key, [])
    if source.frame is not None:
        arranged = Arranged(arranged.datasets, arranged.where[[source.frame]], arranged.geometry)
    if arranged.where.shape[1] > 1 and not isinstance(arranged.geometry, Affine):
        what = "its slices have no place in the patient, so no DICOM segmentation can be made of them"
        raise Problem(what, fix="take the NIfTI file")
    if not all(each.get(name) for each in arranged.datasets for name in _UIDS):
        what = "its image lacks a UID of its study, series or instance, so nothing can refer to it"
        raise Problem(what, fix="take the NIfTI file")
    made = _common(arranged, maker)
    _describe(made, arranged, drawn, maker)
    _frames(made, arranged, drawn)
    part = path.with_name(path.name + ".part")
    dcmwrite(part, made, enforce_file_format=True)
    part.replace(path)


@lru_cache
def coded(name: str) -> tuple[Code, Code]:
    """Category and type of a class by its name; a code of our own where the standard's lists do not have it."""
    from pydicom.sr.codedict import codes

    squashed = "".join(letter for letter in name.lower() if letter.isalnum())
    squashed = _SYNONYMS.get(squashed, squashed)
    for group, category in _GROUPS:
        known = getattr(codes, group)
        for keyword in known.dir():
            if keyword.lower() == squashed and keyword not in ("Background", "Normal"):
                found = getattr(known, keyword)
                return category, Code(found.scheme_designator, found.value, found.meaning)
    # A code value has at most 16 characters (PS3.5, SH).
    return _UNKNOWN, Code("99OSLER", squashed[:16] or "class", name[:64])


def _common(arranged: Arranged, maker: Maker) -> "Dataset":
    """Patient, study, series, equipment and what the object refers to."""
    from pydicom import Dataset, uid
    from pydicom.dataset import FileMetaDataset

    made, first, now = Dataset(), arranged.datasets[0], datetime.now(UTC)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    # Names of patients and of classes, in any script.
    made.SpecificCharacterSet = "ISO_IR 192"
    for name, always in _COPIED.items():
        if name in first:
            made[name] = first[name]
            if first[name].VR == "PN":
                setattr(made, name, str(first[name].value))
        elif always:
            setattr(made, name, "")
    made.SOPClassUID, made.SOPInstanceUID = _SEGMENTATION_STORAGE, uid.generate_uid()
    made.SeriesInstanceUID, made.SeriesNumber, made.InstanceNumber = uid.generate_uid(), 900, 1
    made.Modality, made.SeriesDescription = "SEG", f"{maker.software} segmentation"
    made.SeriesDate = made.ContentDate = made.InstanceCreationDate = now.strftime("%Y%m%d")
    made.SeriesTime = made.ContentTime = made.InstanceCreationTime = now.strftime("%H%M%S")
    made.Manufacturer, made.ManufacturerModelName = maker.software, maker.software
    made.DeviceSerialNumber, made.SoftwareVersions = maker.model[:64], maker.version
    if isinstance(arranged.geometry, Affine):
        made.FrameOfReferenceUID = arranged.geometry.frame or uid.generate_uid()
        made.PositionReferenceIndicator = first.get("PositionReferenceIndicator") or ""
    else:
        made.PatientOrientation = first.get("PatientOrientation") or ""
    sources = [_item(**_reference(each)) for each in arranged.datasets]
    uids = _item(SeriesInstanceUID=first.get("SeriesInstanceUID"), ReferencedInstanceSequence=sources)
    made.ReferencedSeriesSequence = [uids]
    return made


def _describe(made: "Dataset", arranged: Arranged, drawn: Sequence[Drawn], maker: Maker) -> None:
    """The segmentation image module (PS3.3 C.8.20.2)."""
    first = arranged.datasets[0]
    made.ImageType, made.ContentLabel = ["DERIVED", "PRIMARY"], "SEGMENTATION"
    made.ContentDescription = f"{maker.software}, model {maker.model}"[:64]
    made.ContentCreatorName, made.LossyImageCompression = (
        f"{maker.software}^",
        first.get("LossyImageCompression") or "00",
    )
    for name in (
        ("LossyImageCompressionRatio", "LossyImageCompressionMethod") if made.LossyImageCompression == "01" else ()
    ):
        if name in first:
            made[name] = first[name]
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    made.Rows, made.Columns = drawn[0].masks.shape[-2:]
    made.BitsAllocated, made.BitsStored, made.HighBit = 1, 1, 0
    made.SegmentationType, made.SegmentsOverlap = "BINARY", "YES" if _overlap(drawn) else "NO"
    segments = []
    for number, one in enumerate(drawn, 1):
        category, kind = coded(one.name)
        algorithm = _item(
            AlgorithmFamilyCodeSequence=[_code(_LEARNED)],
            AlgorithmName=maker.software,
            AlgorithmVersion=f"{maker.version} {maker.model}"[:64],
            AlgorithmSource=maker.software,
        )
        segments.append(
            _item(
                SegmentNumber=number,
                SegmentLabel=one.label[:64],
                SegmentAlgorithmType="AUTOMATIC",
                SegmentAlgorithmName=f"{maker.software} {maker.model}"[:64],
                SegmentationAlgorithmIdentificationSequence=[algorithm],
                SegmentedPropertyCategoryCodeSequence=[_code(category)],
                SegmentedPropertyTypeCodeSequence=[_code(one.code or kind)],
            )
        )
    made.SegmentSequence = segments


def _overlap(drawn: Sequence[Drawn]) -> bool:
    seen = np.zeros(drawn[0].masks.shape, bool)
    for one in drawn:
        if (seen & one.masks).any():
            return True
        seen |= one.masks
    return False


def _frames(made: "Dataset", arranged: Arranged, drawn: Sequence[Drawn]) -> None:
    """Frames in the order of segments, moments and slices, with their functional groups (PS3.3 C.7.6.16)."""
    from pydicom.pixels.utils import pack_bits

    moments, depth, _ = arranged.where.shape
    matrix = arranged.geometry.matrix if isinstance(arranged.geometry, Affine) else None
    # A loop without places is known by its number of frames only, so all of them are there.
    whole = moments > 1 or matrix is None
    each = [
        (number, moment, level)
        for number, one in enumerate(drawn, 1)
        for moment in range(moments)
        for level in range(depth)
        if whole or one.masks[moment, level].any()
    ]
    pointers = [("ReferencedSegmentNumber", "SegmentIdentificationSequence")]
    if moments > 1:
        pointers.append(("TemporalPositionIndex", "FrameContentSequence"))
    if matrix is not None:
        pointers.append(("ImagePositionPatient", "PlanePositionSequence"))
    _dimensions(made, pointers)
    made.SharedFunctionalGroupsSequence = [_shared(arranged)]
    made.PerFrameFunctionalGroupsSequence = [_group(arranged, *place, matrix) for place in each]
    made.NumberOfFrames = len(each)
    stacked = np.stack([drawn[number - 1].masks[moment, level] for number, moment, level in each])
    made.PixelData = pack_bits(stacked.astype(np.uint8))
    made["PixelData"].VR = "OB"


def _dimensions(made: "Dataset", pointers: Sequence[tuple[str, str]]) -> None:
    from pydicom import uid
    from pydicom.datadict import tag_for_keyword

    one = uid.generate_uid()
    made.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=one)]
    made.DimensionIndexSequence = [
        _item(
            DimensionOrganizationUID=one,
            DimensionIndexPointer=tag_for_keyword(name),
            FunctionalGroupPointer=tag_for_keyword(group),
            DimensionDescriptionLabel=name,
        )
        for name, group in pointers
    ]


def _shared(arranged: Arranged) -> "Dataset":
    if not isinstance(arranged.geometry, Affine):
        return _item()
    matrix = arranged.geometry.matrix
    x, y, _ = arranged.geometry.spacing
    row, column = matrix[:3, 0] / x, matrix[:3, 1] / y
    # Along the normal: the slices of a tilted gantry are shifted against each other, which their positions say.
    step = _number(abs(float(np.cross(row, column) @ matrix[:3, 2])))
    return _item(
        PlaneOrientationSequence=[_item(ImageOrientationPatient=[_number(part) for part in (*row, *column)])],
        PixelMeasuresSequence=[
            _item(PixelSpacing=[_number(y), _number(x)], SliceThickness=step, SpacingBetweenSlices=step)
        ],
    )


def _group(arranged: Arranged, number: int, moment: int, level: int, matrix: NDArray[np.float64] | None) -> "Dataset":
    file, frame = (int(part) for part in arranged.where[moment, level])
    dataset = arranged.datasets[file]
    reference = _reference(dataset, frame)
    source = _item(**reference, SpatialLocationsPreserved="YES", PurposeOfReferenceCodeSequence=[_code(_PURPOSE)])
    made = _item(
        DerivationImageSequence=[_item(SourceImageSequence=[source], DerivationCodeSequence=[_code(_DERIVED)])],
        SegmentIdentificationSequence=[_item(ReferencedSegmentNumber=number)],
    )
    index, content = [number], {}
    if arranged.where.shape[0] > 1:
        index.append(moment + 1)
        content["TemporalPositionIndex"] = moment + 1
    if matrix is not None:
        index.append(level + 1)
        position = matrix[:3, 3] + level * matrix[:3, 2]
        made.PlanePositionSequence = [_item(ImagePositionPatient=[_number(part) for part in position])]
    made.FrameContentSequence = [_item(DimensionIndexValues=index, **content)]
    return made


def _reference(dataset: "Dataset", frame: int | None = None) -> dict[str, Any]:
    found = {"ReferencedSOPClassUID": dataset.SOPClassUID, "ReferencedSOPInstanceUID": dataset.SOPInstanceUID}
    several = frame is not None and int(dataset.get("NumberOfFrames") or 1) > 1
    return {**found, "ReferencedFrameNumber": frame + 1} if several and frame is not None else found


def _item(**tags: Any) -> "Dataset":
    from pydicom import Dataset

    made = Dataset()
    for name, value in tags.items():
        setattr(made, name, value)
    return made


def _code(code: Code) -> "Dataset":
    return _item(CodeValue=code.value, CodingSchemeDesignator=code.scheme, CodeMeaning=code.meaning)


def _number(value: float) -> Any:
    """As exact as the 16 characters of a decimal string allow (PS3.5, DS)."""
    from pydicom.valuerep import DSfloat

    return DSfloat(float(value), auto_format=True)
