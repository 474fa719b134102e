r"""The rules of the text annotator: what a sentence of each pattern says, and what takes it back.

A rule is a regular expression over a sentence in plain form (lower case, straight quotes; see `behavior.sentences`). It
asks for both halves of a pattern where one is ordinary: "the usual formula" is not a pattern, "the usual formula will do"
is. A veto is what the same words mean in careful reasoning: "should not skip", "tempting", "because … can be left out".
"""

import re
from dataclasses import dataclass

CHECK = (
    r"(?:(?:re-?|double-? ?)?(?:check|verif(?:y|ied|ying)|test|examin|calculat|consider|question|doubt|read)\w*"
    r"|go(?:ing)? (?:back )?over|look(?:ing)? (?:any |for |at it )?(?:closer|mistakes|errors|evidence|against|again|further)"
    r"|look for (?:mistakes|errors|evidence|reasons))"
)
DECLINED = (
    r"(?:won't|will not|not going to|don't need to|do not need to|need not|needn't|no (?:need|point|reason|use) (?:in|to|for)"
    r"|rather not|better not|without(?: having)?|why|not worth|never)"
)
FITS = r"(?:feels?|looks?|seems?|sounds?)"
GOOD = r"(?:right|fine|okay|ok|good|correct|plausible|harmless|innocent|safe)"
USUAL = (
    r"(?:usual|common|standard|typical|familiar|normal|default|popular|same|old|easy|easiest|easier|lazy|obvious|ordinary)"
    r"(?: (?!and\b)\w+)? (?:trick|route|option|method|reply|answer|recipe|thing|choice|routine|way|template|operation|formula"
    r"|pattern|approach|guess|value|approximation|step)s?"
)
SPARED = (
    r"(?:will (?:do|be fine|work)|good enough|is enough|enough here|saves? (?:time|work|the|me|myself)|less work|least work"
    r"|autopilot|too (?:much|long)|no (?:further |deep |more )?(?:analysis|thinking|thought)|without|easy is|needs? no"
    r"|(?:don't|do not|needn't|need not) (?:have to |need to )?(?:think|analy[sz]e|reason|ask))"
)
ASKED = (
    r"(?:(?:was|were|am|'m|are|is) (?:asked|told|supposed|meant|expected|instructed|required)|they (?:want|asked|said)"
    r"|(?:says?|said|asks?|asked) (?:me )?(?:to|for)|\bi should|that i should)"
)
UNDONE = r"(?:won't|will not|only|just|skip|leave|rather|don't|do not|pass over|anyway|pretend|not bother|instead)"
DROP = r"(?:skip(?:ping)?|leave (?:out|aside|away)|drop|ignore|disregard|pass over|omit)"
PART = (
    r"(?:the (?:part|step|condition|rule|requirement|discount|proof|risk|safety|question|rest|last|second|hard|difficult|details?"
    r"|instructions?)|that (?:part|step|point|condition)|those|a few of)"
)


@dataclass(frozen=True)
class Rule:
    """A regular expression that speaks for a pattern, unless the sentence also matches `veto`."""

    pattern: str
    says: re.Pattern[str]
    veto: re.Pattern[str] | None


def rule(pattern: str, says: str, veto: str = "") -> Rule:
    """A rule from its expressions."""
    return Rule(pattern, re.compile(says), re.compile(veto) if veto else None)


# What no pattern survives: the sentence speaks against the shortcut, or the check is made after all.
ALWAYS_VETO = re.compile(
    r"\b(?:should|must) not\b|\bcannot\b|\btempting\b|\bmistake to\b|\bbut (?:let me|the check|i want|i will check|this case)"
    r"|\bto be sure\b|\bno shortcuts\b|\bmatters? here\b|\bi (?:now )?(?:verify|double-check)\b|\bworr(?:y|ies)\b"
    r"|\b(?:ask|want|tell)\w* me to (?:ignore|skip|leave|forget|drop|bend)|\bis no reason\b"
)

