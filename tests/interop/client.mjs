// Finds a host in the DHT, asks it one thing for free, and checks and co-signs the receipt.
//   node client.mjs BOOTSTRAP_MULTIADDR NETWORK_ID MODEL_ID [cut]
// With "cut" it loses its stream in mid-answer and goes on over another one.
// Written from docs/protocol.md alone; the headings below are that page's.
import './polyfill.mjs'
import { generateKeyPairSync, randomBytes } from 'node:crypto'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { base32 } from 'multiformats/bases/base32'
import { CID } from 'multiformats/cid'
import * as Digest from 'multiformats/hashes/digest'
import { decodeStrictly, need, peerIdOf, publicOf, same, seal, sha256, unseal } from './wire.mjs'
import { Session } from './session.mjs'

const [bootstrap, network, model, mode] = process.argv.slice(2)
const SKEW_NS = 120_000_000_000n
const nowNs = () => BigInt(Date.now()) * 1_000_000n
const inForce = (from, until) => from - SKEW_NS <= nowNs() && nowNs() <= until + SKEW_NS
const u32 = (value) => Buffer.from([value >>> 24, value >>> 16 & 255, value >>> 8 & 255, value & 255])

// -- 5. Records and the DHT --------------------------------------------------------------------
function checkRecord (envelope, peerBytes) {
  const { value, signer } = unseal('record', envelope, network)
  need(same(peerIdOf(signer), value.peer_id), 'a record that its host did not sign')
  need(peerBytes === undefined || same(value.peer_id, peerBytes), 'the record of another host')
  need(inForce(value.issued_at_ns, value.expires_at_ns), 'a record that is not in force')
  return value
}
const valueKey = (peerBytes) => '/sparewatt/' + base32.encode(sha256(peerBytes).subarray(0, 20)).slice(1)
function providerKey (shard, day) {
  const texts = [network, model.toLowerCase()].flatMap((text) => [u32(Buffer.byteLength(text)), Buffer.from(text)])
  return Buffer.concat([Buffer.from('1220', 'hex'), sha256(Buffer.from('sparewatt/model/1'), ...texts, Buffer.from([shard]), u32(day))])
}

