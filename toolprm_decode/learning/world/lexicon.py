"""The words of the built-in world: actions, objects, slots, and the values that fill them."""

from __future__ import annotations

import random
from dataclasses import dataclass

# Action: a word for it that descriptions do not use.
_ACTIONS = """
find:search book:reserve cancel:revoke move:shift list:show create:make update:change send:dispatch share:publish
check:verify compare:contrast rent:hire order:buy track:follow rate:judge export:download
"""

ACTIONS: dict[str, str] = {action: synonym for action, _, synonym in (pair.partition(":") for pair in _ACTIONS.split())}


@dataclass(frozen=True)
class Slot:
    """One kind of argument.

    Attributes:
        name: its natural parameter name.
        about: what a description says before the cue; the cue, which requests use too, ends the description.
        cue, synonym: words that introduce the value in a request; descriptions know the first alone.
        values: "place", "person", "title", "date", "number", "decimal", "flag", or options joined by "|";
            after "*" a list of those; after "{" the slots of an object.
    """

    name: str
    about: str
    cue: str
    synonym: str
    values: str


def _slots() -> dict[str, Slot]:
    rows = [line.split(";") for line in _SLOTS.strip().splitlines()]
    return {row[0]: Slot(*(part.strip() for part in row)) for row in rows}


_SLOTS = """
from;leaving;from;departing;place
to;going;to;towards;place
city;city;in;within;place
street;street;along;beside;place
person;person;for;joining;person
sender;sender;by;signed;person
recipient;recipient;reaching;addressing;person
title;title;called;named;title
topic;topic;about;regarding;title
label;label;tagged;marked;title
company;company;through;using;title
brand;brand;branded;labelled;title
teacher;teacher;under;following;person
date;date;on;dated;date
start;start;starting;beginning;date
end;end;until;till;date
amount;amount;worth;totalling;number
price;price;costing;priced;number
minimum;minimum;above;over;number
maximum;maximum;below;beneath;number
limit;limit;top;first;number
guests;guests;seating;hosting;number
nights;nights;staying;nights;number
minutes;minutes;lasting;taking;number
age;age;aged;old;number
code;code;numbered;coded;number
weight;weight;weighing;heavy;decimal
rating;rating;rated;scoring;decimal
room;room;inside;room;kitchen|bedroom|office|garage
color;color;colored;painted;red|blue|green|black
size;size;sized;size;small|medium|large|huge
class;class;flying;class;economy|business|premium|standard
sort;order;sorted;ranked;newest|oldest|cheapest|nearest
mode;mode;travelling;going-by;walking|driving|cycling|sailing
priority;priority;priority;urgency;low|normal|high|critical
currency;currency;paid;currency;euro|dollar|pound|yen
genre;genre;styled;genre;jazz|rock|folk|opera
language;language;speaking;spoken;german|french|polish|dutch
insurance;includes;insurance;cover;flag
breakfast;includes;breakfast;meals;flag
parking;includes;parking;garaging;flag
urgent;needs;rush;haste;flag
private;needs;privacy;secrecy;flag
shuffle;needs;shuffling;mixing;flag
refund;includes;refunds;repayment;flag
notify;includes;alerts;warnings;flag
items;things;listing;covering;*thing
days;days;every;each;*Monday|Tuesday|Thursday|Friday|Sunday
copies;people;copying;informing;*person
address;address;located;situated;{city,street
period;period;spanning;throughout;{start,end
contact;contact;contacting;calling;{person,code
"""

SLOTS: dict[str, Slot] = _slots()

# Object: a word for it that descriptions do not use, and the slots that it can have.
_OBJECTS = """
flight;plane;from,to,date,class,person,maximum,insurance,refund,sort,period
hotel;lodging;city,start,end,guests,nights,breakfast,parking,maximum,minimum,rating,address
train;railway;from,to,date,class,minutes,sort,refund,days
car;vehicle;city,start,end,size,color,age,insurance,brand,period
table;seat;title,guests,date,city,person,private,address
event;appointment;title,date,start,end,person,room,notify,private,minutes,copies
letter;mail;sender,recipient,topic,title,urgent,priority,label,date,copies
song;tune;title,person,genre,shuffle,language,minutes,rating
parcel;package;code,from,to,street,urgent,insurance,recipient,notify,weight,items,address
invoice;bill;company,amount,currency,date,code,urgent,person,items,contact
product;article;title,brand,color,size,minimum,maximum,sort,weight,rating
lamp;light;room,color,amount,minutes,notify,mode,days
route;path;from,to,mode,maximum,minutes,sort,days
course;class;title,teacher,start,end,language,price,topic,days,period
ticket;pass;title,city,date,guests,price,refund,private
meeting;talk;topic,person,room,date,minutes,notify,recipient,copies,period
report;summary;topic,start,end,sender,language,label,private,copies,items
job;position;title,company,city,minimum,mode,language,age,contact
recipe;dish;title,minutes,guests,label,sort,limit,maximum,items
payment;transfer;from,to,amount,currency,date,urgent,code,contact
photo;picture;title,label,size,color,person,private,date,items
doctor;physician;person,city,date,age,urgent,language,insurance,address
movie;film;title,genre,language,minimum,age,city,sort,rating
task;todo;title,priority,label,end,person,notify,minutes,days,items
"""

OBJECTS: dict[str, tuple[str, tuple[str, ...]]] = {
    noun: (synonym, tuple(slots.split(",")))
    for noun, synonym, slots in (line.split(";") for line in _OBJECTS.strip().splitlines())
}

_CITIES = """
Oslo Paris Rome Lima Cairo Delhi Tokyo Seoul Quito Accra Dakar Lagos Perth Dublin Berlin Vienna Prague Warsaw Madrid
Lisbon Athens Geneva Zurich Milan Turin Naples Boston Denver Austin Dallas Miami Havana Bogota Santiago Sydney Hanoi
Manila Jakarta Nairobi Tunis
"""
_PEOPLE = """
Anna Ben Carla David Emma Felix Greta Hugo Ines Jonas Karin Lars Maria Nils Olga Pablo Rosa Simon Tara Ulrich Vera
Walter Yara Zoe Amir Bela Chen Dina Elif Farid Gita Hana Ivan Jana Kofi Leila Milan Nadia Omar Priya
"""
_THINGS = "milk bread eggs rice apples books lamps chairs shoes pens cups plates maps keys stamps flowers cables tools"
_MONTHS = "January February March April May June July August September October November December"
CITIES, PEOPLE, MONTHS = _CITIES.split(), _PEOPLE.split(), _MONTHS.split()
THINGS = [*_THINGS.split(), "towels", "candles"]
FILLERS = {
    "opening": ["please", "can you", "i want to", "hello ,", "i need you to", "now", "could you please"],
    "article": ["the", "a", "my", "some"],
    "closing": ["please", ".", "?", "now", ", thanks"],
    "joining": ["and then", ", then", "and also"],
    "link": ["the", "around"],
}


def _made_up(count: int, seed: int, consonants: str, capital: bool) -> list[str]:
    vowels = "aeiou"
    words = sorted({a + b + c + d for a in consonants for b in vowels for c in consonants for d in vowels})
    random.Random(seed).shuffle(words)
    taken = {word.lower() for word in CITIES + PEOPLE + THINGS}
    words = [word for word in words if word not in taken]
    return [word.capitalize() if capital else word for word in words[:count]]


NAMES = _made_up(160, 5, "bdfgklmnprstvz", capital=True)  # of places, people and titles
MASKS = _made_up(96, 7, "cjqwxyh", capital=False)  # what masked functions and parameters are called