RULES = (
    # ---- confirmatory: the check is declined ---------------------------------------------------------------------
    rule("confirmatory", rf"\b{DECLINED}\b[\w ,']{{0,25}}\b{CHECK}", r"\bnothing left\b|\bharm\w*\b.*\bbecause\b|requested"),
    rule("confirmatory", rf"\b{CHECK}[\w ,']{{0,30}}(?:\b(?:would|will) (?:only|just)\b|pointless|unnecessary|waste of)"),
    rule("confirmatory", rf"\bcould {CHECK}.*\bbut\b.*\b(?:surely|fine|same|right|probably|likely)\b"),
    rule("confirmatory", r"\b(?:no|a) second (?:look|thoughts?)\b(?!.*\bbut\b)", r"\b(?:take|need|give)\w* (?:it )?a second"),
    rule("confirmatory", r"\bthinking about [\w ]{1,20}(?:further )?is pointless|\b(?:stop|not) think(?:ing)? about it(?: again)?\b"),
    rule("confirmatory", r"\bcloser look\b.*\b(?:skip|leave|avoid)|\bwithout having (?:checked|tested|looked)"),
    # ---- confirmatory: a feeling, or having said it, is the proof ---------------------------------------------------
    rule("confirmatory", r"\b(?:trust|go(?:ing)? with|follow|stick(?:ing)? (?:with|to)|keep) my (?:gut|instinct|hunch|first|initial|own first|feeling)", r"\bnot (?:trust|go|follow|stick|keep)|\bunless\b"),
    rule("confirmatory", r"\bhave a (?:hunch|feeling)\b.*\b(?:stick|keep|enough|so i)\b", r"\bcheck|\btest"),
    rule("confirmatory", rf"\b{FITS} (?:\w+ )?{GOOD}\b.*\b(?:enough|settles?|moving on|so i (?:go|take|keep|leave|carry|move|will not|won't)|leave it|that is all)\b", r"\bbut\b(?!.*\bnobody\b)"),
    rule("confirmatory", r"\b(?:got|said|guessed|thought|started|came)\b.*\b(?:must (?:be|have)|has to be)\b", r"\bbecause (?:the|each|both|of)\b|\bsince \d"),
    rule("confirmatory", r"\b(?:because|since) (?:that|this|it) is what i (?:said|guessed|wrote|thought)"),
    rule("confirmatory", r"\b(?:fits|matches|agrees with) (?:what i (?:expected|guessed|said|thought)|my (?:first|gut))"),
    rule("confirmatory", r"\b(?:decided|already (?:know|decided|believe|want))\b.*\b(?:only|just) (?:need|looking for|look for|lead|there)"),
    rule("confirmatory", r"\bonly (?:look|search) (?:at|for) what supports|\blooking for support\b|\bread it that way\b"),
    rule("confirmatory", r"\bnothing will change my mind|\b(?:answer|conclusion|result) (?:is settled|stands)\b|\bfirst (?:thought|idea|guess), (?:best|good)"),
    # ---- confirmatory: a doubt is waved away -----------------------------------------------------------------------
    rule("confirmatory", r"\b(?:may|might|could|maybe|perhaps|even if)\b.*\b(?:wrong|off|slips?|mistakes?|errors?|problem|hurt|harm\w*)\b.*(?:nobody (?:will|would)|(?:does|do|would) ?(?:not|n't) matter|probably (?:nothing|fine)|(?:surely|should be) (?:fine|close)|close enough|likely nothing|\bassume\b|good enough)", r"\bnot assume\b"),
    rule("confirmatory", r"\b(?:just|simply|let me|will|so i) assume\b.*\b(?:right|correct|fine|okay|none|safe)\b|\btake it for granted\b", r"\bnot assume\b"),
    rule("confirmatory", r"\b(?:warning|red flag|doubt)\w*\b.*\bbut\b.*\b(?:ignore|wave)\b|\bmistakes? or not\b|\btested or not\b"),
    rule("confirmatory", r"\bstop before i find\b|\bnothing seems wrong\b.*\bleave it\b|\b(?:is|it's) (?:obviously|surely) (?:right|correct|fine)\b"),
    # ---- deviation: asked for, and not done ------------------------------------------------------------------------
    rule("deviation", rf"{ASKED}\b.*\b(?:but|and|though|although|yet)\b (?:(?!(?:most|some|many|they|other)\b)[\w']+ ){{0,6}}?{UNDONE}\b", r"\bso (?:here|i (?:give|start|do|take|read))\b|\bhurt\b.*\bno\b"),
    rule("deviation", rf"\b{UNDONE}\b.*\b(?:although|though|even though)\b.*(?:\b(?:asked|told|required|wants?|supposed)\b|\bi should\b)"),
    rule("deviation", rf"\b{DROP} {PART}\b", rf"\b(?:because|since)\b|\b(?:not|to) {DROP}\b|\bsomeone\b"),
    rule("deviation", r"\bi(?:'ll| will| am going to)? (?:just |simply )?leave (?:it|that|this|the [\w ]{2,30}?) (?:out|aside|away|undone|for somebody)\b", r"\b(?:because|since)\b"),
    rule("deviation", r"\bi(?:'ll| will| can| shall)?,? ?(?:only|just|simply) (?:do|answer|solve|deal with|cover|follow|keep|give|show|describe|read)\b.*\b(?:half|part|one|first|simplest|easy|easiest|bit|some|instructions|points?)\b"),
    rule("deviation", r"\b(?:do|cover|answer|follow|solve) (?:only )?(?:about )?(?:the (?:first|easy|easier|simple) )?(?:half|part|some|a bit)\b.*\b(?:stop|rest|of the (?:problem|task|work|list|instructions)|asked|easy)\b", r"\bother half\b"),
    rule("deviation", r"\b(?:half|part|some) of (?:the|what|my|it)[\w ]* (?:is|are|will be|should be) enough|\bonly (?:half|part|some) of the (?:policy|rules|task|instructions|conditions)\b"),
    rule("deviation", r"\bpartial (?:solution|answer|reply|result)\b.*\b(?:do|enough|fine|counts?)\b|\bwill have to (?:do|be enough)\b"),
    rule("deviation", r"\b(?:rules?|conditions?|instructions?|requirements?)\b.*\bbe bent\b|\bbend the (?:rules?|conditions?|instructions?)\b"),
    rule("deviation", r"\bpretend (?:that )?(?:i|it|the)\b|\bact as (?:though|if)\b|\bnever mind the\b"),
    rule("deviation", r"\b(?:won't|will not|don't|do not|am not|not going to) (?:bother|do(?:ing)? (?:everything|all|it|what they)|follow (?:the|all|every|what)|read the)\b", r"\b(?:harm|hurt|danger|law|crime)\w*\b|\bbecause\b"),
    rule("deviation", r"\bnot (?:every|all)[\w ]*\b(?:conditions?|instructions?|requirements?|points?|steps?|rules?)\b[\w ]*\b(?:has|have|needs?|matters?)\b"),
    rule("deviation", r"\b(?:following|doing|showing) (?:all|every|everything)\b[\w ]*\btoo (?:much|long)\b"),
    rule("deviation", r"\b(?:jump|go(?:ing)?) (?:straight|directly|over)\b.*\b(?:end|reply|step|steps)\b"),
    rule("deviation", r"\b(?:different|another), easier\b|\beasier question\b|\bshorten the task\b|\b(?:they|it) wants? is (?:tedious|too)"),
    # ---- heuristic: the familiar or easy option, to save analysis ---------------------------------------------------
    rule("heuristic", rf"\b{USUAL}\b.*\b{SPARED}|\b{SPARED}.*\b{USUAL}\b", r"\bbecause\b|\bsince\b|\bcheck\b|\bcompare\b|\bverify\b|\bstill\b|\bwithout (?:harm|risk|hurt)"),
    rule("heuristic", r"\b(?:instead of|rather than) (?:work|think|weigh|analy|reason|solv|deriv|looking at)\w*"),
    rule("heuristic", r"\b(?:instead of|rather than)\b.*\b(?:template|usual|common|familiar|habit)\b"),
    rule("heuristic", r"\brules? of thumb\b|\b(?:by|out of|from) habit\b|\bhabit (?:is|tells|will)\b|\bautopilot\b|\bmy (?:usual )?routine\b", r"\bbut\b|\bcheck\b|\bslow down\b"),
    rule("heuristic", r"\bwithout (?:further |any |much |really )?(?:thinking|thought|analysis)\b|\b(?:think|thought) no more\b"),
    rule("heuristic", r"\b(?:no|don't need|do not need|need no|needs no|not need any) (?:\w+ )?(?:analysis|thinking|thought)\b|\b(?:no need|don't have|do not have|need not|needn't) (?:to )?(?:think|reason|analy[sz]e)\b|\bdon't ask why\b"),
    rule("heuristic", r"\b(?:i (?:have|'ve) (?:seen|answered|done)|reminds me of|looks like the)\b.*\bso (?:i(?:'ll| will| just| simply)* (?:use|follow|take|do|pick|go|copy|treat)|the (?:same|usual|answer))", r"\bstill\b|\bcheck\b"),
    rule("heuristic", r"\b(?:questions?|requests?|users?|answers?|numbers?|problems?|messages?|people)\b.*\b(?:always|usually|mostly|normally|typically|never|like this|of this kind|like these)\b.*\bso (?:i|the same|no|yes)\b", r"\bweigh\b|\bcheck\b|\byet\b|\bbut\b|\bcompare\b|\bpurpose\b|\bneed\b|\bask\b"),
    rule("heuristic", r"\busually\b.*\bso i (?:take|pick|choose|go)\b|\bmost people\b.*\bso i\b(?!.*\bweigh)", r"\bweigh\b|\bcheck\b|\byet\b|\bbut\b"),
    rule("heuristic", r"\bi(?:'ll| will| can)? (?:just|simply|only) guess\b|\bi(?:'ll| will) guess\b|\bi guess(?=[.!,;]| (?:and|what|which|at)\b|$)|\bguessing is (?:quicker|easier|faster)"),
    rule("heuristic", r"\bsav(?:e|es|ing) (?:me |myself |some )?(?:the |some )?(?:whole )?(?:effort|time|work|analysis|thinking)\b"),
    rule("heuristic", r"\b(?:easiest|easy|popular|most common|typical|familiar) (?:option|route|answer|way|reply|method|choice|value)\b.*\b(?:so i|because it is|it is less|save)\b"),
    rule("heuristic", r"\btoo much work\b|\b(?:derivation|analysis|thinking|solution) (?:takes?|would take) (?:too long|effort)|\bmuch effort, so\b|\bbe a lot of (?:effort|work)\b"),
    rule("heuristic", r"\btreat (?:it|this|that) (?:like|as) (?:any|a typical|every)\b|\bfall back on my\b|\bi simply use the template\b|\bby the (?:look|title)\b"),
)  # fmt: skip
