"""What the benchmarks decode: the tools of an assistant for home and office, and requests to it."""

from __future__ import annotations

from typing import Any


def _tool(name: str, description: str, optional: str = "", **parameters: dict[str, Any]) -> dict[str, Any]:
    left_out = optional.split()
    schema = {
        "type": "object",
        "properties": parameters,
        "required": [parameter for parameter in parameters if parameter not in left_out],
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def _text(description: str, pattern: str) -> dict[str, Any]:
    return {"type": "string", "description": description, "pattern": pattern}


def _enum(description: str, values: list[Any]) -> dict[str, Any]:
    return {"description": description, "enum": values}


def _flag(description: str) -> dict[str, Any]:
    return {"type": "boolean", "description": description}


# At most three parameters a tool, each of few characters: random weights never end a string of their own accord, and
# the peers' grammar lists the orders of the parameters one by one.
TOOLS: list[dict[str, Any]] = [
    _tool(
        "get_weather",
        "Forecast for a city: temperature, rain and wind",
        "unit",
        city=_text("City, in English", "^[A-Z][a-z]{2,13}$"),
        days=_enum("Days ahead", [1, 3, 7, 14]),
        unit=_enum("Unit of temperatures", ["celsius", "fahrenheit"]),
    ),
    _tool(
        "create_event",
        "Put an event into the user's calendar",
        "minutes",
        title=_text("Title shown in the calendar", "^[A-Za-z0-9 ]{3,24}$"),
        start=_text("Start, as HH:MM", "^[0-2][0-9]:[0-5][0-9]$"),
        minutes=_enum("Duration", [15, 30, 60, 90]),
    ),
    _tool(
        "cancel_order",
        "Cancel an order that was not shipped yet and refund it",
        "reason",
        order=_text("Order number", "^ORD-[0-9]{6}$"),
        refund_to=_enum("Where the money goes", ["card", "bank account", "voucher"]),
        reason=_enum("Why it is cancelled", ["too late", "wrong item", "other"]),
    ),
    _tool(
        "set_light",
        "Switch or dim the lamps of a room",
        "percent",
        room=_enum("Room", ["kitchen", "living room", "bedroom", "hall"]),
        on=_flag("Whether they are lit"),
        percent=_enum("Brightness", [10, 25, 50, 100]),
    ),
    _tool(
        "play_music",
        "Play music on a speaker",
        "",
        query=_text("Artist, song or mood", "^[A-Za-z ]{2,24}$"),
        speaker=_enum("Where", ["kitchen", "bedroom", "everywhere"]),
    ),
    _tool(
        "send_message",
        "Text somebody in the user's contacts",
        "urgent",
        recipient=_text("First name of the contact", "^[A-Z][a-z]{2,11}$"),
        text=_text("The message", "^[A-Za-z0-9 ,.?!]{4,40}$"),
        urgent=_flag("Ring even a silent phone"),
    ),
    _tool(
        "find_flights",
        "Flights between two airports, cheapest first",
        "",
        origin=_text("IATA code to leave from", "^[A-Z]{3}$"),
        to=_text("IATA code to arrive at", "^[A-Z]{3}$"),
        cabin=_enum("Class", ["economy", "premium", "business"]),
    ),
]

REQUESTS: tuple[str, ...] = (
    "Tell Martha that I am going to be ten minutes late. It is urgent, she never hears her phone.",
    "Will it rain in Lisbon over the next three days? I would like to know before I pack.",
    "Please put the dentist into my calendar for today, at half past nine, for an hour.",
    "I ordered the wrong charger, it was ORD-100734. Cancel it and give me the money back on my card.",
    "Dim the lamps in the living room to about a quarter.",
    "Play some quiet piano music in the bedroom.",
    "Which flights go from Vienna to Porto? Economy is fine.",
    "How warm is it in Helsinki today, in Fahrenheit?",
    "Switch off everything in the hall.",
    "The order ORD-993027 comes too late for the birthday, I would rather have a voucher.",
    "Remind me of the team lunch in my calendar today at 12:15.",
    "Ask Jonas whether he can bring the projector tomorrow.",
    "I need to get from Oslo to Zurich in business class.",
    "Some jazz everywhere, please.",
    "What is the weather going to be like in Osaka for the next two weeks?",
    "Full light in the kitchen.",
)
BATCH = len(REQUESTS)

# A prompt of some hundred tokens, for a quick look.
QUICK_TOOLS = TOOLS[2:5]
