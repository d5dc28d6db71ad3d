"""The examples of kernels/README.md once more, by the kernels."""

from ..test_readme import before, test_example_gives_what_it_replaces

__all__ = ["before", "test_example_gives_what_it_replaces"]
