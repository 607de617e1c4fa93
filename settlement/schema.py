"""The tables of the SQLite store. Rows of money are only ever inserted."""

SCHEMA_VERSION = 1

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
  allowance_id TEXT PRIMARY KEY,
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
  posted_micros INTEGER NOT NULL,
  cum_micros INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  held_micros INTEGER NOT NULL,
  released_micros INTEGER NOT NULL,
  equivocations INTEGER NOT NULL,
  closed INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS allowances_to_void ON allowances (expires_at_ns)
  WHERE limit_micros > posted_micros OR closed = 0;
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
  PRIMARY KEY (allowance_id, sequence, digest)
) STRICT, WITHOUT ROWID;
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
  transaction_id TEXT PRIMARY KEY,
  kind TEXT NOT NULL,
  reference TEXT NOT NULL,
  at_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entries (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  transaction_id TEXT NOT NULL,
  account TEXT NOT NULL,
  micros INTEGER NOT NULL,
  balance_micros INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS entries_by_account ON entries (account, number);
CREATE INDEX IF NOT EXISTS entries_by_transaction ON entries (transaction_id);
CREATE TABLE IF NOT EXISTS balances (
  account TEXT PRIMARY KEY,
  micros INTEGER NOT NULL
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
