"""A program that writes a log, a line a second. Usage: write_log.py FILE"""

from __future__ import annotations

import itertools
import logging
import sys
import time


def main() -> None:
    logging.basicConfig(
        filename=sys.argv[1], format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO
    )
    for number in itertools.count(1):
        logging.info("request %d served in %d ms", number, 3 + number * 7 % 11)
        time.sleep(1)


if __name__ == "__main__":
    main()
