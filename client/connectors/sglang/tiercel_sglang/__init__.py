"""SGLang's HiCache storage in Tiercel, loaded as a dynamic backend. Guide: docs/engines/sglang.md.

    --hicache-storage-backend dynamic --hicache-storage-backend-extra-config '{"backend_name": "tiercel",
      "module_path": "tiercel_sglang", "class_name": "TiercelHiCache", "interface_v1": 1, "endpoint": "127.0.0.1:7400", "revision": "main"}'
"""

from .hicache import TiercelHiCache

__version__ = "0.1.0"
__all__ = ["TiercelHiCache"]
