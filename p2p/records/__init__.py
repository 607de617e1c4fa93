"""Capability records: what a host offers, where it is, and the DHT keys that lead there."""

from p2p.records.checks import check_record, newer_record
from p2p.records.keys import provider_key, providers_for_day, record_key
from p2p.records.messages import (
    OWNER_TAG,
    RECORD,
    CapabilityRecord,
    Hardware,
    Manifest,
    Offer,
    OwnerTag,
    manifest_digest,
)

__all__ = [
    "OWNER_TAG",
    "RECORD",
    "CapabilityRecord",
    "Hardware",
    "Manifest",
    "Offer",
    "OwnerTag",
    "check_record",
    "manifest_digest",
    "newer_record",
    "provider_key",
    "providers_for_day",
    "record_key",
]
