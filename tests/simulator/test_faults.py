import json
import re

import pytest

from simulator.faults import GARBAGE, Faults, check, damage

FRAME = '{"code":"KRW-BTC","ask_price":2,"ask_size":0.5,"bid_size":0.25}'
TEXT_FRAME = '{"symbol":"btc_krw","qty":"0.5"}'
VOLUME = re.compile(r'("ask_size":)([^,}]+)')
TEXT_VOLUME = re.compile(r'("qty":)("[^"]*")')


def spoiled(what: str) -> str | bytes:
    return damage(what, FRAME, VOLUME, "KRW-BTC", "KRW-DOGE", '{"type":"surprise"}')


@pytest.mark.parametrize(
    ("kind", "parameters", "says"),
    [
        ("explode", {}, "unknown fault 'explode': one of clear"),
        ("stall", {"minutes": 1}, "takes"),
        ("disconnect", {"times": 2}, "takes"),
        ("garbage", {"what": "rubbish"}, "unknown garbage 'rubbish': one of not_json"),
        ("clear", {"what": "rubbish"}, "cannot clear unknown fault"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(kind: str, parameters: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check(kind, parameters)


def test_a_counted_fault_is_used_up() -> None:
    faults = Faults()
    faults.add("swallow", "upbit", "BTC-KRW", {"times": 2})
    assert faults.take("swallow", "bithumb", "BTC-KRW") is None
    assert faults.take("swallow", "upbit", "ETH-KRW") is None
    assert faults.take("swallow", "upbit", "BTC-KRW")
    assert faults.take("swallow", "upbit", "BTC-KRW")
    assert faults.take("swallow", "upbit", "BTC-KRW") is None


def test_a_single_kind_happens_once_and_a_lasting_one_until_it_is_cleared() -> None:
    faults = Faults()
    faults.add("duplicate", None, None, {})
    faults.add("stall", "upbit", None, {})
    assert faults.take("duplicate", "upbit", "BTC-KRW")
    assert not faults.active("duplicate", "upbit", "BTC-KRW")
    assert faults.withholding("upbit", "BTC-KRW")
    faults.clear(None, None, "freeze")
    assert faults.withholding("upbit", "BTC-KRW")
    faults.clear("upbit", None, "stall")
    assert not faults.withholding("upbit", "BTC-KRW")


def test_a_timed_fault_ends_by_itself() -> None:
    faults = Faults()
    faults.add("freeze", None, None, {"seconds": 0})
    assert not faults.active("freeze", "upbit")
    assert faults.listed() == []


def test_every_kind_of_garbage_is_what_its_name_says() -> None:
    results = {what: spoiled(what) for what in GARBAGE}
    assert len(set(results.values())) == len(GARBAGE)
    for what in ("not_json", "truncated"):
        with pytest.raises(ValueError, match=r"Expecting|Unterminated|delimiter"):
            json.loads(results[what])
    assert json.loads(results["foreign_market"])["code"] == "KRW-DOGE"
    assert json.loads(results["negative_volume"])["ask_size"] == -1.5
    assert '"ask_size":NaN' in str(results["nan"])
    assert json.loads(results["text_number"])["ask_size"] == "abc"
    assert json.loads(results["unknown_type"]) == {"type": "surprise"}
    assert json.loads(results["empty_object"]) == {}
    assert len(str(json.loads(results["huge_number"])["ask_size"])) == 400
    assert '"ask_size":1E999999999' in str(results["huge_exponent"])
    with pytest.raises(UnicodeDecodeError):
        bytes(results["not_utf8"]).decode()  # type: ignore[arg-type]


def test_a_venue_that_quotes_numbers_gets_quoted_garbage() -> None:
    frame = damage("nan", TEXT_FRAME, TEXT_VOLUME, "btc_krw", "doge_krw", "{}")
    assert json.loads(frame)["qty"] == "NaN"
