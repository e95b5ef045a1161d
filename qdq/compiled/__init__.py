"""The compiled part: statistics of tensors and the search for weight scales, written in C.

It is optional. Where it is missing, numpy computes the same bytes. `library` finds and loads it;
`tensor_measurement` and `scale_search` call it with arrays.
"""

from qdq.compiled.library import Library, describe_path, find_library

__all__ = ["Library", "describe_path", "find_library"]
