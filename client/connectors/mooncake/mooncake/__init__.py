"""The Python module names of Mooncake's store, served by Tiercel. Installed by choice, in place of Mooncake's own package.

Guide: docs/engines/mooncake.md.
"""

__version__ = "0.1.0"
