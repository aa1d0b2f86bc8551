"""LangGraph's checkpointer on a stepwell log."""

from stepwell_langgraph.catalogue import SavedThread
from stepwell_langgraph.saver import StepwellSaver

__all__ = ["SavedThread", "StepwellSaver"]
