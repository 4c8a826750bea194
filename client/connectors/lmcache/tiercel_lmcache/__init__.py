"""LMCache's second level in Tiercel: an L2 adapter of LMCache's multiprocess server. Guide: docs/engines/lmcache.md.

    lmcache server ... --l2-adapter '{"type": "plugin", "module_path": "tiercel_lmcache", "class_name": "TiercelL2Adapter",
      "adapter_params": {"endpoint": "127.0.0.1:7400", "revision": "main"}}'
"""

from .adapter import TiercelL2Adapter, TiercelL2AdapterConfig

__version__ = "0.1.0"
__all__ = ["TiercelL2Adapter", "TiercelL2AdapterConfig"]
