// Bytes to values and back: protobuf, envelopes, chains. Written from docs/protocol.md alone.
import { createHash, createPrivateKey, createPublicKey, sign, verify } from 'node:crypto'

// A message is its fields in order of their numbers, each: name, type, bounds.
//   u low high    unsigned      i low high   signed 64 bit    f   flag
//   b sizes...    bytes         s low high   text             p   peer id    net  our network
//   *b size low high, *s size high, *u low high   repeated    M name [high]  a message (repeated)
const TIME = '1 4611686018427387904', MONEY = '0 9007199254740991', PRICE = '0 1000000000000'
const COUNT = '0 2147483647', SEQUENCE = '1 9223372036854775807', TEXT = 's 1 256', HEAD = 'version u 1 1;network_id net;'
const SIGNED = {
  CapabilityRecord: `${HEAD}peer_id p;protocol_versions *u 1 8;sequence u ${SEQUENCE};issued_at_ns i ${TIME};
    expires_at_ns i ${TIME};addresses *s 256 8;region s 0 2;draining f;data_policy u 0 3;owner_tag b 0-512;
    hardware M Hardware;offers M Offer 8`,
  Hardware: `kind s 3 3;name ${TEXT};count u 1 1024;memory_bytes u ${MONEY}`,
  Offer: `model_id ${TEXT};manifest_digest b 32;context_tokens u 1 2147483647;output_tokens_max u 1 2147483647;
    features *u 0 7;price_in_micros_per_mtok u ${PRICE};price_cached_micros_per_mtok u ${PRICE};
    price_out_micros_per_mtok u ${PRICE};minimum_micros u ${MONEY};licence ${TEXT};quantization s 1 16`,
  OwnerTag: `${HEAD}host_peer_id p;tag b 16;expires_at_ns i ${TIME}`,
  KeyList: `${HEAD}sequence u ${SEQUENCE};issued_at_ns i ${TIME};expires_at_ns i ${TIME};keys *b 32 1 16`,
  Allowance: `${HEAD}allowance_id b 16;allowance_version u 1 2147483647;pseudonym b 32;wallet_key b 32;host_peer_id p;
    max_micros u 1 9007199254740991;fee_bps u 0 10000;issued_at_ns i ${TIME};expires_at_ns i ${TIME};settle_by_ns i ${TIME}`,
  Quote: `${HEAD}quote_id b 16;host_peer_id p;model_id ${TEXT};manifest_digest b 32;price_in_micros_per_mtok u ${PRICE};
    price_cached_micros_per_mtok u ${PRICE};price_out_micros_per_mtok u ${PRICE};minimum_micros u ${MONEY};
    not_before_ns i ${TIME};expires_at_ns i ${TIME}`,
  Voucher: `${HEAD}allowance_id b 16;host_peer_id p;sequence u ${SEQUENCE};cum_micros u ${MONEY};chain_head b 32`,
  Receipt: `${HEAD}host_peer_id p;allowance_id b 0 16;request_id b 16;quote_id b 16;manifest_digest b 32;
    prompt_tokens u ${COUNT};cached_tokens u ${COUNT};completion_tokens u ${COUNT};cost_micros u ${MONEY};
    finish_reason u 0 8;received_at_ns i ${TIME};started_at_ns i 0 4611686018427387904;finished_at_ns i ${TIME};
    request_hash b 32;answer_hash b 32;previous_hash b 32;evidence_digest b 0 32;seed_commitment b 0 32;
    supersedes_request_id b 0 16`,
  ReceiptBatch: `${HEAD}host_peer_id p;allowance_id b 0 16;sequence u ${SEQUENCE};previous_head b 32;
    receipt_digests *b 32 1 256;head b 32;signed_at_ns i ${TIME}`,
  Cosignature: `${HEAD}host_peer_id p;batch_digest b 32;different_request_ids *b 16 0 256`,
  Close: `${HEAD}allowance_id b 16;host_peer_id p;final_cum_micros u ${MONEY}`,
  WalletProof: `${HEAD}host_peer_id p;gateway_peer_id p;issued_at_ns i ${TIME}`,
  Enrolment: `${HEAD}account_id s 1 64;code s 1 64;role s 4 7;issued_at_ns i ${TIME}`,
  RequestProof: `${HEAD}method s 1 16;path s 1 2048;body_sha256 b 32;issued_at_ns i ${TIME};nonce b 16`
}
export const KINDS = { // kind: [message, most bytes of its payload]
  record: ['CapabilityRecord', 3072], 'owner-tag': ['OwnerTag', 4096], 'key-list': ['KeyList', 4096],
  allowance: ['Allowance', 4096], quote: ['Quote', 4096], voucher: ['Voucher', 4096],
  receipts: ['ReceiptBatch', 16384], cosignature: ['Cosignature', 8192], close: ['Close', 4096],
  'wallet-proof': ['WalletProof', 4096], enrolment: ['Enrolment', 4096], 'request-proof': ['RequestProof', 4096]
}
const QUANTIZATIONS = 'int4 int8 fp4 mxfp4 nvfp4 fp6 fp8 mxfp8 fp16 bf16 fp32 unknown'.split(' ')
const S = 1_000_000_000n
const within = (value, low, high) => value >= BigInt(low) && value <= BigInt(high)
const cheaper = (price) => price.price_cached_micros_per_mtok <= price.price_in_micros_per_mtok
const RULES = { // what one field's bounds can't say
  CapabilityRecord: (v) => within(v.expires_at_ns - v.issued_at_ns, 1, 900n * S) && v.protocol_versions.length > 0 &&
    v.protocol_versions.every((each) => within(each, 1, 65536)) && /^([A-Z]{2})?$/.test(v.region),
  Hardware: (v) => ['cpu', 'gpu'].includes(v.kind),
  Offer: (v) => v.output_tokens_max <= v.context_tokens && cheaper(v) && QUANTIZATIONS.includes(v.quantization) &&
    v.features.every((each, at) => within(each, 1, 7) && (at === 0 || each > v.features[at - 1])),
  KeyList: (v) => v.expires_at_ns > v.issued_at_ns,
  Allowance: (v) => within(v.expires_at_ns - v.issued_at_ns, 1, 86400n * S) && v.settle_by_ns >= v.expires_at_ns,
  Quote: (v) => within(v.expires_at_ns - v.not_before_ns, 1, 600n * S) && cheaper(v),
  Receipt: (v) => v.cached_tokens <= v.prompt_tokens && v.finished_at_ns >= v.received_at_ns,
  Enrolment: (v) => ['host', 'gateway'].includes(v.role)
}
export const parse = (texts) => Object.fromEntries(Object.entries(texts).map(([name, text]) => [name, text.split(';').map((field) => {
  const [key, type, ...bounds] = field.trim().split(/\s+/)
  return { key, type, bounds }
})]))
const SCHEMAS = parse(SIGNED)


