"""A process of the fuzzer with a family whose reader fails for one word."""

import atheris

from harness.suites.fuzz import guided
from harness.suites.fuzz.readers import FAMILIES, Family


@atheris.instrument_func
def read(data):
    for index, letter in enumerate(b"FUZZ"):
        if data[index : index + 1] != bytes([letter]):
            return
    raise KeyError("planted")


if __name__ == "__main__":
    FAMILIES["planted"] = Family(lambda sources, scratch: read)
    guided.main()
