"""Answers of models with the fields that providers' packages fill in, as far as their values are not said by a model.

The shapes were taken from langchain-anthropic 1.7 and 0.3, langchain-openai 1.7 (both APIs), langchain-google-genai
4.4 and langchain-ollama 1.1, by giving them responses; counts and tokens are drawn.
"""

import json
from collections.abc import Callable
from typing import Any

from langchain_core.messages import AIMessage, ToolCall

from wordless import Source

Provider = Callable[[Source, str, str, list[ToolCall]], AIMessage]
"""An answer, from a source of tokens, a version for the model's name, the text, and the calls."""


def _anthropic(source: Source, version: str, text: str, calls: list[ToolCall]) -> AIMessage:
    return _claude(source, version, text, calls, {}, {}, {})


def _anthropic_of_today(source: Source, version: str, text: str, calls: list[ToolCall]) -> AIMessage:
    before = {"container": None, "diagnostics": None}
    within = {"inference_geo": None, "output_tokens_details": None, "speed": None}
    return _claude(source, version, text, calls, before, within, {"stop_details": None})


def _claude(
    source: Source,
    version: str,
    text: str,
    calls: list[ToolCall],
    before: dict[str, Any],
    usage: dict[str, Any],
    stop: dict[str, Any],
) -> AIMessage:
    sent, written, cached, made = _counts(source)
    model = f"claude-{source.name()}-{version}"
    blocks: list[Any] = [{"text": text, "type": "text"}] if source.rng.random() < 0.9 else []
    if source.rng.random() < 0.1:
        blocks.insert(0, {"signature": source.token(200), "thinking": source.text(40, 300), "type": "thinking"})
    blocks += [{"id": c["id"], "input": c["args"], "name": c["name"], "type": "tool_use"} for c in calls]
    used = {
        "cache_creation": {"ephemeral_1h_input_tokens": 0, "ephemeral_5m_input_tokens": made},
        "cache_creation_input_tokens": made,
        "cache_read_input_tokens": cached,
        "input_tokens": sent,
        "output_tokens": written,
        "server_tool_use": None,
        "service_tier": "standard",
        **usage,
    }
    metadata: dict[str, Any] = {
        "id": f"msg_01{source.token(22)}",
        **before,
        "model": model,
        **stop,
        "stop_reason": "tool_use" if calls else "end_turn",
        "stop_sequence": None,
        "usage": dict(sorted(used.items())),
        "model_name": model,
        "model_provider": "anthropic",
    }
    details = {"cache_read": cached, "cache_creation": made}
    details |= {"ephemeral_5m_input_tokens": made, "ephemeral_1h_input_tokens": 0}
    return AIMessage(
        blocks if calls or len(blocks) > 1 else text,
        id=_run_id(source),
        tool_calls=calls,
        response_metadata=metadata,
        usage_metadata=_usage(sent + cached, written, details),
    )


def _anthropic_streamed(source: Source, version: str, text: str, calls: list[ToolCall]) -> AIMessage:
    sent, written, cached, _ = _counts(source)
    blocks: list[Any] = [{"text": text, "type": "text", "index": 0}]
    blocks += [
        {
            "id": call["id"],
            "input": {},
            "name": call["name"],
            "type": "tool_use",
            "index": index,
            "partial_json": json.dumps(call["args"]),
        }
        for index, call in enumerate(calls, 1)
    ]
    return AIMessage(
        blocks if calls else text,
        id=_run_id(source),
        tool_calls=calls,
        response_metadata={
            "model_name": f"claude-{source.name()}-{version}",
            "model_provider": "anthropic",
            "stop_reason": "tool_use" if calls else "end_turn",
            "stop_sequence": None,
        },
        usage_metadata=_usage(sent + cached, written, {"cache_read": cached, "cache_creation": 0}),
    )


def _openai(source: Source, version: str, text: str, calls: list[ToolCall]) -> AIMessage:
    sent, written, cached, reasoned = _counts(source)
    return AIMessage(
        text if not calls or source.rng.random() < 0.3 else "",
        additional_kwargs={"refusal": None},
        id=_run_id(source),
        tool_calls=calls,
        response_metadata={
            "token_usage": {
                "completion_tokens": written,
                "prompt_tokens": sent,
                "total_tokens": sent + written,
                "completion_tokens_details": {
                    "accepted_prediction_tokens": 0,
                    "audio_tokens": 0,
                    "reasoning_tokens": reasoned,
                    "rejected_prediction_tokens": 0,
                },
                "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": cached},
            },
            "model_provider": "openai",
            "model_name": f"gpt-{source.name()}-{version}",
            "system_fingerprint": f"fp_{source.rng.getrandbits(40):010x}",
            "id": f"chatcmpl-{source.token(29)}",
            "service_tier": "default",
            "finish_reason": "tool_calls" if calls else "stop",
            "logprobs": None,
        },
        usage_metadata=_usage(sent, written, {"audio": 0, "cache_read": cached}, {"audio": 0, "reasoning": reasoned}),
    )


