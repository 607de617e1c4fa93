"""How often each peer or address may ask for what costs us work. A core: time is an argument."""

from collections import OrderedDict
from typing import Final

KEYS_MAX: Final = 16_384  # remembered; whoever is forgotten has his burst again


class Quota:
    """So many at once, and so many per second after that, for each key.

    Args:
        burst_count: How many at once.
        per_s: How many per second come back.
    """

    def __init__(self, *, burst_count: int, per_s: int) -> None:
        self._burst_s = burst_count / per_s
        self._each_s = 1 / per_s
        self._paid_until_s: OrderedDict[str, float] = OrderedDict()

    def take(self, key: str, now_s: float, *, share: float = 1.0) -> bool:
        """Use one, and return whether there was one.

        Args:
            key: Who asks.
            now_s: Monotonic time.
            share: Of one, if what is asked for costs less.
        """
        paid_until_s = max(self._paid_until_s.pop(key, now_s), now_s)
        due_s = paid_until_s + share * self._each_s
        has_one = due_s <= now_s + self._burst_s + 1e-9
        self._paid_until_s[key] = due_s if has_one else paid_until_s
        if len(self._paid_until_s) > KEYS_MAX:
            self._paid_until_s.popitem(last=False)
        return has_one

    def charge(self, key: str, now_s: float, *, count: int) -> None:
        """Use up so many, whether they are there or not: the price of abuse."""
        paid_until_s = max(self._paid_until_s.pop(key, now_s), now_s)
        most_s = now_s + self._burst_s
        self._paid_until_s[key] = min(paid_until_s + count * self._each_s, most_s)
