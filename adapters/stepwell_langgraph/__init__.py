"""LangGraph's checkpointer and store on a stepwell log."""

from stepwell_langgraph.saver import StepwellSaver
from stepwell_langgraph.store import StepwellStore, Version

__all__ = ["StepwellSaver", "StepwellStore", "Version"]