def _openai_responses(source: Source, version: str, text: str, calls: list[ToolCall]) -> AIMessage:
    sent, written, cached, reasoned = _counts(source)
    name = f"gpt-{source.name()}-{version}"
    blocks: list[Any] = (
        [] if calls else [{"type": "text", "text": text, "annotations": [], "id": _hex_id(source, "msg")}]
    )
    blocks += [
        {
            "arguments": json.dumps(call["args"]),
            "call_id": call["id"],
            "name": call["name"],
            "type": "function_call",
            "id": _hex_id(source, "fc"),
            "status": "completed",
        }
        for call in calls
    ]
    return AIMessage(
        blocks,
        id=_hex_id(source, "resp"),
        tool_calls=calls,
        response_metadata={
            "id": _hex_id(source, "resp"),
            "created_at": float(source.rng.randrange(1_700_000_000, 2_000_000_000)),
            "metadata": {},
            "model": name,
            "object": "response",
            "service_tier": "default",
            "status": "completed",
            "model_provider": "openai",
            "model_name": name,
        },
        usage_metadata=_usage(sent, written, {"cache_read": cached}, {"reasoning": reasoned}),
    )


def _google(source: Source, version: str, text: str, calls: list[ToolCall]) -> AIMessage:
    sent, written, cached, reasoned = _counts(source)
    asked = {"function_call": {"name": calls[0]["name"], "arguments": json.dumps(calls[0]["args"])}} if calls else {}
    return AIMessage(
        "" if calls else text,
        additional_kwargs=asked,
        id=_run_id(source),
        tool_calls=calls,
        response_metadata={
            "finish_reason": "STOP",
            "model_name": f"gemini-{source.name()}-{version}",
            "safety_ratings": [],
            "model_provider": "google_genai",
        },
        usage_metadata=_usage(sent, written, {"cache_read": cached}, {"reasoning": reasoned}),
    )


def _ollama(source: Source, version: str, text: str, calls: list[ToolCall]) -> AIMessage:
    sent, written, *_ = _counts(source)
    name = f"{source.name()}:{source.digits(2)}b"
    durations = [source.rng.randrange(10**7, 10**10) for _ in range(4)]
    return AIMessage(
        "" if calls else text,
        id=_run_id(source),
        tool_calls=calls,
        response_metadata={
            "model": name,
            "created_at": f"20{source.digits(2)}-0{source.rng.randint(1, 9)}-1{source.digits(1)}T1{source.digits(1)}:"
            f"{source.rng.randint(10, 59)}:{source.rng.randint(10, 59)}.{source.digits(6)}Z",
            "done": True,
            "done_reason": "stop",
            "total_duration": durations[0],
            "load_duration": durations[1],
            "prompt_eval_count": sent,
            "prompt_eval_duration": durations[2],
            "eval_count": written,
            "eval_duration": durations[3],
            "logprobs": None,
            "model_name": name,
            "model_provider": "ollama",
        },
        usage_metadata=_usage(sent, written),
    )


def _bare(source: Source, version: str, text: str, calls: list[ToolCall]) -> AIMessage:
    """A model of the user's own, or a test's."""
    return AIMessage(text, id=_run_id(source), tool_calls=calls)


def _counts(source: Source) -> tuple[int, int, int, int]:
    rng = source.rng
    return (
        rng.randint(4, 9_000),
        rng.randint(20, 2_000),
        rng.choice((0, rng.randint(1, 60_000))),
        rng.choice((0, 0, 512)),
    )


def _usage(sent: int, written: int, *details: dict[str, int]) -> Any:
    names = ("input_token_details", "output_token_details")
    counts = {"input_tokens": sent, "output_tokens": written, "total_tokens": sent + written}
    return {**counts, **dict(zip(names, details, strict=False))}


def _run_id(source: Source) -> str:
    digits = f"{source.rng.getrandbits(128):032x}"
    return f"lc_run--{digits[:8]}-{digits[8:12]}-7{digits[13:16]}-b{digits[17:20]}-{digits[20:]}-0"


def _hex_id(source: Source, kind: str) -> str:
    return f"{kind}_0{source.rng.getrandbits(196):049x}"


PROVIDERS: dict[str, Provider] = {
    "anthropic": _anthropic,
    "anthropic-of-today": _anthropic_of_today,
    "anthropic-streamed": _anthropic_streamed,
    "openai": _openai,
    "openai-responses": _openai_responses,
    "google": _google,
    "ollama": _ollama,
    "bare": _bare,
}
