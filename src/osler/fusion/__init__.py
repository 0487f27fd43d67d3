"""From what is known of a case by several sources to one vector: one way a file.

Every file holds ``Options`` (a frozen dataclass of plain types) and ``build(options, *, widths) -> Fusion``, where
``widths`` says how long the vector of each source is, by its name: ``image``, further images, ``covariates``. The
first source is the one that the others are beside.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from jaxtyping import Bool, Float
from torch import Tensor, nn


class Fusion(nn.Module, ABC):
    """What every fusion is.

    Attributes:
        features: length of the fused vector.
        absent: what stands for each source where it is not there, in the order of ``widths``, ``(width,)`` each;
            learned.
    """

    features: int
    absent: nn.ParameterList

    @abstractmethod
    def forward(
        self, vectors: Mapping[str, Float[Tensor, "b _"]], present: Bool[Tensor, "b s"]
    ) -> Float[Tensor, "b f"]:
        """The fused vectors.

        Args:
            vectors: by source, in the order of ``widths``; what stands where a source is absent does not matter.
            present: whether each source is there.
        """
