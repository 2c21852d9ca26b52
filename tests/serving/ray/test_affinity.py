"""Routing by affinity: where requests of one adapter go, and when they leave it."""

from __future__ import annotations

import random
from collections import Counter

from overtone.serving.ray.affinity import HeldAdapters, Homes, choose

NAMES = ("r1", "r2", "r3", "r4", "r5", "r6")


def placed(count: int = 2) -> tuple[Homes, HeldAdapters]:
    homes = Homes(count)
    homes.settle(NAMES)
    return homes, HeldAdapters()


def test_routers_agree_on_the_homes_of_an_adapter_without_talking() -> None:
    one, other = Homes(), Homes()
    one.settle(NAMES)
    other.settle(NAMES[::-1])
    assert [one.of(f"a{number}") for number in range(50)] == [other.of(f"a{number}") for number in range(50)]


def test_first_homes_are_spread_evenly_and_few_move_with_a_replica() -> None:
    homes = Homes()
    homes.settle(NAMES)
    before = {f"a{number}": homes.of(f"a{number}")[0] for number in range(1200)}
    assert all(120 < count < 290 for count in Counter(before.values()).values())
    homes.settle(NAMES[:-1])
    moved = [name for name, home in before.items() if homes.of(name)[0] != home]
    assert {before[name] for name in moved} == {"r6"}


def test_a_replica_that_holds_the_adapter_is_asked_until_it_is_overloaded() -> None:
    homes, held = placed()
    first, second = homes.of("medical")
    held.send(second, ["medical"])
    calm = dict.fromkeys(NAMES, 0)
    assert choose({**calm, second: 15}, ["medical"], homes=homes, held=held)[0] == second
    assert choose({**calm, second: 40}, ["medical"], homes=homes, held=held)[0] == first


def test_where_all_have_as_much_to_do_the_adapter_stays_where_it_is() -> None:
    homes, held = placed()
    _, second = homes.of("medical")
    held.send(second, ["medical"])
    assert choose(dict.fromkeys(NAMES, 60), ["medical"], homes=homes, held=held)[0] == second


def test_an_adapter_that_nobody_holds_goes_to_its_less_busy_home() -> None:
    homes, held = placed()
    first, second = homes.of("medical")
    assert choose(dict.fromkeys(NAMES, 3), ["medical"], homes=homes, held=held)[0] == first
    assert choose({**dict.fromkeys(NAMES, 3), first: 20}, ["medical"], homes=homes, held=held)[0] == second


def test_where_every_home_is_overloaded_another_replica_helps() -> None:
    homes, held = placed()
    busy = {name: 99 if name in homes.of("medical") else 0 for name in NAMES}
    found = {choose(busy, ["medical"], homes=homes, held=held, chance=random.Random(seed))[0] for seed in range(40)}
    assert found - set(homes.of("medical"))


def test_the_base_goes_to_the_less_busy_of_two() -> None:
    homes, held = placed()
    busy = {"r1": 9, "r2": 1}
    assert choose(busy, [], homes=homes, held=held) == ["r2", "r1"]
    assert choose({}, [], homes=homes, held=held) == []


def test_what_a_replica_tells_and_what_was_sent_to_it_count_as_held() -> None:
    held = HeldAdapters()
    held.send("r1", ["a"])
    assert held.holds("r1", ["a"])
    held.tell("r1", ["b"], capacity=2)
    assert held.holds("r1", ["a", "b"])
    held.tell("r1", ["a"], capacity=2)
    held.tell("r1", ["b"], capacity=2)
    assert not held.holds("r1", ["a"])  # told, and then no more: it was evicted
    held.keep(["r2"])
    assert not held.holds("r1", ["b"])


def test_no_more_is_believed_to_be_held_than_fits() -> None:
    held = HeldAdapters()
    held.tell("r1", [], capacity=2)
    for name in "abc":
        held.send("r1", [name])
    assert [held.holds("r1", [name]) for name in "abc"] == [False, True, True]
