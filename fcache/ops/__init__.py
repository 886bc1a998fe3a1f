"""The operators that fcache brings itself: multi-scale deformable attention."""

from fcache.ops.library import KernelUse, kernels_in_use
from fcache.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_sampled

__all__ = ["KernelUse", "kernels_in_use", "ms_deform_attn", "ms_deform_attn_sampled"]
