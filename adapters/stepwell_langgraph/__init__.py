"""LangGraph's checkpointer, store and cache on a stepwell log."""

from stepwell_langgraph.catalogue import SavedThread
from stepwell_langgraph.node_cache import StepwellCache
from stepwell_langgraph.saver import StepwellSaver
from stepwell_langgraph.store import StepwellStore, Version

__all__ = ["SavedThread", "StepwellCache", "StepwellSaver", "StepwellStore", "Version"]