export class Refused extends Error {}
export const need = (holds, why) => { if (!holds) throw new Refused(why) }
export const sha256 = (...parts) => createHash('sha256').update(Buffer.concat(parts)).digest()
export const same = (one, other) => Buffer.compare(Buffer.from(one), Buffer.from(other)) === 0

// -- protobuf ----------------------------------------------------------------------------------
export function varint (value) {
  const out = []
  for (value = BigInt.asUintN(64, BigInt(value)); value > 127n; value >>= 7n) out.push(Number(value & 127n) | 128)
  return Buffer.from([...out, Number(value)])
}
function readVarint (data, at) {
  let value = 0n
  for (let shift = 0n; shift < 70n; shift += 7n) {
    need(at < data.length, 'a varint is cut')
    const byte = data[at++]
    value |= BigInt(byte & 127) << shift
    if (byte < 128) {
      need(value < 2n ** 64n, 'a varint is too large')
      return [value, at]
    }
  }
  throw new Refused('a varint does not end')
}
export const sized = (data) => Buffer.concat([varint(data.length), data])
const tag = (number, wireType) => varint(number << 3 | wireType)

export function encode (message, value, schemas = SCHEMAS) {
  const out = []
  schemas[message].forEach(({ key, type, bounds }, index) => {
    const number = index + 1
    const held = value[key]
    const many = type[0] === '*' || (type === 'M' && bounds.length > 1)
    if (held === undefined || (many && held.length === 0)) return
    if (type === '*u') out.push(tag(number, 2), sized(Buffer.concat(held.map(varint))))
    else if (many || type === 'M') {
      for (const item of many ? held : [held]) {
        out.push(tag(number, 2), sized(type === 'M' ? encode(bounds[0], item, schemas) : Buffer.from(item)))
      }
    } else if ('uif'.includes(type)) {
      if (BigInt(held) !== 0n) out.push(tag(number, 0), varint(held))
    } else if (held.length > 0) out.push(tag(number, 2), sized(Buffer.from(held)))
  })
  return Buffer.concat(out)
}

