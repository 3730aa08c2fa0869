"""MetaImage: axes in space out of a header; https://itk.org/Wiki/ITK/MetaIO."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnunetv2_meddino.imaging.text_headers import read_header
from pretraining.curation.readers.raw_image import MM_PER_UNIT, RawImage, as_three_axes
from pretraining.curation.volume import Rejected


def read_metaimage(path: Path) -> RawImage:
    """Read one file; raises ``Rejected`` or ``DamagedError``."""
    header = read_header(path)
    fields, sizes, kind = header.fields, header.sizes, header.fields["elementtype"].upper()
    if int(fields.get("elementnumberofchannels", "1")) > 1 or kind.endswith("_ARRAY"):
        raise Rejected("rgb", f"every voxel holds several values ({kind})")
    shape = as_three_axes(sizes[::-1])
    spacing = [float(size) for size in fields.get("elementspacing", fields.get("elementsize", "")).split()]
    if len(spacing) < 3:
        raise Rejected("bad_geometry", "the MetaImage header has no ElementSpacing")
    n = len(sizes)
    matrix = fields.get("transformmatrix", fields.get("rotation", fields.get("orientation")))
    # by definition the identity where there is no matrix
    cosines = np.eye(n) if matrix is None else np.reshape([float(cosine) for cosine in matrix.split()], (n, n))
    unit = fields.get("distanceunits", "mm").lower()
    sizes_mm = np.array(spacing[:3]) * MM_PER_UNIT.get(unit, 1.0)
    axes = (cosines[:3, :3] * sizes_mm[:, np.newaxis])[::-1]
    values = header.values().reshape(shape)
    return RawImage(values, axes, metadata={"format": "metaimage"}, unit=unit if unit in MM_PER_UNIT else "mm")
