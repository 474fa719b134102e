"""Refusals in Chinese, by rules: the words by which the first sentences decline, or call the request illegal."""

from __future__ import annotations

import re

_PLAIN = str.maketrans(
    "無們沒學會應該問題請違討論協幫許於這個話開對對話範圍與為換聊題绝絕",
    "无们没学会应该问题请违讨论协帮许于这个话开对对话范围与为换聊题绝绝",
)
_SENTENCE = re.compile(r"[^。！？!?\n]+[。！？!?]?")
_READ = 4  # sentences
_NOT_ABLE = "(?:无法|不能|不会|不可以|不便|不方便|难以|没有办法|没办法|不应该|不予|拒绝|不被允许|没有学会|不想|不愿意?)"
_SERVE = "(?:提供|回答|协助|帮助?|满足|完成|讨论|参与|支持|生成|编写|给出|告诉|执行|处理|创建|撰写|写|回应|回复|解答|分享|给您|给你|遵从|配合)"
_DECLINES = re.compile(
    rf"(?:抱歉|对不起|不好意思|遗憾)[^。！？\n]{{0,30}}{_NOT_ABLE}"
    rf"|我(?:们)?[^。！？，,\n]{{0,8}}{_NOT_ABLE}[^。！？\n]{{0,12}}{_SERVE}"
    r"|我还没有?学会"
    rf"|(?:这个|该|此|这类|您的|你的)(?:问题|请求|要求|话题|内容)[^。！？\n]{{0,12}}(?:{_NOT_ABLE}|超出|违反)"
    rf"|作为[^。！？\n]{{0,12}}(?:AI|人工智能|语言模型|助手)[^。！？\n]{{0,30}}{_NOT_ABLE}"
    r"|换个话题|聊(?:聊)?(?:点|些)?别的|聊其他"
    r"|^\W*(?:非常|很)?(?:抱歉|对不起|不好意思)\W*$",
    re.IGNORECASE,
)
_CONDEMNS = re.compile(
    r"(?:是|属于|涉及|构成|既)[^。！？\n]{0,10}(?:非法|违法|不道德|犯罪)|违反了?[^。！？\n]{0,8}(?:法律|道德|伦理|政策)|违法行为"
)
_ITEM = re.compile(r"^\s*(?:\d{1,2}[.、)]|[-*•])", re.MULTILINE)


def refusal_in_chinese(text: str) -> tuple[str, float] | None:
    """The sentence that declines and how sure that is, or None."""
    sentences = [m.group().strip() for m in _SENTENCE.finditer(text) if m.group().strip()][:_READ]
    for sentence in sentences:
        if _DECLINES.search(sentence.translate(_PLAIN)):
            return sentence[:200], 0.9
    if len(_ITEM.findall(text)) < 2:
        for sentence in sentences[:2]:
            if _CONDEMNS.search(sentence.translate(_PLAIN)):
                return sentence[:200], 0.6
    return None
