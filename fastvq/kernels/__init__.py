"""The compiled kernels as functions on plain arrays; the quantizers are built on these.

Rows ``X`` are a 2-D array of any strides (Fortran order, slices, read-only, memory-mapped) and of
dtype float32, float64, float16, uint8 or int8: a block at a time is converted and packed, never
the whole array. The codebook's dtype, float32 or float64, is the precision of the arithmetic.
NaN, infinity and values too large to square are found while packing and raise ValueError.

:mod:`fastvq.reference` holds a plain NumPy twin of each function.
"""

from fastvq.kernels._assign import assign, assign_screened, assign_two, distances, pairwise, project
from fastvq.kernels._boxes import Boxes
from fastvq.kernels._call import thread_count
from fastvq.kernels._codebook import Prepared, prepare, widened
from fastvq.kernels._coding import pack_codes, rans_decode, rans_encode, symbol_counts, unpack_codes
from fastvq.kernels._integers import Int8Weight, gemm_dynamic, gemm_int8, quantize_rows
from fastvq.kernels._product import (
    Rotation,
    Subspaces,
    assign_subspaces,
    decode_subspaces,
    prepare_subspaces,
    rotate,
)
from fastvq.kernels._rows import extremes, row_norms, safe_scale, seed_gains, seed_update, sums
from fastvq.kernels._scalar import (
    Levels,
    Steps,
    decode_even,
    decode_levels,
    distinct_values,
    encode_even,
    encode_levels,
    optimal_codebook,
)
from fastvq.kernels._search import (
    Coded,
    as_words,
    nearest_by_bits,
    nearest_by_short_tables,
    nearest_by_tables,
    pack_short,
    subspace_tables,
)
from fastvq.kernels._stages import (
    CROSSED_BYTES,
    JoinedCodebooks,
    Stages,
    beam_search,
    decode_sums,
    distances_to_sums,
    join_codebooks,
    local_search,
    stage_values,
)

__all__ = [
    "Boxes",
    "Coded",
    "Int8Weight",
    "JoinedCodebooks",
    "Levels",
    "Prepared",
    "Rotation",
    "Stages",
    "Steps",
    "Subspaces",
    "assign",
    "assign_screened",
    "assign_subspaces",
    "assign_two",
    "beam_search",
    "decode_even",
    "decode_levels",
    "decode_subspaces",
    "decode_sums",
    "distances",
    "distances_to_sums",
    "distinct_values",
    "encode_even",
    "encode_levels",
    "extremes",
    "gemm_dynamic",
    "gemm_int8",
    "join_codebooks",
    "local_search",
    "nearest_by_bits",
    "nearest_by_short_tables",
    "nearest_by_tables",
    "optimal_codebook",
    "pack_codes",
    "pack_short",
    "pairwise",
    "prepare",
    "prepare_subspaces",
    "project",
    "quantize_rows",
    "rans_decode",
    "rans_encode",
    "rotate",
    "row_norms",
    "seed_gains",
    "seed_update",
    "stage_values",
    "subspace_tables",
    "sums",
    "symbol_counts",
    "unpack_codes",
]
