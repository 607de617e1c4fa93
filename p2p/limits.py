"""Every bound of the wire in one place: its unit in its name, its reason beside it."""

SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * SECOND_NS
HOUR_NS = 60 * MINUTE_NS
DAY_NS = 24 * HOUR_NS

# -- clocks ------------------------------------------------------------------------------------
CLOCK_SKEW_NS_MAX = 120 * SECOND_NS  # what honest machines without NTP drift in weeks

# -- records -----------------------------------------------------------------------------------
RECORD_BYTES_MAX = 3 * 1024  # a DHT value stays in one frame of every implementation
RECORD_TTL_NS = 15 * MINUTE_NS
RECORD_ANNOUNCE_NS = 5 * MINUTE_NS
RECORD_OFFERS_MAX = 8
RECORD_ADDRESSES_MAX = 8
RECORD_TEXT_BYTES_MAX = 256  # any one text field: address, model id, licence
DHT_KEY_BYTES_MAX = 50  # py-libp2p 0.8.1 refuses longer keys in FIND_NODE (measured)
PROVIDER_SHARDS_COUNT = 2
PROVIDER_ANNOUNCE_NS = HOUR_NS

# -- money -------------------------------------------------------------------------------------
MICROS_MAX = 2**53 - 1  # so that JavaScript and SQL sums stay exact
PRICE_MICROS_PER_MTOK_MAX = 10**12
TOKENS_MAX = 2**31 - 1
FEE_BPS_MAX = 10_000
SIGNED_BYTES_MAX = 4 * 1024  # any signed money message but a receipt batch
RECEIPT_BYTES_MAX = 1024
RECEIPT_BATCH_RECEIPTS_MAX = 256
RECEIPT_BATCH_BYTES_MAX = 16 * 1024
COSIGNATURE_BYTES_MAX = 8 * 1024  # a whole batch of ids that the gateway disputes
RECEIPT_BATCH_WAIT_NS = 50_000_000  # one signature covers what ended in this time
QUOTE_TTL_NS = 10 * MINUTE_NS
QUOTE_RENEW_NS = 4 * MINUTE_NS
ALLOWANCE_TTL_NS_MAX = 24 * HOUR_NS
SETTLE_GRACE_NS = 72 * HOUR_NS
INCREMENT_TOKENS_MIN = 64
INCREMENT_TOKENS_MAX = 1024
STRANGER_SLOTS_COUNT = 2
UNPAID_ABORT_NS = 10 * SECOND_NS
STRANGER_UNPAID_ABORT_NS = 2 * SECOND_NS
VOUCHER_IDLE_NS = 250_000_000  # a gateway signs for less than half an increment after this silence
EVIDENCE_MAX = 16  # pairs of contradicting vouchers kept per customer
UNBATCHED_RECEIPTS_MAX = 4096  # ended, but in no signed batch yet; older ones are forgotten
TEMPLATE_TOKENS_MAX = 512  # a chat template's own tokens, beyond the bytes of the request
RECEIPT_KEEP_NS = 90 * DAY_NS

# -- session -----------------------------------------------------------------------------------
FRAME_BATCH_BYTES_MAX = 4 * 1024 * 1024 + 64 * 1024  # one largest request and what rides with it
REQUEST_BODY_BYTES_MAX = 4 * 1024 * 1024
CHUNK_BYTES_MAX = 256 * 1024
WINDOW_BYTES = 256 * 1024  # per request; 5 s of zero window would reset the whole stream
WINDOW_UPDATE_BYTES = 64 * 1024
OPEN_REQUESTS_MAX = 1024  # per session
SESSION_QUOTES_MAX = 64
SESSION_ALLOWANCES_MAX = 16
PUMP_WAIT_NS = 2_000_000  # at most one write per 2 ms after the first (datapath: takes nearly all)
PING_BUSY_NS = SECOND_NS
SUSPECT_BUSY_NS = 2 * SECOND_NS
DEAD_BUSY_NS = 3 * SECOND_NS
PING_IDLE_NS = 15 * SECOND_NS
DEAD_IDLE_NS = 45 * SECOND_NS
HELLO_WAIT_NS = 10 * SECOND_NS
RESUME_NS_MAX = 10 * SECOND_NS  # how long a session outlives its connection; engines can't pause
ACK_BYTES = 128 * 1024  # received and not acknowledged, after which an ack is written for itself
ACK_ASIDE_BYTES = 4 * 1024  # after which one rides along with whatever is written
RETAINED_BYTES_MAX = 4 * 1024 * 1024  # of a host's stream: 40 ms at 100 MB/s, 80 s of 500 streams
STRANGER_RETAINED_BYTES_MAX = 512 * 1024  # two windows; a stranger has two slots
ERROR_TEXT_BYTES_MAX = 1024
SIDE_FRAME_NS = 1_000_000  # a frame for a request that is over: 1,000 a second come from races
ASKING_FRAME_NS = 5_000_000  # a ping, a quote asked or shown, an allowance: 200 a second
SIDE_FRAMES_BURST_NS = 4096 * SIDE_FRAME_NS  # all requests at once, and then some

