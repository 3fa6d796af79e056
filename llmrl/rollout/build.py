"""The engine that a recipe names, in this process."""

from __future__ import annotations

from llmrl.rollout.engine import EngineSettings, LocalEngine


def build_engine(settings: EngineSettings) -> LocalEngine:
    """The in-process engine that `settings.kind` names."""
    if settings.kind == "vllm":
        from llmrl.rollout.vllm import VLLMEngine

        return VLLMEngine(settings)
    if settings.kind == "native":
        from llmrl.rollout.native import NativeEngine

        return NativeEngine(settings)
    from llmrl.rollout.hf import HFEngine

    return HFEngine(settings)
