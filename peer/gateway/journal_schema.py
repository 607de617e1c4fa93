"""The gateway's journal as tables and statements, apart from how they are run."""

import sqlite_utils


def create_tables(database: sqlite_utils.Database) -> None:
    """Make the tables that are missing."""
    database.table("meta").create({"name": str, "value": bytes}, pk="name", if_not_exists=True)
    database.table("allowances").create(
        {
            "allowance_id": bytes,
            "host_peer_id": str,
            "settle_by_ns": int,
            "envelope": bytes,
            "ended": int,
        },
        pk="allowance_id",
        defaults={"settle_by_ns": 0, "ended": 0},
        if_not_exists=True,
    )
    database.table("vouchers").create(
        {
            "allowance_id": bytes,
            "sequence": int,
            "cum_micros": int,
            "envelope": bytes,
            "posted_micros": int,
        },
        pk="allowance_id",
        defaults={"posted_micros": 0},
        if_not_exists=True,
    )
    _create_receipt_tables(database)
    _create_usage_table(database)


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
        defaults={"submitted": 0},
        if_not_exists=True,
    )
    batches = database.table("batches")
    batches.create_index(["allowance_id", "sequence"], if_not_exists=True)
    batches.create_index(["submitted", "signed_at_ns"], if_not_exists=True)
    database.table("receipts").create(
        {"request_id": bytes, "batch_digest": bytes, "position": int, "body": bytes},
        pk="request_id",
        if_not_exists=True,
    )
    database.table("receipts").create_index(["batch_digest", "position"], if_not_exists=True)


def _create_usage_table(database: sqlite_utils.Database) -> None:
    database.table("usage").create(
        {
            "request_id": bytes,
            "answer_id": str,
            "upstream_id": str,
            "created_at_ns": int,
            "entry": bytes,
        },
        pk="request_id",
        if_not_exists=True,
    )
    for column in ("answer_id", "upstream_id", "created_at_ns"):
        database.table("usage").create_index([column], if_not_exists=True)


PUT_META = """INSERT INTO meta (name, value) VALUES (?, ?)
  ON CONFLICT (name) DO UPDATE SET value = excluded.value"""
LOAD_META = "SELECT value FROM meta WHERE name = ?"

PUT_INTENT = "INSERT OR IGNORE INTO allowances (allowance_id, host_peer_id) VALUES (?, ?)"
PUT_ALLOWANCE = """INSERT INTO allowances (allowance_id, host_peer_id, settle_by_ns, envelope)
  VALUES (?, ?, ?, ?) ON CONFLICT (allowance_id) DO UPDATE
  SET settle_by_ns = excluded.settle_by_ns, envelope = excluded.envelope"""
END_ALLOWANCE = "UPDATE allowances SET ended = 1 WHERE allowance_id = ?"
LOAD_ALLOWANCES = """SELECT a.allowance_id, a.host_peer_id, a.envelope, v.envelope,
    (SELECT coalesce(sum(cost_micros), 0) FROM batches b WHERE b.allowance_id = a.allowance_id),
    (SELECT head FROM batches b WHERE b.allowance_id = a.allowance_id
      ORDER BY sequence DESC LIMIT 1),
    (SELECT coalesce(max(sequence), 0) FROM batches b WHERE b.allowance_id = a.allowance_id)
  FROM allowances a LEFT JOIN vouchers v ON v.allowance_id = a.allowance_id
  WHERE NOT a.ended AND (a.envelope IS NULL OR a.settle_by_ns > ?)"""

PUT_VOUCHER = """INSERT INTO vouchers (allowance_id, sequence, cum_micros, envelope)
  VALUES (?, ?, ?, ?) ON CONFLICT (allowance_id) DO UPDATE
  SET sequence = excluded.sequence, cum_micros = excluded.cum_micros,
    envelope = excluded.envelope
  WHERE excluded.sequence > vouchers.sequence"""
LOAD_VOUCHER = "SELECT envelope FROM vouchers WHERE allowance_id = ?"
VOUCHERS_TO_SUBMIT = """SELECT allowance_id, cum_micros, envelope FROM vouchers
  WHERE cum_micros > posted_micros LIMIT ?"""
VOUCHERS_TO_LOOK_BACK = """SELECT v.allowance_id, v.cum_micros, v.envelope
  FROM vouchers v JOIN allowances a ON a.allowance_id = v.allowance_id
  WHERE v.allowance_id > ? AND NOT a.ended AND a.settle_by_ns > ?
  ORDER BY v.allowance_id LIMIT ?"""
MARK_FORGOTTEN = "UPDATE vouchers SET posted_micros = 0 WHERE allowance_id = ?"
MARK_POSTED = """UPDATE vouchers SET posted_micros = max(posted_micros, ?)
  WHERE allowance_id = ?"""

PUT_BATCH = """INSERT OR IGNORE INTO batches
  (digest, allowance_id, sequence, head, cost_micros, signed_at_ns, envelope, cosignature)
  VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""
PUT_RECEIPT = """INSERT OR IGNORE INTO receipts
  (request_id, batch_digest, position, body) VALUES (?, ?, ?, ?)"""
MARK_SUBMITTED = "UPDATE batches SET submitted = 1 WHERE digest = ?"
BATCHES_TO_SUBMIT = """SELECT digest, envelope, cosignature FROM batches
  WHERE submitted = 0 ORDER BY signed_at_ns LIMIT ?"""
RECEIPTS_OF_BATCH = "SELECT body FROM receipts WHERE batch_digest = ? ORDER BY position"
RECEIPT_OF_REQUEST = """SELECT r.body, b.envelope, b.cosignature, b.allowance_id
  FROM receipts r JOIN batches b ON b.digest = r.batch_digest WHERE r.request_id = ?"""

PUT_USAGE = """INSERT OR IGNORE INTO usage
  (request_id, answer_id, upstream_id, created_at_ns, entry) VALUES (?, ?, ?, ?, ?)"""
FIND_USAGE = """SELECT entry FROM usage WHERE request_id = ?1
  UNION ALL SELECT entry FROM usage WHERE answer_id = ?2
  UNION ALL SELECT entry FROM usage WHERE upstream_id = ?2
  ORDER BY 1 LIMIT 1"""

PRUNE_USAGE = "DELETE FROM usage WHERE created_at_ns < ?"
PRUNE_RECEIPTS = """DELETE FROM receipts WHERE batch_digest IN
  (SELECT digest FROM batches WHERE signed_at_ns < ? AND submitted = 1)"""
PRUNE_BATCHES = "DELETE FROM batches WHERE signed_at_ns < ? AND submitted = 1"
