"""Conversations as token ids, in DeepSeek-V3.1/V3.2-Exp's wire format.

A conversation is {"messages": [...], "tools": [...] or absent}; messages have role, content, and an
assistant's may have `reasoning` and `tool_calls` [{"name", "arguments": {...}}]. Reasoning is
rendered only in the last assistant turn that follows a user (training shows the model what it will
itself have to write; a server leaves reasoning out of history).

render() gives (text, supervised) pieces; marks inside the caller's own text are not told apart
here, because no training text spells one.
"""
import json

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
THINK, THINK_END = "<think>", "</think>"
CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_SEP, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
OUTPUT, OUTPUT_END = "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"
FIRST_TOKENS = [BOS, EOS, PAD]  # ids 0, 1, 2
LAST_TOKENS = [
    "<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>", USER, ASSISTANT, "<|EOT|>",
    CALLS, CALLS_END, CALL, CALL_END, "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>",
    OUTPUT, OUTPUT_END, CALL_SEP, THINK, THINK_END, "｜DSML｜",
]  # the last ids of the vocabulary
SPECIAL = {BOS, EOS, PAD, "<|EOT|>"}  # those that decoding may skip


def tool_text(tools):
    """The definitions as the family's tool template writes them after the system text."""
    parts = ["\n\n## Tools\nYou have access to the following tools:\n"]
    for t in tools:
        schema = json.dumps(t.get("parameters", {}), ensure_ascii=False)
        parts.append(
            f"\n### {t['name']}\nDescription: {t.get('description', '')}\n\nParameters: {schema}\n"
        )
    parts.append(
        "\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
        f"{CALLS}{CALL}tool_call_name{CALL_SEP}tool_call_arguments{CALL_END}"
        "{{additional_tool_calls}}" + CALLS_END + "\n\nWhere:\n\n"
        "- `tool_call_name` must be an exact match to one of the available tools\n"
        "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters"
        " Schema\n- For multiple tool calls, chain them directly without separators or spaces\n"
    )
    return "".join(parts)


def call_text(calls):
    one = [
        CALL + c["name"] + CALL_SEP + json.dumps(c["arguments"], ensure_ascii=False) + CALL_END
        for c in calls
    ]
    return CALLS + "".join(one) + CALLS_END


def render(row, thinking=None, prompt_only=False):
    """Pieces (text, supervised). prompt_only: stop where the last assistant turn would begin;
    thinking then says whether the prompt opens <think> (default: the turn has reasoning)."""
    messages = row["messages"]
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    messages = [m for m in messages if m["role"] != "system"]
    pieces = [(BOS + system + (tool_text(row["tools"]) if row.get("tools") else ""), False)]
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=-1)
    after_user = False
    for i, m in enumerate(messages):
        if m["role"] == "user":
            pieces.append((USER + m["content"] + ASSISTANT, False))
            after_user = True
        elif m["role"] == "tool":
            pieces.append((OUTPUT + m["content"] + OUTPUT_END, False))
            after_user = False
        else:
            reasons = bool(m.get("reasoning")) and i == last
            if after_user:
                opens = thinking if thinking is not None and i == last else reasons
                pieces.append((THINK if opens else THINK_END, False))
            if prompt_only and i == last:
                return pieces
            text = m["content"] or ""
            if after_user and reasons:
                text = m["reasoning"] + THINK_END + text
            if m.get("tool_calls"):
                text += call_text(m["tool_calls"])
            pieces.append((text + EOS, True))
            after_user = False
    return pieces
