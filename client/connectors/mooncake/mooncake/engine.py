"""Mooncake's transfer engine is not served. LMCache and others take it where they find it, and do without where the
package `mooncake` is absent: for them it is."""

raise ModuleNotFoundError("mooncake.engine: Tiercel serves mooncake.store alone", name="mooncake")
