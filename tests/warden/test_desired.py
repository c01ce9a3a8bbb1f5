"""What operators want to last: what is written is read back, what is unusable is said to be, and plans lead there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdn_daemon.warden.desired import (
    INSTANCES_MAX,
    Add,
    Desired,
    Disabled,
    Instance,
    Maintenance,
    Remove,
    Stop,
    UnusableError,
    decode,
    encode,
    names,
    plan,
    why_disabled,
    why_maintained,
)

BY_ROOT = Disabled(by="root", at_s=1e9)
ALL = (
    Desired()
    .disable("web", BY_ROOT)
    .maintain("db", Maintenance(by="ann", until_s=2e9))
    .maintain("group:x", Maintenance(by="ann"))
    .scale("web", 3)
)


def test_what_is_written_is_read_back() -> None:
    assert decode(encode(ALL)) == ALL
    assert decode(encode(Desired())) == Desired()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "truncated"),
        (encode(ALL)[:-40], "truncated"),
        (b"null", "object"),
        (b"\xff\xfe", "malformed"),
        (b'{"x":' + b"[" * 100_000, "recursion"),
        (b'{"disabled": {}}', "version"),
        (b'{"version": 2, "disabled": 7}', "it is of version 2, and this knows 1"),
        (b'{"version": 1, "instances": {"web": 65}}', "<= 64"),
        (b'{"version": 1, "instances": {"web": -1}}', ">= 2"),
        (b'{"version": 1, "disabled": {"web": {"by": 1, "at_s": 2}}}', "str"),
    ],
)
def test_what_is_unusable_says_why(content: bytes, why: str) -> None:
    with pytest.raises(UnusableError, match=why):
        decode(content)


@given(st.binary(max_size=200) | st.integers(0, len(encode(ALL))).map(lambda length: encode(ALL)[:length]))
def test_whatever_there_is_in_the_file_it_is_read_or_unusable(content: bytes) -> None:
    try:
        desired = decode(content)
    except UnusableError:
        return
    assert decode(encode(desired)) == desired


def test_what_is_taken_back_leaves_nothing() -> None:
    again = ALL.disable("web", None).maintain("db", None).maintain("group:x", None).scale("web", 1)
    assert again == Desired()
    assert ALL.disable("nobody", None) == ALL


def test_scaling_down_forgets_what_was_said_of_those_that_go() -> None:
    disabled = ALL.disable("web-3", BY_ROOT).disable("web-2", BY_ROOT).maintain("web-3", Maintenance(by="ann"))
    assert disabled.scale("web", 2).disabled.keys() == {"web", "web-2"}
    assert "web-3" not in disabled.scale("web", 2).maintenance


def test_reasons_say_who_and_until_when_and_what_to_do() -> None:
    assert why_disabled("web", BY_ROOT).startswith("disabled by root at 2001-09-")
    assert why_disabled("web", BY_ROOT).endswith("; cdnctl enable web")
    assert why_maintained(Maintenance(by="ann")) == "maintenance by ann"
    assert why_maintained(Maintenance(by="ann", until_s=2e9)).startswith("maintenance by ann, until 2033-05-")


def instance(*, current: bool = True, down: bool = False, stopping: bool = False) -> Instance:
    return Instance("web", is_current=current, is_down=down, is_stopping=stopping)


@pytest.mark.parametrize(
    ("wanted", "there", "programs", "steps"),
    [
        ({}, {}, {"web"}, []),
        ({"web": 3}, {}, {"web"}, [Add("web-2", "web"), Add("web-3", "web")]),
        ({"web": 3}, {"web-2": instance()}, {"web"}, [Add("web-3", "web")]),
        ({"web": 2}, {"web-2": instance(down=True)}, {"web"}, []),
        ({}, {"web-2": instance()}, {"web"}, [Stop("web-2")]),
        ({}, {"web-2": instance(stopping=True)}, {"web"}, []),
        ({}, {"web-2": instance(down=True)}, {"web"}, [Remove("web-2")]),
        ({"web": 2}, {"web-2": instance(current=False)}, {"web"}, [Stop("web-2")]),
        ({"web": 2}, {"web-2": instance(current=False, down=True)}, {"web"}, [Remove("web-2")]),
        ({"web": 2}, {"web-2": Instance("web", True, False, True, is_surplus=True)}, {"web"}, []),
        ({"web": 2}, {"web-2": Instance("web", True, True, False, is_surplus=True)}, {"web"}, [Remove("web-2")]),
        ({"web": 2}, {}, {"other"}, []),
        ({"web": 2}, {"web-2": instance()}, {"other"}, [Stop("web-2")]),
    ],
)
def test_plan(wanted: dict[str, int], there: dict[str, Instance], programs: set[str], steps: list[object]) -> None:
    assert plan(wanted, there, programs) == steps


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(2, 5)),
    st.dictionaries(
        st.sampled_from("abc").flatmap(lambda program: st.sampled_from([(program, n) for n in range(2, 8)])),
        st.tuples(st.booleans(), st.booleans(), st.booleans()),
    ),
    st.sets(st.sampled_from("abc")),
)
def test_every_plan_leads_to_what_is_wanted_and_then_rests(
    wanted: dict[str, int], start: dict[tuple[str, int], tuple[bool, bool, bool]], programs: set[str]
) -> None:
    """Whatever there is: done step by step, what is wanted is what there is, and then nothing more is to be done."""
    there = {f"{program}-{n}": Instance(program, *flags) for (program, n), flags in start.items()}
    for _ in range(5):
        steps = plan(wanted, there, programs)
        for step in steps:
            match step:
                case Add(name, program):
                    assert name not in there
                    there[name] = Instance(program, is_current=True, is_down=False, is_stopping=False)
                case Remove(name):
                    assert there.pop(name).is_down
                case Stop(name):
                    there[name] = Instance(there[name].program, there[name].is_current, False, True)
        if not steps:  # those that were told to stop have stopped by now
            stopping = {name: each for name, each in there.items() if each.is_stopping and not each.is_down}
            if not any(plan(wanted, {**there, name: _down(each)}, programs) for name, each in stopping.items()):
                break
        there = {name: _down(each) if each.is_stopping else each for name, each in there.items()}
    expected = {name for program, many in wanted.items() if program in programs for name in names(program, many)[1:]}
    assert set(there) == expected
    assert not plan(wanted, there, programs)


def _down(each: Instance) -> Instance:
    return Instance(each.program, each.is_current, is_down=True, is_stopping=False)


def test_the_most_instances_there_may_be() -> None:
    assert len(names("web", INSTANCES_MAX)) == INSTANCES_MAX
    assert names("web", 1) == ("web",)
