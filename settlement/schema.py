"""The tables of the SQLite store. Rows of money are only ever inserted.

What a voucher costs is mostly the pages that it touches: each is written to the log, synced, and
copied into the file. So an allowance has a number that rises with time, and whatever is sorted by
allowance is sorted by that, not by its random id: what is busy now stands close together.
"""

SCHEMA_VERSION = 4

SCHEMA = """
CREATE TABLE IF NOT EXISTS accounts (
  account_id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  created_at_ns INTEGER NOT NULL,
  hold_until_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tokens (
  token_hash TEXT PRIMARY KEY,
  account_id TEXT NOT NULL,
  created_at_ns INTEGER NOT NULL,
  revoked_at_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS codes (
  code_hash TEXT PRIMARY KEY,
  account_id TEXT NOT NULL,
  role TEXT NOT NULL,
  expires_at_ns INTEGER NOT NULL,
  used_by TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS machines (
  peer_id TEXT PRIMARY KEY,
  account_id TEXT NOT NULL,
  role TEXT NOT NULL,
  enrolled_at_ns INTEGER NOT NULL,
  revoked_at_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS machines_by_account ON machines (account_id);
CREATE TABLE IF NOT EXISTS nonces (
  nonce BLOB PRIMARY KEY,
  expires_at_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS nonces_by_expiry ON nonces (expires_at_ns);
CREATE TABLE IF NOT EXISTS allowances (
  allowance_id TEXT NOT NULL UNIQUE,
  account_id TEXT NOT NULL,
  host_peer_id TEXT NOT NULL,
  wallet_key BLOB NOT NULL,
  version INTEGER NOT NULL,
  max_micros INTEGER NOT NULL,
  promo_micros INTEGER NOT NULL,
  fee_bps INTEGER NOT NULL,
  duration_ns INTEGER NOT NULL,
  issued_at_ns INTEGER NOT NULL,
  expires_at_ns INTEGER NOT NULL,
  hold_until_ns INTEGER NOT NULL,
  limit_micros INTEGER NOT NULL,
  closed INTEGER NOT NULL,
  posted_micros INTEGER NOT NULL,
  cum_micros INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  held_micros INTEGER NOT NULL,
  released_micros INTEGER NOT NULL,
  equivocations INTEGER NOT NULL,
  number INTEGER PRIMARY KEY
) STRICT;
CREATE INDEX IF NOT EXISTS allowances_to_void ON allowances (expires_at_ns) WHERE closed = 0;
CREATE INDEX IF NOT EXISTS allowances_closed_to_void ON allowances (expires_at_ns)
  WHERE closed = 1 AND limit_micros > posted_micros;
CREATE INDEX IF NOT EXISTS allowances_to_release ON allowances (hold_until_ns)
  WHERE held_micros > 0;
CREATE TABLE IF NOT EXISTS allowance_envelopes (
  allowance_id TEXT PRIMARY KEY,
  envelope BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS vouchers (
  allowance_id TEXT NOT NULL,
  sequence INTEGER NOT NULL,
  digest BLOB NOT NULL,
  cum_micros INTEGER NOT NULL,
  envelope BLOB NOT NULL,
  allowance_number INTEGER NOT NULL DEFAULT 0,
  number INTEGER PRIMARY KEY
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS vouchers_once
  ON vouchers (allowance_number, sequence, digest);
CREATE TABLE IF NOT EXISTS closes (
  allowance_id TEXT NOT NULL,
  envelope BLOB NOT NULL,
  PRIMARY KEY (allowance_id, envelope)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches (
  digest TEXT PRIMARY KEY,
  allowance_id TEXT NOT NULL,
  host_peer_id TEXT NOT NULL,
  account_id TEXT NOT NULL,
  sequence INTEGER NOT NULL,
  envelope BLOB NOT NULL,
  cosignature BLOB NOT NULL,
  by_host INTEGER NOT NULL,
  by_gateway INTEGER NOT NULL,
  cosigned INTEGER NOT NULL,
  different BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS receipts (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  request_id TEXT NOT NULL,
  digest BLOB NOT NULL,
  batch_digest TEXT NOT NULL,
  host_peer_id TEXT NOT NULL,
  account_id TEXT NOT NULL,
  data BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS receipts_by_account ON receipts (account_id, number);
CREATE INDEX IF NOT EXISTS receipts_by_host ON receipts (host_peer_id, number);
CREATE INDEX IF NOT EXISTS receipts_by_request ON receipts (request_id, host_peer_id);
CREATE INDEX IF NOT EXISTS receipts_by_batch ON receipts (batch_digest);
CREATE TABLE IF NOT EXISTS transactions (
  allowance_number INTEGER NOT NULL DEFAULT 0,
  transaction_id TEXT NOT NULL,
  kind TEXT NOT NULL,
  reference TEXT NOT NULL,
  at_ns INTEGER NOT NULL,
  PRIMARY KEY (allowance_number, transaction_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entries (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  transaction_id TEXT NOT NULL,
  account TEXT NOT NULL,
  micros INTEGER NOT NULL,
  balance_micros INTEGER NOT NULL,
  allowance_number INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX IF NOT EXISTS entries_by_account ON entries (account, number);
CREATE INDEX IF NOT EXISTS entries_by_credit ON entries (transaction_id)
  WHERE allowance_number = 0;
CREATE TABLE IF NOT EXISTS balances (
  account TEXT PRIMARY KEY,
  micros INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS hardware_reports (
  peer_id TEXT PRIMARY KEY,
  body BLOB NOT NULL,
  proof BLOB NOT NULL,
  at_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS gpus (
  uuid TEXT PRIMARY KEY,
  peer_id TEXT NOT NULL,
  claimed_at_ns INTEGER NOT NULL,
  seen_at_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS gpus_by_host ON gpus (peer_id);
CREATE TABLE IF NOT EXISTS gpu_conflicts (
  uuid TEXT NOT NULL,
  peer_id TEXT NOT NULL,
  holder_peer_id TEXT NOT NULL,
  at_ns INTEGER NOT NULL,
  body BLOB NOT NULL,
  proof BLOB NOT NULL,
  PRIMARY KEY (uuid, peer_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS challenges (
  challenge_id TEXT NOT NULL UNIQUE,
  peer_id TEXT NOT NULL,
  device TEXT NOT NULL,
  seed BLOB NOT NULL,
  memory_bytes INTEGER NOT NULL,
  issued_at_ns INTEGER NOT NULL,
  commit_by_ns INTEGER NOT NULL,
  roots BLOB NOT NULL,
  samples TEXT NOT NULL,
  answer_by_ns INTEGER NOT NULL,
  is_over INTEGER NOT NULL,
  PRIMARY KEY (peer_id, device)
) STRICT;
CREATE TABLE IF NOT EXISTS memory_proofs (
  peer_id TEXT NOT NULL,
  device TEXT NOT NULL,
  proven_bytes INTEGER NOT NULL,
  copy_mb_per_s INTEGER NOT NULL,
  matmul_gflops INTEGER NOT NULL,
  problems TEXT NOT NULL,
  at_ns INTEGER NOT NULL,
  proof BLOB NOT NULL,
  PRIMARY KEY (peer_id, device)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS quotes (
  quote_id TEXT NOT NULL,
  host_peer_id TEXT NOT NULL,
  model_id TEXT NOT NULL,
  price_in INTEGER NOT NULL,
  price_cached INTEGER NOT NULL,
  price_out INTEGER NOT NULL,
  minimum_micros INTEGER NOT NULL,
  hour INTEGER NOT NULL,
  PRIMARY KEY (quote_id, host_peer_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS quotes_by_hour ON quotes (hour);
CREATE TABLE IF NOT EXISTS uses (
  hour INTEGER NOT NULL,
  quote_id TEXT NOT NULL,
  allowance_id TEXT NOT NULL,
  requests INTEGER NOT NULL,
  prompt_tokens INTEGER NOT NULL,
  cached_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL,
  cost_micros INTEGER NOT NULL,
  PRIMARY KEY (hour, quote_id, allowance_id)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS entries_stay BEFORE UPDATE ON entries
  BEGIN SELECT RAISE(ABORT, 'entries are never changed'); END;
CREATE TRIGGER IF NOT EXISTS entries_remain BEFORE DELETE ON entries
  BEGIN SELECT RAISE(ABORT, 'entries are never deleted'); END;
CREATE TRIGGER IF NOT EXISTS transactions_stay BEFORE UPDATE ON transactions
  BEGIN SELECT RAISE(ABORT, 'transactions are never changed'); END;
CREATE TRIGGER IF NOT EXISTS transactions_remain BEFORE DELETE ON transactions
  BEGIN SELECT RAISE(ABORT, 'transactions are never deleted'); END;
"""