/** Reads a message loosely, as session frames are read; only what is there is in the result. */
export function decode (message, data, schemas = SCHEMAS) {
  const value = {}
  const fields = new Map(schemas[message].map((field, index) => [index + 1, field]))
  for (let at = 0; at < data.length;) {
    let head, held
    [head, at] = readVarint(data, at)
    const field = fields.get(Number(head >> 3n))
    const wireType = Number(head & 7n)
    need(wireType === 0 || wireType === 2, `wire type ${wireType}`)
    ;[held, at] = readVarint(data, at)
    if (wireType === 2) {
      const end = at + Number(held)
      need(end <= data.length, 'a field is cut')
      held = data.subarray(at, end)
      at = end
    }
    if (field !== undefined) take(value, field, wireType, held, schemas)
  }
  return value
}
function take (value, { key, type, bounds }, wireType, held, schemas) {
  need((wireType === 0) === ('uif'.includes(type)), `${key} is of another wire type`)
  if (type === 'i') held = BigInt.asIntN(64, held)
  if (type === 'f') held = held !== 0n
  if (type === 'M') held = decode(bounds[0], held, schemas)
  if (type === 's' || type === '*s' || type === 'net') held = text(held)
  if (type === '*u') {
    value[key] ??= []
    for (let at = 0, one; at < held.length;) { [one, at] = readVarint(held, at); value[key].push(one) }
  } else if (type[0] === '*' || (type === 'M' && bounds.length > 1)) (value[key] ??= []).push(held)
  else value[key] = held
}

function text (data) {
  const held = Buffer.from(data).toString()
  need(same(Buffer.from(held), data), 'a text is not UTF-8')
  return held
}

/** Reads what was signed: one encoding of each value, all bounds, no unknown fields. */
export function decodeStrictly (message, data, network) {
  const value = complete(message, decode(message, data))
  need(same(encode(message, value), data), `${message}: not its one encoding`)
  check(message, value, network)
  return value
}
function complete (message, value) {
  for (const { key, type, bounds } of SCHEMAS[message]) {
    if (type === 'M') {
      if (bounds.length > 1) value[key] = (value[key] ?? []).map((item) => complete(bounds[0], item))
      else if (value[key] !== undefined) complete(bounds[0], value[key])
    } else value[key] ??= type[0] === '*' ? [] : type === 'f' ? false : 'ui'.includes(type) ? 0n : type === 's' || type === 'net' ? '' : Buffer.alloc(0)
  }
  return value
}
function check (message, value, network) {
  for (const { key, type, bounds } of SCHEMAS[message]) {
    need(fits(type, bounds, value[key], network), `${message}.${key} is out of bounds`)
  }
  need(RULES[message]?.(value) ?? true, `${message}: fields contradict each other`)
}
function fits (type, bounds, held, network) {
  const bytes = (text) => Buffer.byteLength(text)
  switch (type) {
    case 'u': case 'i': return within(held, ...bounds)
    case 'b': return bounds[0] === '0-512' ? held.length <= 512 : bounds.includes(String(held.length))
    case 's': return within(BigInt(bytes(held)), ...bounds)
    case '*s': return held.length <= bounds[1] && held.every((each) => bytes(each) >= 1 && bytes(each) <= bounds[0])
    case '*b': return held.length >= bounds[1] && held.length <= bounds[2] && held.every((each) => each.length === Number(bounds[0]))
    case '*u': return held.length <= Number(bounds[1]) && held.every((each) => each < 2n ** 32n)
    case 'p': return held.length === 38 && held.subarray(0, 6).toString('hex') === '002408011220'
    case 'net': return held === network
    case 'M': for (const one of bounds.length > 1 ? held : [held ?? {}]) check(bounds[0], one, network)
      return bounds.length < 2 || held.length <= bounds[1]
    default: return true
  }
}

