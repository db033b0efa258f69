"""Vector files of any format, their ground truth, and where data sets lie."""

from .neighbours import RangeTruth, Truth, read_range_truth, read_truth, write_range_truth, write_truth
from .vectors import ENDINGS, Vectors, Writer, create_vectors, open_vectors

__all__ = [
    "ENDINGS",
    "RangeTruth",
    "Truth",
    "Vectors",
    "Writer",
    "create_vectors",
    "open_vectors",
    "read_range_truth",
    "read_truth",
    "write_range_truth",
    "write_truth",
]
