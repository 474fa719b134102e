"""The language of an answer, as far as the judge needs it: English, Chinese, or the name of another one.

By script where it decides; languages in Latin letters by their commonest words. Text in none of these languages is
"unknown" where hardly a word of it is an English one. Too little text counts as English.
"""

from __future__ import annotations

import re

from rim_lens.behavior.word_vectors import shipped_vectors

_SCRIPTS = {
    "Japanese": re.compile("[\u3040-\u30ff]"),
    "Korean": re.compile("[\u1100-\u11ff\uac00-\ud7af]"),
    "Chinese": re.compile("[\u3400-\u4dbf\u4e00-\u9fff]"),
    "Russian or another in Cyrillic letters": re.compile("[\u0400-\u04ff]"),
    "Arabic or another in Arabic letters": re.compile("[\u0600-\u06ff]"),
    "Hindi or another in Devanagari": re.compile("[\u0900-\u097f]"),
    "Bengali": re.compile("[\u0980-\u09ff]"),
    "Tamil": re.compile("[\u0b80-\u0bff]"),
    "Telugu": re.compile("[\u0c00-\u0c7f]"),
    "Thai": re.compile("[\u0e00-\u0e7f]"),
    "Hebrew": re.compile("[\u0590-\u05ff]"),
    "Greek": re.compile("[\u0370-\u03ff]"),
}
_LEAST_LETTERS = 4
_COMMONEST = {
    "English": "the and of to is that it you for with this not are be as your have can i on or from will an in a "
    "but we they what how was my me if do so by at i'm it's don't can't cannot sorry",
    "German": "der die das und ist nicht ich zu ein eine mit für auf den dem des sich sie es von wie kann im auch als "
    "werden oder wird dass bei aber sind haben leider ihnen tut mir leid nach zum zur",
    "French": "le la les des et est un une pas que je ne pour vous dans sur avec ce qui au du en il par cette sont ou mais "
    "désolé peux mon votre être c'est n'est plus de",
    "Spanish": "el los las y es un una no que de la en por para con se lo del al su como más pero puedo siento mi esta este "
    "son o ser está información",
    "Portuguese": "o os as e é um uma não que de para com em do da no na dos das se por mais como mas eu posso você isso "
    "este esta são ser desculpe sinto ajudar ou",
    "Italian": "il lo gli e è un una non che di per con in del della dei delle sono mi posso si come più ma questo questa "
    "anche al alla dispiace o ho",
    "Dutch": "de het een en is niet ik van dat te voor met op zijn je kan er om maar ook als aan door worden deze dit "
    "helaas spijt naar of u",
    "Polish": "i w nie na się z do jest że to jak o ale po co przez dla od czy być może nie mogę jestem są oraz przykro mi",
    "Turkish": "ve bir bu için ile de da değil ben çok ne olarak gibi daha ama üzgünüm yardımcı olan var veya olabilir",
    "Indonesian or Malay": "yang dan di untuk dengan tidak ini itu dari saya anda dalam pada adalah ke akan bisa dapat atau maaf "
    "oleh sebagai karena",
    "Vietnamese": "là và của không có tôi bạn cho một các được này trong với để những người khi đó xin lỗi thể về",
    "Swedish": "och att det är en som på inte jag för av med den till ett kan har de om men du eller tyvärr ledsen från",
    "Romanian": "și de la în nu este un o că pentru cu pe să din care mai sunt dar îmi pare rău pot sau",
    "Czech": "a se na je že to s v ne do jako o pro by ale nebo jsem není omlouvám mohu jsou které při",
}
_ALSO_ENGLISH = "has had into than then there their them each more so would could should about"
_WORDS = {name: frozenset(words.split()) for name, words in _COMMONEST.items()}
_ENGLISH = _WORDS["English"] | set(_ALSO_ENGLISH.split())
_TOKEN = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
_LEAST_HITS = 3
_LEAST_WORDS = 3
_ENGLISH_SHARE = 0.4  # of the different words in lower case; real English answers have three quarters and more


def language_of(text: str) -> str:
    """English, Chinese, another language by name, or "unknown"; English where nothing speaks against it."""
    if not text.isascii():
        letters = sum(map(str.isalpha, text))
        counts = {name: len(pattern.findall(text)) for name, pattern in _SCRIPTS.items()}
        script = max(counts, key=lambda name: counts[name])
        if counts[script] >= min(_LEAST_LETTERS, letters) and sum(counts.values()) > letters / 2:
            # Japanese writes in Chinese characters too
            return "Japanese" if counts["Japanese"] >= _LEAST_LETTERS else script
    words = _TOKEN.findall(text[:2000].replace("’", "'"))
    tokens = [word.lower() for word in words]
    english = sum(token in _WORDS["English"] for token in tokens)
    if english > len(tokens) / 5:
        return "English"
    hits = {name: sum(token in words for token in tokens) for name, words in _WORDS.items()}
    best = max(hits, key=lambda name: hits[name])
    short = len(tokens) == 2 and len(_WORDS[best].intersection(tokens)) == 2  # "Lo siento."
    if (hits[best] >= _LEAST_HITS or short) and hits[best] > 2 * english:
        return best
    return "English" if _is_english(words) else "unknown"


def _is_english(words: list[str]) -> bool:
    """Whether enough of the words in lower case are English ones; names, single letters and few words say nothing."""
    plain = {word for word in words if word.islower() and len(word) > 1}
    if len(plain) < _LEAST_WORDS:
        return True
    vectors = shipped_vectors()
    known = sum(word in _ENGLISH or vectors.row(word.partition("'")[0]) is not None for word in plain)
    return known >= _ENGLISH_SHARE * len(plain)