// -- envelopes ---------------------------------------------------------------------------------
const HEADS = Buffer.from('0a2408011220', 'hex')
const covered = (kind, payload) => Buffer.concat([`sparewatt/${kind}/1`, `/sparewatt/${kind}/1`, payload].map((part) => sized(Buffer.from(part))))
// Keys under which one signature fits all; OpenSSL takes them (the sign bit is free).
const SMALL_ORDER = ['00'.repeat(32), '01' + '00'.repeat(31), 'ec' + 'ff'.repeat(30) + '7f', 'ed' + 'ff'.repeat(30) + '7f', 'ee' + 'ff'.repeat(30) + '7f',
  '26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05', 'c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a']
export const publicKey = (raw) => createPublicKey({ key: Buffer.concat([Buffer.from('302a300506032b6570032100', 'hex'), raw]), format: 'der', type: 'spki' })
export const privateKey = (seed) => createPrivateKey({ key: Buffer.concat([Buffer.from('302e020100300506032b657004220420', 'hex'), seed]), format: 'der', type: 'pkcs8' })
export const publicOf = (key) => createPublicKey(key).export({ format: 'der', type: 'spki' }).subarray(-32)
export const peerIdOf = (raw) => Buffer.concat([Buffer.from('002408011220', 'hex'), raw])

export function seal (kind, key, value) {
  const payload = encode(KINDS[kind][0], value)
  const parts = [`/sparewatt/${kind}/1`, payload, sign(null, covered(kind, payload), key)]
  const fields = parts.flatMap((part, at) => [Buffer.from([[0x12, 0x1a, 0x2a][at]]), sized(Buffer.from(part))])
  return Buffer.concat([HEADS, publicOf(key), ...fields])
}

/** Returns { value, signer } of an envelope; throws Refused. Who may sign is the caller's question. */
export function unseal (kind, envelope, network) {
  const [message, most] = KINDS[kind]
  need(envelope.length <= most + 256 && same(envelope.subarray(0, 6), HEADS), 'no envelope of an Ed25519 key')
  const signer = Buffer.from(envelope.subarray(6, 38))
  const parts = []
  let at = 38
  for (const expected of [0x12, 0x1a, 0x2a]) {
    need(envelope[at] === expected, 'an envelope lacks a field')
    const [length, start] = readVarint(envelope, at + 1)
    need(start === at + 1 + varint(length).length, 'a length is longer than need be')
    at = start + Number(length)
    need(at <= envelope.length, 'an envelope is cut')
    parts.push(envelope.subarray(start, at))
  }
  const [type, payload, signature] = parts
  need(at === envelope.length && signature.length === 64, 'not the end of an envelope')
  need(type.toString() === `/sparewatt/${kind}/1` && payload.length <= most, 'another kind')
  const folded = Buffer.from(signer)
  folded[31] &= 127
  need(!SMALL_ORDER.includes(folded.toString('hex')), 'a key of small order')
  need(verify(null, covered(kind, payload), publicKey(signer), signature), 'the signature does not verify')
  return { value: decodeStrictly(message, payload, network), signer, envelope }
}
