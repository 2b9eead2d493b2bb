"""A ResponseStore keeps the responses that were used last, within its bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from picospec.gateway.doors import services
from picospec.gateway.doors.services import MAX_AGE_S, MAX_BYTES, MAX_RESPONSES
from tests.gateway.tenants.holders import Clock

HALF = services.StoredResponse(b"", bytes(MAX_BYTES // 2))
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["keep", "keep large", "keep too large", "find", "remove", "wait"]),
        st.integers(0, 5),
    ),
    max_size=30,
)
KEPT = {
    "keep": services.StoredResponse(b"1", b"2"),
    "keep large": HALF,
    "keep too large": services.StoredResponse(b"1", bytes(MAX_BYTES)),
}


@given(STEPS)
def test_a_shelf_is_a_list_of_what_was_used_last_cut_at_its_bounds(
    steps: list[tuple[str, int]],
) -> None:
    clock = Clock()
    responses = services.ResponseStore(clock)
    used = list[tuple[str, services.StoredResponse, float]]()
    for number, (step, id) in enumerate(steps):
        name = f"{id}" if step in ("find", "remove") else f"{number}"
        if step == "wait":
            clock.now += MAX_AGE_S / 3
        elif step == "find":
            found = next((each for each in used if each[0] == name), None)
            assert responses.find(name) == (found and found[1])
            if found:
                used = [each for each in used if each is not found]
                used.append((found[0], found[1], clock.now))
        elif step == "remove":
            responses.remove(name)
            used = [each for each in used if each[0] != name]
        else:
            responses.keep(name, KEPT[step])
            if step != "keep too large":
                used.append((name, KEPT[step], clock.now))
        used = [each for each in used if each[2] > clock.now - MAX_AGE_S]
        while sum(kept.size_bytes for _, kept, _ in used) > MAX_BYTES:
            del used[0]
    for name, kept, _ in used:
        assert responses.find(name) == kept


def test_the_last_responses_are_kept() -> None:
    responses = services.ResponseStore(Clock())

    for number in range(MAX_RESPONSES + 2):
        responses.keep(str(number), KEPT["keep"])

    assert [responses.find(str(number)) is None for number in range(3)] == [True, True, False]
