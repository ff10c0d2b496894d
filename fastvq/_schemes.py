"""The names of the ways in which a model's weights can be stored.

They stand by themselves, so that the command line can list them before anything is loaded.
"""

__all__ = ["FEW_BITS", "INTEGERS", "SCHEMES"]

INTEGERS = ("int8",)  # layers multiply integers
FEW_BITS = ("int4", "codebook", "product", "sign", "auto")  # weights alone
SCHEMES = ("float32", "float16", *INTEGERS, *FEW_BITS)
