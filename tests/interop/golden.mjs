// A second reader of tests/golden: every signed vector, every refused one, every frame.
import { readFileSync, readdirSync } from 'node:fs'
import { deepStrictEqual } from 'node:assert'
import { Refused, KINDS, decodeStrictly, need, peerIdOf, privateKey, same, seal, sha256, unseal } from './wire.mjs'
import { readBatch } from './session.mjs'
import { base58btc } from 'multiformats/bases/base58'

const folder = new URL('../golden/', import.meta.url)
// Numbers beyond 2^53 become texts first: JSON.parse would round them.
const load = (name) => JSON.parse(readFileSync(new URL(name, folder), 'utf8').replace(/: (-?\d{16,})/g, ': "$1"'))
const plain = (value, key = '') => {
  if (Buffer.isBuffer(value)) return key.endsWith('peer_id') ? base58btc.encode(value).slice(1) : value.toString('hex')
  if (Array.isArray(value)) return value.map((each) => plain(each))
  if (typeof value === 'bigint') return String(value)
  if (value === null || typeof value !== 'object') return typeof value === 'number' ? String(value) : value
  return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, plain(each, name)]))
}
const hex = (text) => Buffer.from(text, 'hex')

let signed = 0
for (const kind of Object.keys(KINDS)) {
  const vector = load(`${kind}.json`)
  const { value, signer, envelope } = unseal(kind, hex(vector.envelope), 'test')
  deepStrictEqual(plain(value), plain(vector.value), kind)
  need(signer.toString('hex') === vector.signer_public_key, `${kind}: signer`)
  need(plain(peerIdOf(signer), 'peer_id') === vector.signer_peer_id, `${kind}: peer id`)
  need(same(seal(kind, privateKey(hex(vector.signer_seed)), value), envelope), `${kind}: signed anew it differs`)
  signed++
}
need(readdirSync(folder).filter((name) => name.endsWith('.json')).length === signed + 3, 'a file that nobody reads')

const digests = load('digests.json')
const receipt = decodeStrictly('Receipt', hex(digests.receipt.encoding), 'test')
deepStrictEqual(plain(receipt), plain(digests.receipt.value))
digests.chain.digests.reduce((head, digest, at) => {
  const next = sha256(head, hex(digest))
  need(next.toString('hex') === digests.chain.heads[at + 1], 'chain')
  return next
}, Buffer.alloc(32))

const refused = load('refused.json')
for (const { kind, why, envelope } of refused) {
  try {
    unseal(kind, hex(envelope), 'test')
  } catch (error) {
    if (error instanceof Refused) continue
    throw error
  }
  throw new Error(`${kind}: ${why}: was accepted`)
}

let frames = 0
for (const step of load('session.json').conversation) {
  const read = readBatch(hex(step.bytes).subarray(4))
  deepStrictEqual(plain(read), plain(step.frames), step.what)
  frames += read.length
}
console.log(JSON.stringify({ signed, refused: refused.length, frames }))
