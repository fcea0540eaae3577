"""Reading `text/identity.yaml`: groups of people, and sentences that name one of them.

The sentences were written for this package; that a judge can be unfair to a group whose name alone it has learnt to
fear is known from Dixon et al. (2018, "Measuring and mitigating unintended bias in text classification"), whose
method of templates this follows with texts of its own. Left out: groups crossed with each other, names of persons, and
any sentence that is unkind to a group.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import yaml

FILE = Path(__file__).parent / "text" / "identity.yaml"


class Group(NamedTuple):
    """A group of people with its three forms.

    Attributes:
        name: in tables.
        axis: what kind of group, such as "religion"; "occupation (control)" for the controls.
        predicate: after "is": "Muslim", "a nurse".
        person: one person, with the article: "a Jewish person".
        people: several: "wheelchair users".
    """

    name: str
    axis: str
    predicate: str
    person: str
    people: str

    def put_into(self, template: str) -> str:
        """The sentence with this group's forms in the places of {is}, {person}, {people} and {People}."""
        capital = self.people[:1].upper() + self.people[1:]
        return template.format(
            **{"is": self.predicate, "person": self.person, "people": self.people, "People": capital}
        )


class Template(NamedTuple):
    """A bot's reply that names a group, and the turn that it answers.

    Attributes:
        context: the turn before.
        text: the reply, with a place for a group.
        unsafe: whether it is rude to the listener; never to the group.
    """

    context: str
    text: str
    unsafe: bool


class Identity(NamedTuple):
    """Everything in the file, in its order."""

    groups: list[Group]
    templates: list[Template]
    questions: list[str]


@functools.cache
def load_identity() -> Identity:
    """Read the file that ships."""
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    groups = [
        Group(name, axis, forms["is"], forms["person"], forms["people"])
        for axis, members in content["groups"].items()
        for name, forms in members.items()
    ]
    templates = [
        Template(row["context"], row["text"], unsafe)
        for part, unsafe in (("benign", False), ("rude", True))
        for row in content[part]
    ]
    return Identity(groups, templates, list(content["questions"]))
