"""Questions of blind people: the kinds of question, their frequency by kind of scene, and many phrasings."""

from __future__ import annotations

from random import Random

from demo.scene import Scene

KINDS = ("what", "colour", "pattern", "money", "contents", "read", "on", "on or off", "open", "open or closed")

_INVITED: dict[str, dict[str, float]] = {  # kind of scene -> kinds of question with their weights
    "object": {"what": 50, "colour": 50},
    "clothes": {"what": 25, "colour": 35, "pattern": 40},
    "package": {"what": 30, "contents": 35, "read": 20, "colour": 15},
    "money": {"money": 80, "what": 20},
    "switch": {"on": 45, "on or off": 35, "what": 20},
    "lamp": {"on": 45, "on or off": 25, "what": 20, "colour": 10},
    "door": {"open": 45, "open or closed": 30, "what": 10, "colour": 15},
}
_MISPLACED = ("money", "pattern", "read")  # kinds that an object's photo cannot answer

_WORDINGS: dict[str, tuple[str, ...]] = {
    "what": (
        *("What is this?",) * 8,
        *("What is it?", "What's this?", "What is that?", "Can you tell me what this is?") * 2,
        "What am I holding?",
        "What item is this?",
        "What object is this?",
        "Can you identify this for me?",
        "What do I have here?",
        "What is in this picture?",
        "What's in front of me?",
        "Could you tell me what this thing is?",
        "I would like to know what this is.",
        "Tell me what this is.",
    ),
    "colour": (
        *("What color is this?",) * 4,
        *("What color is this {thing}?",) * 4,
        "What color is it?",
        "What's the color of this {thing}?",
        "What is the color of this {thing}?",
        "Can you tell me what color this is?",
        "Can you tell me the color of this {thing}?",
        "Which color is my {thing}?",
        "What colour is the {thing}?",
        "I need to know the color of this {thing}.",
        "Is this {thing} a dark color or a light one, what color is it?",
    ),
    "pattern": (
        "What pattern is this?",
        "What pattern is on this {thing}?",
        "What kind of pattern does this {thing} have?",
        "Is this {thing} striped or plain, or what pattern does it have?",
        "What is the pattern on my {thing}?",
        "Does this {thing} have a pattern, and which one?",
        "Can you describe the pattern of this {thing}?",
        "What does the pattern on this fabric look like?",
    ),
    "money": (
        *("How much money is this?",) * 3,
        "What bill is this?",
        "What denomination is this?",
        "How much is this bill?",
        "What is this bill worth?",
        "What is the value of this note?",
        "Which bank note is this?",
        "Can you tell me how much money this is?",
        "What kind of bill is this, a one, a five or a twenty?",
        "What amount is on this bill?",
    ),
    "contents": (
        *("What is in this {thing}?",) * 3,
        "What's in this {thing}?",
        "What kind of food is this?",
        "What product is this?",
        "What is inside this {thing}?",
        "Can you tell me what is in this {thing}?",
        "What's this {thing} of?",
        "Which product is in the {thing}?",
        "I need to know what this {thing} contains.",
    ),
    "read": (
        *("What does this say?",) * 3,
        "What does the label say?",
        "What does it say on this {thing}?",
        "Can you read the label on this {thing}?",
        "What is written on this?",
        "Can you read this to me?",
        "What does it say on the front?",
        "Could you read the big letters on this {thing}?",
    ),
    "on": (
        "Is the {thing} on?",
        "Is this {thing} on?",
        "Is this {thing} turned on?",
        "Did I leave the {thing} on?",
        "Can you tell me if the {thing} is on?",
        "Is the {thing} switched on?",
    ),
    "on or off": (
        "Is the {thing} on or off?",
        "Is this {thing} on or off?",
        "On or off?",
        "Can you tell if this {thing} is on or off?",
        "I want to know whether the {thing} is on or off.",
    ),
    "open": (
        "Is the {thing} open?",
        "Is this {thing} open?",
        "Did I leave the {thing} open?",
        "Can you see if the {thing} is open?",
    ),
    "open or closed": (
        "Is the {thing} open or closed?",
        "Is this {thing} open or closed?",
        "Open or closed?",
        "Tell me whether this {thing} is open or closed.",
    ),
}
_OPENINGS = (
    *("Hi. ", "Hello. ", "Okay. ", "Hi there. ", "Good morning. ", "Excuse me. ", "Alright. ", "Please help. "),
    *("I'm not sure about this one. ", "I took another picture. ", "Let's try this again. ", "Sorry about that. "),
    "I found this on my kitchen table and I have no idea. ",
    "My wife is not at home and I have to get this right. ",
    "I am blind and I live alone, so I could use your eyes for a minute. ",
    "Somebody left this here yesterday and I would rather not guess. ",
    "Hello, I hope the picture is clear enough, my hand was shaking a little when I took it. ",
)
_CLOSINGS = (
    *(" Thank you.", " Thanks.", " Please.", " Thank you very much.", " Thanks a lot!", " Thank you for your help."),
    *(" I hope it works this time.", " Can you see it?", " I can't tell by touch.", " Just curious."),
    " I think I have the camera the right way up, but let me know if I don't.",
    " I want to make sure before I put it away.",
)
_LONG = 120  # characters; a longer question gets no closing, so that it fits CLIP's 77 tokens with an answer
_THINGS = {"switch": ("light switch", "light", "switch"), "lamp": ("lamp", "light"), "shirt": ("shirt", "shirt", "top")}


def draw_question_kind(scene: Scene, rng: Random, misplaced_share: float) -> str:
    """Draw a kind of question for the scene; with probability ``misplaced_share`` one that it cannot answer."""
    if rng.random() < misplaced_share and scene.kind == "object":
        return rng.choice(_MISPLACED)
    invited = _INVITED[scene.kind]
    return rng.choices(list(invited), list(invited.values()))[0]


def phrase(kind: str, scene: Scene, rng: Random) -> str:
    """Phrase a question of ``kind`` about ``scene``."""
    thing = rng.choice(_THINGS.get(scene.name, (scene.name,)))
    if kind in ("colour", "pattern") and rng.random() < 0.3:
        thing = "thing"  # the asker does not know the object
    elif kind == "pattern" and scene.kind != "clothes":
        thing = "cloth"
    text = rng.choice(_WORDINGS[kind]).format(thing=thing)
    if rng.random() < 0.12:
        text = rng.choice(_OPENINGS) + text
    if rng.random() < 0.2 and len(text) < _LONG:
        text += rng.choice(_CLOSINGS)
    if rng.random() < 0.2:
        text = text.lower().rstrip("?.!")
    return text
