"""vLLM's KV connector to Tiercel. Guide: docs/engines/vllm.md.

vllm serve MODEL --kv-transfer-config '{"kv_connector": "TiercelConnector", "kv_connector_module_path": "tiercel_vllm",
  "kv_role": "kv_both", "kv_load_failure_policy": "recompute", "kv_connector_extra_config": {"endpoint": "127.0.0.1:7400"}}'
"""

from .connector import TiercelConnector

__version__ = "0.1.0"
__all__ = ["TiercelConnector"]