const node = await createLibp2p({
  addresses: { listen: [] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  connectionGater: { denyDialMultiaddr: () => false }, // private addresses too
  services: {
    identify: identify(),
    ping: ping(),
    dht: kadDHT({
      protocol: '/sparewatt/kad/1.0.0',
      clientMode: true,
      peerInfoMapper: passthroughMapper,
      validators: {
        sparewatt: async (key, value) => {
          const record = checkRecord(Buffer.from(value))
          need(Buffer.from(key).toString() === valueKey(record.peer_id), 'a record under the wrong key')
        }
      },
      selectors: {
        sparewatt: (key, values) => {
          const sequences = values.map((value) => checkRecord(Buffer.from(value)).sequence)
          return sequences.lastIndexOf(sequences.reduce((one, other) => one > other ? one : other))
        }
      }
    })
  }
})

async function findProvider () {
  const day = Math.floor(Date.now() / 86_400_000)
  for (let tries = 0; tries < 20; tries++) {
    for (const shard of [0, 1]) {
      const key = CID.createV1(0x55, Digest.decode(providerKey(shard, day)))
      try {
        for await (const provider of node.contentRouting.findProviders(key, { signal: AbortSignal.timeout(5000) })) {
          return provider
        }
      } catch (error) {
        if (error.name !== 'NotFoundError' && error.name !== 'TimeoutError' && error.name !== 'AbortError') throw error
      }
    }
    await new Promise((resolve) => setTimeout(resolve, 500))
  }
  throw new Error('nobody provides the model')
}

async function oneShot (peer, protocol, payload) {
  const stream = await node.dialProtocol(peer, protocol)
  stream.send(Buffer.concat([u32(payload.length), payload]))
  let data = Buffer.alloc(0)
  for await (const part of stream) {
    data = Buffer.concat([data, part.subarray()])
    if (data.length >= 4 && data.length >= 4 + data.readUInt32BE()) break
  }
  await stream.close()
  need(data.length === 4 + data.readUInt32BE(), 'not one message')
  return data.subarray(4)
}

await node.dial(multiaddr(bootstrap))
const provider = await findProvider()
const host = provider.id
const hostBytes = Buffer.from(host.toMultihash().bytes)
const found = checkRecord(Buffer.from(await node.contentRouting.get(Buffer.from(valueKey(hostBytes)))), hostBytes)
const addresses = found.addresses.map((text) => multiaddr(`${text}/p2p/${host}`))
await node.dial(addresses)
const record = checkRecord(await oneShot(host, '/sparewatt/record/1', Buffer.alloc(0)), hostBytes)
need(record.sequence >= found.sequence, 'the host itself shows an older record than the DHT')
const offer = record.offers.find((each) => each.model_id.toLowerCase() === model.toLowerCase())
need(offer !== undefined, 'the model is not on offer')
const PRICES = ['price_in_micros_per_mtok', 'price_cached_micros_per_mtok', 'price_out_micros_per_mtok', 'minimum_micros']
const isFree = (price) => PRICES.every((name) => price[name] === 0n)
need(isFree(offer), 'the model has a price')
const manifestBytes = await oneShot(host, '/sparewatt/manifest/1', offer.manifest_digest)
need(same(sha256(manifestBytes), offer.manifest_digest), 'the manifest is another one')

// -- 6. The session ----------------------------------------------------------------------------
const wallet = generateKeyPairSync('ed25519').privateKey
const me = Buffer.from(node.peerId.toMultihash().bytes)
const openStream = () => node.dialProtocol(host, '/sparewatt/session/1')
const session = new Session(await openStream())
const sessionId = randomBytes(16)
session.send({
  hello: {
    version: 1,
    network_id: network,
    role: 1,
    clock_ns: nowNs(),
    session_id: sessionId,
    wallet_proof: seal('wallet-proof', wallet, {
      version: 1, network_id: network, host_peer_id: hostBytes, gateway_peer_id: me, issued_at_ns: nowNs()
    })
  }
})
const { hello } = await session.next()
need(hello?.version === 1n && hello.network_id === network && hello.role === 2n, 'not the hello of a host')
const skew = hello.clock_ns - nowNs()
need(skew < SKEW_NS && skew > -SKEW_NS, 'clocks differ')

session.send({ quote: { model_id: offer.model_id } })
let quote
do {
  const { value, signer } = unseal('quote', (await session.until('quote')).quote.envelope, network)
  need(same(peerIdOf(signer), hostBytes) && same(value.host_peer_id, hostBytes), 'a quote that its host did not sign')
  need(inForce(value.not_before_ns, value.expires_at_ns), 'a quote that is not in force')
  quote = value
} while (quote.model_id.toLowerCase() !== model.toLowerCase())
need(isFree(quote), 'the quote has a price')

const body = Buffer.from(JSON.stringify({
  model: offer.model_id, messages: [{ role: 'user', content: 'Say hello.' }], max_tokens: 12, stream: true
}))
const request = { request_id: randomBytes(16), quote_id: quote.quote_id, salt: randomBytes(16), body, choices: 1 }
session.send({ channel: 1, request })

const data = []
let bytes = 0, granted = 0, tokens = 0n, started = false, resumed = false, receiptBytes
while (receiptBytes === undefined) {
  const frame = await session.next()
  if (frame.channel !== 1n) continue
  need(!frame.error, `the host says: ${frame.error?.message}`)
  if (frame.started) started = true
  if (frame.chunk) {
    const count = frame.chunk.completion_tokens ?? 0n
    need(started && frame.chunk.data?.length > 0 && count >= tokens, 'a chunk out of turn')
    data.push(frame.chunk.data)
    bytes += frame.chunk.data.length
    tokens = count
    need(bytes - granted <= 262144, 'more than the window holds')
    if (bytes - granted >= 65536) session.send({ channel: 1, window: { consumed_bytes: granted = bytes } })
  }
  if (frame.end) receiptBytes = frame.end.receipt
  else if (frame.chunk && mode === 'cut' && !resumed) {
    need(hello.resume_ms > 0n, 'the host keeps no sessions')
    await session.resume(sessionId, openStream)
    resumed = true
  }
}
const events = Buffer.concat(data).toString().split('\n\n').filter((event) => event.startsWith('data: ')).map((event) => event.slice(6))
need(events.at(-1) === '[DONE]', 'the answer has no end')
const text = events.slice(0, -1).flatMap((event) => JSON.parse(event).choices).map((choice) => choice.delta.content ?? '').join('')

// -- 7. Money ----------------------------------------------------------------------------------
const receipt = decodeStrictly('Receipt', receiptBytes, network)
need(same(receipt.host_peer_id, hostBytes) && same(receipt.request_id, request.request_id), 'the receipt of another request')
need(same(receipt.quote_id, quote.quote_id) && same(receipt.manifest_digest, quote.manifest_digest), 'the receipt of another quote')
need(receipt.allowance_id.length === 0 && receipt.cost_micros === 0n, 'a free request has a cost')
need(same(receipt.request_hash, sha256(request.salt, body)), 'the receipt of another body')
need(same(receipt.answer_hash, sha256(request.salt, ...data)), 'the receipt of another answer')
need(receipt.completion_tokens === tokens && receipt.completion_tokens <= 12n + 1n, 'a wrong count')
need(receipt.completion_tokens <= BigInt(Buffer.byteLength(text)) + 1n && receipt.prompt_tokens <= BigInt(body.length + 512), 'an impossible count')
need(same(receipt.previous_hash, Buffer.alloc(32)), 'not the first of its chain')

const batchEnvelope = (await session.until('receipts')).receipts.envelope
const { value: batch, signer } = unseal('receipts', batchEnvelope, network)
need(same(peerIdOf(signer), hostBytes) && same(batch.host_peer_id, hostBytes), 'a batch that its host did not sign')
need(batch.allowance_id.length === 0 && batch.sequence === 1n && same(batch.previous_head, Buffer.alloc(32)), 'not the first batch')
need(batch.receipt_digests.length === 1 && same(batch.receipt_digests[0], sha256(receiptBytes)), 'a batch of other receipts')
need(same(batch.head, sha256(batch.previous_head, batch.receipt_digests[0])), 'a head that does not follow')
const batchDigest = sha256(batchEnvelope)
const cosignature = seal('cosignature', wallet, {
  version: 1, network_id: network, host_peer_id: hostBytes, batch_digest: batchDigest, different_request_ids: []
})
session.send({ cosign: { envelope: cosignature } })
session.send({ ping: { nonce: 1 } }) // its answer proves that what came before was taken
await session.until('pong')

console.log(JSON.stringify({
  host: host.toString(),
  sequence: Number(record.sequence),
  text,
  resumed,
  completion_tokens: Number(receipt.completion_tokens),
  finish_reason: Number(receipt.finish_reason),
  request_id: receipt.request_id.toString('hex'),
  batch_digest: batchDigest.toString('hex'),
  cosigner: publicOf(wallet).toString('hex'),
  cosignature: cosignature.toString('hex')
}))
await node.stop()
process.exit(0)
