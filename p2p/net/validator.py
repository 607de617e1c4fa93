"""What our DHT nodes keep: records of this network's hosts, and the newest of each."""

from libp2p.records.validator import Validator

from p2p.clock import WallClock
from p2p.errors import RemoteProtocolError
from p2p.records import RECORD, check_record, record_key
from p2p.signing import unseal
from p2p.types import NetworkId


class RecordValidator(Validator):
    """Accepts a record under its own host's key only; prefers the higher sequence."""

    def __init__(self, network_id: NetworkId, wall_clock: WallClock) -> None:
        self._network_id = network_id
        self._wall_clock = wall_clock

    def validate(self, key: str, value: bytes) -> None:
        """Check signature, network, time, and that the key is the signer's.

        Raises:
            RemoteProtocolError: If any of it does not hold.
        """
        record = check_record(value, network_id=self._network_id, now_ns=self._wall_clock())
        expected = record_key(record.value.peer_id)
        if key != expected:
            raise RemoteProtocolError(
                f"the record of {record.value.peer_id} belongs under {expected}, not under {key}"
            )

    def select(self, key: str, values: list[bytes]) -> int:
        """Return the index of the highest sequence, the last one on a tie.

        A DHT node asks with ``[stored, new]`` and refuses the new one without an answer if the
        result is 0, so a tie must go to the new one.
        """
        return max(range(len(values)), key=lambda index: (self._sequence(values[index]), index))

    def _sequence(self, value: bytes) -> int:
        try:
            return unseal(RECORD, value, network_id=self._network_id).value.sequence
        except RemoteProtocolError:
            return -1
