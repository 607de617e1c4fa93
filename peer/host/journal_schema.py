"""The journal's tables and statements, apart from how they are run."""

import enum

import sqlite_utils


class Closed(enum.IntEnum):
    """Where the end of an allowance stands: our word is given before settlement has it."""

    NOT = 0
    SIGNED = 1
    SUBMITTED = 2


class Submitted(enum.IntEnum):
    """What settlement has of a batch; without the cosignature it goes again once there is one."""

    NOTHING = 0
    ALONE = 1
    WHOLE = 2


def create_tables(database: sqlite_utils.Database) -> None:
    """Make the tables that are missing."""
    database.table("meta").create({"name": str, "value": bytes}, pk="name", if_not_exists=True)
    database.table("earnings").create({"day": int, "micros": int}, pk="day", if_not_exists=True)
    database.table("allowances").create(
        {
            "allowance_id": bytes,
            "pseudonym": bytes,
            "settle_by_ns": int,
            "envelope": bytes,
            "posted_micros": int,
            "closed": int,
        },
        pk="allowance_id",
        defaults={"posted_micros": 0, "closed": 0},
        if_not_exists=True,
    )
    database.table("vouchers").create(
        {"allowance_id": bytes, "sequence": int, "cum_micros": int, "envelope": bytes},
        pk="allowance_id",
        if_not_exists=True,
    )
    _create_receipt_tables(database)


def _create_receipt_tables(database: sqlite_utils.Database) -> None:
    database.table("batches").create(
        {
            "digest": bytes,
            "allowance_id": bytes,
            "sequence": int,
            "head": bytes,
            "cost_micros": int,
            "signed_at_ns": int,
            "envelope": bytes,
            "cosignature": bytes,
            "submitted": int,
        },
        pk="digest",
        defaults={"submitted": int(Submitted.NOTHING)},
        if_not_exists=True,
    )
    batches = database.table("batches")
    batches.create_index(["allowance_id", "sequence"], if_not_exists=True)
    batches.create_index(["submitted", "signed_at_ns"], if_not_exists=True)
    batches.create_index(["signed_at_ns"], if_not_exists=True)
    database.table("receipts").create(
        {
            "batch_digest": bytes,
            "position": int,
            "request_id": bytes,
            "cost_micros": int,
            "body": bytes,
        },
        pk=("batch_digest", "position"),
        if_not_exists=True,
    )
    database.table("evidence").create(
        {"id": int, "kind": str, "first": bytes, "second": bytes, "seen_at_ns": int},
        pk="id",
        if_not_exists=True,
    )


PUT_META = """INSERT INTO meta (name, value) VALUES (?, ?)
  ON CONFLICT (name) DO UPDATE SET value = excluded.value"""
LOAD_META = "SELECT value FROM meta WHERE name = ?"

PUT_ALLOWANCE = """INSERT INTO allowances (allowance_id, pseudonym, settle_by_ns, envelope)
  VALUES (?, ?, ?, ?) ON CONFLICT (allowance_id) DO UPDATE
  SET settle_by_ns = excluded.settle_by_ns, envelope = excluded.envelope"""
LOAD_ALLOWANCES = """SELECT a.envelope, v.envelope,
    (SELECT coalesce(sum(cost_micros), 0) FROM batches b WHERE b.allowance_id = a.allowance_id),
    (SELECT head FROM batches b WHERE b.allowance_id = a.allowance_id
      ORDER BY sequence DESC LIMIT 1),
    (SELECT coalesce(max(sequence), 0) FROM batches b WHERE b.allowance_id = a.allowance_id),
    a.posted_micros
  FROM allowances a LEFT JOIN vouchers v ON v.allowance_id = a.allowance_id
  WHERE a.settle_by_ns > ? AND NOT a.closed"""
MARK_POSTED = """UPDATE allowances SET posted_micros = max(posted_micros, ?)
  WHERE allowance_id = ?"""
LOAD_CLOSED = f"""SELECT a.envelope, coalesce(v.cum_micros, 0), a.closed = {Closed.SUBMITTED}
  FROM allowances a LEFT JOIN vouchers v ON v.allowance_id = a.allowance_id
  WHERE a.settle_by_ns > ? AND a.closed ORDER BY a.settle_by_ns"""
MARK_CLOSED = "UPDATE allowances SET closed = max(closed, ?) WHERE allowance_id = ?"

ADD_EARNINGS = """INSERT INTO earnings (day, micros)
  SELECT ?1, max(0, ?2 - coalesce((SELECT cum_micros FROM vouchers WHERE allowance_id = ?3), 0))
  WHERE true ON CONFLICT (day) DO UPDATE SET micros = micros + excluded.micros"""
LOAD_EARNINGS = """SELECT coalesce(sum(micros), 0),
    coalesce(sum(CASE WHEN day = ? THEN micros ELSE 0 END), 0)
  FROM earnings"""
PUT_VOUCHER = """INSERT INTO vouchers (allowance_id, sequence, cum_micros, envelope)
  VALUES (?, ?, ?, ?) ON CONFLICT (allowance_id) DO UPDATE
  SET sequence = excluded.sequence, cum_micros = excluded.cum_micros,
    envelope = excluded.envelope
  WHERE excluded.cum_micros > vouchers.cum_micros"""

PUT_BATCH = """INSERT OR IGNORE INTO batches
  (digest, allowance_id, sequence, head, cost_micros, signed_at_ns, envelope)
  VALUES (?, ?, ?, ?, ?, ?, ?)"""
PUT_RECEIPT = """INSERT OR IGNORE INTO receipts
  (batch_digest, position, request_id, cost_micros, body) VALUES (?, ?, ?, ?, ?)"""
PUT_COSIGNATURE = "UPDATE batches SET cosignature = ? WHERE digest = ?"
MARK_SUBMITTED = "UPDATE batches SET submitted = max(submitted, ?) WHERE digest = ?"
BATCHES_TO_SUBMIT = f"""SELECT digest, envelope, cosignature FROM batches
  WHERE length(allowance_id) > 0 AND (
    (submitted = {Submitted.NOTHING} AND (signed_at_ns < ? OR cosignature IS NOT NULL))
    OR (submitted = {Submitted.ALONE} AND cosignature IS NOT NULL))
  ORDER BY signed_at_ns LIMIT ?"""
LATEST_BATCHES = """SELECT digest, envelope, cosignature FROM batches
  ORDER BY signed_at_ns DESC LIMIT ?"""
RECEIPTS_OF_BATCH = "SELECT body FROM receipts WHERE batch_digest = ? ORDER BY position"
# Batches at zero price are never submitted.
_MAY_GO = f"signed_at_ns < ? AND (submitted != {Submitted.NOTHING} OR length(allowance_id) = 0)"
PRUNE_RECEIPTS = f"""DELETE FROM receipts WHERE batch_digest IN
  (SELECT digest FROM batches WHERE {_MAY_GO})"""
PRUNE_BATCHES = f"DELETE FROM batches WHERE {_MAY_GO}"

PUT_EVIDENCE = "INSERT INTO evidence (kind, first, second, seen_at_ns) VALUES (?, ?, ?, ?)"
PRUNE_VOUCHERS = """DELETE FROM vouchers WHERE allowance_id IN
  (SELECT allowance_id FROM allowances WHERE settle_by_ns < ?)"""
PRUNE_ALLOWANCES = "DELETE FROM allowances WHERE settle_by_ns < ?"
