"""Chat templates (docs/method.md section 4), and the texts of completions."""

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np

from igpo_jax.families import LLADA_CHAT, ChatTemplate
from igpo_jax.tokenizers import Tokenizer


def chat_text(messages: Sequence[dict[str, str]], chat: ChatTemplate = LLADA_CHAT) -> str:
    """Returns messages as one text in a chat template, up to the start of the assistant's next message (docs/method.md
    section 4)."""
    return "".join(part for part, _ in _chat_parts(messages, chat))


def completion_text(tokenizer: Tokenizer, tokens: np.ndarray, whole: bool = False) -> str:
    """Returns the text of a completion, given its token ids, int [l]. The text ends before the first EOS, and in some chat
    templates also before the first end of a turn, unless `whole` is true."""
    ends = (tokenizer.eos_id, tokenizer.eot_id if tokenizer.chat.text_ends else tokenizer.eos_id)
    ended = np.flatnonzero(np.isin(tokens, [id for id in ends if id is not None]))
    return tokenizer.decode(tokens if whole or not ended.size else tokens[: ended[0]])


def encode_chat(tokenizer: Tokenizer, messages: Sequence[dict[str, str]]) -> list[int]:
    """Returns the token ids of messages in the chat template of the model's family, up to the start of the assistant's next
    message (see `chat_text`). If a message contains a marker of the chat template, the marker is encoded as ordinary text.
    Raises ValueError if the vocabulary lacks a marker, or if a message lacks a role or content."""
    missing = [marker for marker in tokenizer.chat.markers if tokenizer.special_id(marker) is None]
    if missing:
        lacking = f"the vocabulary has no {', '.join(missing)}: this is the tokenizer of a base model"
        raise ValueError(f"{lacking}, which knows no chat template; give raw prompts (chat=False)")
    ids: list[int] = []
    for part, is_marker in _chat_parts(messages, tokenizer.chat):
        ids += [cast(int, tokenizer.special_id(part))] if is_marker else tokenizer.encode(part)
    return ids


def encode_end_of_turn(tokenizer: Tokenizer) -> list[int]:
    """Returns the token ids with which the assistant ends its turn before EOS fills the row, or [] if the chat template ends texts
    with EOS only."""
    chat = tokenizer.chat
    if not chat.text_ends or tokenizer.eot_id in (None, tokenizer.eos_id):
        return []
    return [cast(int, tokenizer.eot_id), *tokenizer.encode(chat.between)]


def _chat_parts(messages: Sequence[dict[str, str]], chat: ChatTemplate) -> Iterator[tuple[str, bool]]:
    """Yields (text, whether it is a marker) for the parts of messages in a chat template. The parts are encoded one by one."""
    turns = _turns(messages, chat.strip)
    if chat.system and turns[0][0] != "system":
        turns = [("system", chat.system), *turns]
    if chat.begin:
        yield chat.begin, True
    for role, content in turns:
        yield from _header(chat, role, content)
        yield chat.end_of_turn, True
        if chat.between:
            yield chat.between, False
    yield from _header(chat, "assistant", chat.answer)


def _header(chat: ChatTemplate, role: str, content: str) -> Iterator[tuple[str, bool]]:
    yield chat.header, True
    if chat.end_header:
        yield role, False
        yield chat.end_header, True
        yield f"{chat.separator}{content}", False
    else:
        yield f"{role}{chat.separator}{content}", False


def _turns(messages: Sequence[dict[str, str]], strip: bool) -> list[tuple[str, str]]:
    if not messages:
        raise ValueError("a conversation needs at least one message")
    for message in messages:
        if set(message) != {"role", "content"} or not all(isinstance(value, str) for value in message.values()):
            raise ValueError(f"a message has the texts role and content, not {message!r}")
    return [(message["role"], message["content"].strip() if strip else message["content"]) for message in messages]
