"""Models that read stage outputs: adapters, pixel decoder, masked decoder, and their losses.

Modules take tensors and plain numbers, never a config or a path.
"""

from fcache.models.adapter import ViTAdapter
from fcache.models.comer import ComerAdapter
from fcache.models.criterion import Losses, SetCriterion
from fcache.models.masked_decoder import MaskedDecoder
from fcache.models.matcher import HungarianMatcher, Match
from fcache.models.pixel_decoder import PixelDecoder
from fcache.models.points import SeededDraw
from fcache.models.predictions import ClipOutput, FrameOutput, Prediction
from fcache.models.pyramid import PyramidAdapter
from fcache.models.segmenter import Segmenter
from fcache.models.targets import Targets

__all__ = [
    "ClipOutput",
    "ComerAdapter",
    "FrameOutput",
    "HungarianMatcher",
    "Losses",
    "MaskedDecoder",
    "Match",
    "PixelDecoder",
    "Prediction",
    "PyramidAdapter",
    "SeededDraw",
    "Segmenter",
    "SetCriterion",
    "Targets",
    "ViTAdapter",
]