# Version 1 sorted by the ids themselves. Version 2 lacked the tables of hardware
# and prices, version 3 those of prices.
FROM_VERSION_1 = f"""
DROP TRIGGER entries_stay; DROP TRIGGER entries_remain;
DROP TRIGGER transactions_stay; DROP TRIGGER transactions_remain;
DROP INDEX allowances_to_void; DROP INDEX allowances_to_release;
DROP INDEX entries_by_account; DROP INDEX entries_by_transaction;
ALTER TABLE allowances RENAME TO allowances_1;
ALTER TABLE vouchers RENAME TO vouchers_1;
ALTER TABLE transactions RENAME TO transactions_1;
ALTER TABLE entries RENAME TO entries_1;
{SCHEMA}
INSERT INTO allowances SELECT allowance_id, account_id, host_peer_id, wallet_key, version,
  max_micros, promo_micros, fee_bps, duration_ns, issued_at_ns, expires_at_ns, hold_until_ns,
  limit_micros, closed, posted_micros, cum_micros, sequence, held_micros, released_micros,
  equivocations, NULL FROM allowances_1 ORDER BY issued_at_ns, allowance_id;
INSERT INTO vouchers SELECT v.*, a.number, NULL FROM vouchers_1 v
  JOIN allowances a USING (allowance_id) ORDER BY a.number, v.sequence;
INSERT INTO transactions (transaction_id, kind, reference, at_ns, allowance_number)
  SELECT transaction_id, kind, reference, at_ns, CASE WHEN kind IN ('credit', 'promo') THEN 0 ELSE
    COALESCE((SELECT a.number FROM allowances a WHERE a.allowance_id = reference), 0) END
  FROM transactions_1;
INSERT INTO entries SELECT e.number, e.transaction_id, e.account, e.micros, e.balance_micros,
  CASE WHEN kind IN ('credit', 'promo') THEN 0 ELSE
    COALESCE((SELECT a.number FROM allowances a WHERE a.allowance_id = reference), 0) END
  FROM entries_1 e JOIN transactions_1 USING (transaction_id) ORDER BY e.number;
DROP TABLE allowances_1; DROP TABLE vouchers_1;
DROP TABLE transactions_1; DROP TABLE entries_1;
"""