# -- connections -------------------------------------------------------------------------------
LINK_CLOSE_NS = 2 * SECOND_NS  # to write what waits; then the stream is reset
CONNECT_NS_MAX = 10 * SECOND_NS  # to open a link or to answer a one-shot request
DIAL_NEXT_NS = 300_000_000  # head start of one address before the next is tried beside it
DIAL_NS_MAX = 6 * SECOND_NS  # TCP, Noise and Yamux to one address
LOOKUP_NS_MAX = 30 * SECOND_NS  # one DHT operation, as its caller sees it
LOOKUP_CALL_NS_MAX = 4 * SECOND_NS  # after which a lookup goes on without a slow node
ONE_SHOT_BYTES_MAX = 64 * 1024  # a one-shot request as its server takes it
ONE_SHOT_SERVED_MAX = 256  # answered at the same time
CONNECTIONS_MAX = 8192  # about 50 KiB each
CONNECTIONS_PER_PEER_MAX = 4
CONNECTIONS_PER_IP_MAX = 1024  # many gateways may share one address
STREAMS_PER_PEER_MAX = 128  # opened by the peer: sessions, requests, DHT calls
STREAMS_PER_PEER_BURST = 512  # opened by the peer at once; each costs milliseconds to negotiate
STREAMS_PER_PEER_PER_S = 100  # after the burst
STREAMS_REFUSED_MAX = 32  # per connection; then it is closed
BROKEN_LINKS_MAX = 8  # per connection: sessions that broke the protocol; then it is closed
MUXER_PINGS_BURST = 100  # per connection; keep-alives come twice a minute
MUXER_PINGS_PER_S = 10
PROTOCOL_LINE_BYTES_MAX = 1024  # of multistream-select, before anybody is known; names have 140
CONNECTION_BUFFER_BYTES_MAX = 24 * 1024 * 1024  # unread, all streams: a relay's 64 circuits
NODE_BUFFER_BYTES_MAX = 256 * 1024 * 1024  # unread, all connections; then the greedy ones go
HANDSHAKES_PER_IP_BURST = 256  # a whole network on one machine, or many behind one address
HANDSHAKES_PER_IP_PER_S = 32  # after the burst; each costs 10 ms
ABUSE_HANDSHAKES_COUNT = 64  # what its address pays for a connection that had to be closed
HALF_OPEN_MAX = 256  # handshakes under way; beyond it the oldest gives way
HALF_OPEN_PER_IP_MAX = 64
HANDSHAKE_NS_MAX = 5 * SECOND_NS
BLACKLIST_NS = 2 * SECOND_NS  # py-libp2p's own 60 s keep a restarted host away
BATCH_FRAMES_MAX = 8192  # a batch of the smallest frames would decode to 100 times its bytes
SESSION_BODY_BYTES_MAX = 32 * 1024 * 1024  # request bodies that wait to be written
SESSION_CONTROL_BYTES_MAX = 8 * 1024 * 1024  # all else but chunks: a peer that asks, never reads
WRITE_STALL_NS = 10 * SECOND_NS  # for a ping behind a body that a slow uplink is still taking
TIMER_LATE_NS = 2 * SECOND_NS  # later than this, we ourselves were away
CHOICES_MAX = 128
SLOTS_MAX = OPEN_REQUESTS_MAX

assert WINDOW_UPDATE_BYTES * 2 <= WINDOW_BYTES
assert CHUNK_BYTES_MAX <= WINDOW_BYTES
assert REQUEST_BODY_BYTES_MAX < FRAME_BATCH_BYTES_MAX
assert RECORD_ANNOUNCE_NS * 2 < RECORD_TTL_NS
assert QUOTE_RENEW_NS * 2 < QUOTE_TTL_NS
assert INCREMENT_TOKENS_MIN <= INCREMENT_TOKENS_MAX
assert REQUEST_BODY_BYTES_MAX < SESSION_BODY_BYTES_MAX
assert DEAD_BUSY_NS < WRITE_STALL_NS < DEAD_IDLE_NS
assert PING_IDLE_NS < DEAD_IDLE_NS
assert DIAL_NS_MAX < CONNECT_NS_MAX < LOOKUP_NS_MAX
assert HALF_OPEN_PER_IP_MAX <= HALF_OPEN_MAX
assert STREAMS_PER_PEER_MAX <= STREAMS_PER_PEER_BURST
assert CONNECTION_BUFFER_BYTES_MAX < NODE_BUFFER_BYTES_MAX
assert VOUCHER_IDLE_NS * 4 <= STRANGER_UNPAID_ABORT_NS < UNPAID_ABORT_NS
assert PING_BUSY_NS < SUSPECT_BUSY_NS < DEAD_BUSY_NS < RESUME_NS_MAX
assert ACK_ASIDE_BYTES < ACK_BYTES < STRANGER_RETAINED_BYTES_MAX < RETAINED_BYTES_MAX
