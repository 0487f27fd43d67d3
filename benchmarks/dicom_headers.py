"""Headers of many small DICOM files: Osler against a loop over pydicom, and a whole cohort listed.

    python benchmarks/dicom_headers.py --files 10000 --repeats 7

Files are made in a temporary folder: 50 slices a series, 32x32 pixels, about 90 elements before the pixels, lengths
that differ from file to file as those of a scanner do. One process each, timed in turns, page cache warm. A loop over
10,000 files takes pydicom some seconds, so by default it reads each tenth file and its time is multiplied.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from pydicom import Dataset, dcmwrite, uid
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence

from osler import layouts
from osler.formats import dicom
from osler.formats.dicom import headers


def slice_of(series: int, number: int, random: np.random.Generator) -> Dataset:
    """A CT slice with the elements that scanners write, among them private ones and a sequence."""
    made = Dataset()
    made.SpecificCharacterSet = "ISO_IR 100"
    made.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    made.SOPClassUID, made.SOPInstanceUID = uid.CTImageStorage, uid.generate_uid()
    made.StudyDate = made.SeriesDate = made.AcquisitionDate = made.ContentDate = "20240131"
    made.StudyTime = made.SeriesTime = made.AcquisitionTime = made.ContentTime = f"{101010 + number}.25"
    made.AccessionNumber, made.Modality, made.Manufacturer = f"A{series}", "CT", "ACME MEDICAL SYSTEMS"
    made.InstitutionName, made.StationName, made.ReferringPhysicianName = "HOSPITAL", f"CT{series % 3}", ""
    made.StudyDescription, made.SeriesDescription = "CHEST", "AXIAL 1.25"
    made.ManufacturerModelName = "MODEL 64"
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = uid.CTImageStorage, f"1.2.{series}.{number}"
    made.ReferencedImageSequence = Sequence([reference])
    made.PatientName, made.PatientID, made.PatientBirthDate = "A^B", f"P{series:05d}", "19500101"
    made.PatientSex, made.PatientAge, made.PatientWeight = "FM"[series % 2], "070Y", 71.5
    made.BodyPartExamined, made.ScanOptions, made.SliceThickness, made.KVP = "CHEST", "HELICAL MODE", 1.25, 120
    made.DataCollectionDiameter, made.SoftwareVersions, made.ReconstructionDiameter = 500, "07MW18.4", 360
    made.ProtocolName, made.DistanceSourceToDetector, made.DistanceSourceToPatient = "5.1 CHEST", 949.1, 541
    made.GantryDetectorTilt, made.TableHeight, made.RotationDirection, made.ExposureTime = 0, 160.5, "CW", 570
    made.XRayTubeCurrent, made.Exposure, made.FilterType, made.GeneratorPower = 320 + number, 4, "BODY", 36000
    made.FocalSpots, made.ConvolutionKernel, made.PatientPosition = 1.2, "STANDARD", "FFS"
    made.StudyInstanceUID, made.SeriesInstanceUID = f"1.2.840.99999.1.{series}", f"1.2.840.99999.2.{series}"
    made.StudyID, made.SeriesNumber, made.AcquisitionNumber, made.InstanceNumber = str(series), 2, 1, number + 1
    made.ImagePositionPatient = [-180.0, -180.0, round(-200 + 1.25 * number, 3)]
    made.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    made.FrameOfReferenceUID, made.PositionReferenceIndicator = f"1.2.840.99999.3.{series}", "SN"
    made.SliceLocation, made.ImagesInAcquisition = round(-200 + 1.25 * number, 3), 50
    made.SamplesPerPixel, made.PhotometricInterpretation, made.Rows, made.Columns = 1, "MONOCHROME2", 32, 32
    made.PixelSpacing, made.BitsAllocated, made.BitsStored, made.HighBit = [0.7, 0.7], 16, 16, 15
    made.PixelRepresentation, made.WindowCenter, made.WindowWidth = 1, 40, 400
    made.RescaleIntercept, made.RescaleSlope, made.RescaleType = -1024, 1, "HU"
    block = made.private_block(0x0009, "ACME_01", create=True)
    for element in range(8):
        block.add_new(element, "LO" if element % 2 else "DS", str(element * 3 + number % 7))
    made.PixelData = random.integers(0, 2000, (32, 32)).astype(np.int16).tobytes()
    return made


def tree(folder: Path, count: int) -> list[str]:
    random = np.random.default_rng(0)
    paths = []
    for index in range(count):
        series, number = divmod(index, 50)
        made = slice_of(series, number, random)
        made.file_meta = FileMetaDataset()
        made.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        path = folder / f"patient{series:04d}" / f"{number:04d}.dcm"
        path.parent.mkdir(exist_ok=True)
        dcmwrite(path, made, enforce_file_format=True)
        paths.append(str(path))
    return paths


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--share", type=int, default=10, help="pydicom reads one file in so many")
    options = parser.parse_args()
    names = list(headers.TAGS)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        paths = tree(folder, options.files)
        some = paths[:: options.share]
        print(f"Python {platform.python_version()}, pydicom {pydicom.__version__}; {len(paths)} files, one process")

        def loop() -> list[Dataset]:
            return [pydicom.dcmread(path, stop_before_pixels=True) for path in some]

        def loop_values() -> list[dict[str, object]]:
            read = (pydicom.dcmread(path, stop_before_pixels=True) for path in some)
            return [{name: dataset.get(name) for name in names} for dataset in read]

        def loop_specific() -> list[dict[str, object]]:
            read = (pydicom.dcmread(path, stop_before_pixels=True, specific_tags=names) for path in some)
            return [{name: dataset.get(name) for name in names} for dataset in read]

        scale = len(paths) / len(some)
        works: dict[str, tuple[Callable[[], object], float]] = {
            f"osler, {len(names)} tags as text": (lambda: headers.read(paths), 1),
            "pydicom, stop_before_pixels": (loop, scale),
            "pydicom, the same, and the tags": (loop_values, scale),
            "pydicom, specific_tags": (loop_specific, scale),
            "osler, layouts.read of the tree": (lambda: layouts.read(folder), 1),
        }
        times: dict[str, list[float]] = {name: [] for name in works}
        for repeat in range(options.repeats + 1):
            for name, (work, factor) in works.items():
                dicom.files._header.cache_clear()
                taken = seconds(work) * factor
                if repeat:  # the first round warms up
                    times[name].append(taken)
    ours, bare = (times[name] for name in list(works)[:2])
    print(f"{options.repeats} interleaved repeats; pydicom's loops read {len(some)} files, times {scale:g}")
    for name, taken in times.items():
        ratios = [theirs / mine for theirs, mine in zip(taken, ours, strict=True)]
        listed = f"{statistics.median(taken):8.3f} s  (from {min(taken):.3f} to {max(taken):.3f})"
        print(f"  {name:34s} {listed}  {len(paths) / statistics.median(taken):9.0f} files/s", end="")
        print(f"  {statistics.median(ratios):6.1f} x osler's time ({min(ratios):.1f} to {max(ratios):.1f})")
    whole = [theirs / mine for theirs, mine in zip(bare, times["osler, layouts.read of the tree"], strict=True)]
    print(f"  pydicom, stop_before_pixels / layouts.read: {statistics.median(whole):.1f} x", end="")
    print(f" ({min(whole):.1f} to {max(whole):.1f})")


if __name__ == "__main__":
    main()
